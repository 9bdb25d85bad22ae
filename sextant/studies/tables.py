"""Tables on a terminal. Rich escapes nothing by itself: what users wrote is printed as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sextant.simulator.units import show
from sextant.studies.metrics import METRICS, shown

if TYPE_CHECKING:
    from sextant.studies.report import Answer

_MAX_ROWS = 12


def print_answer(answer: Answer) -> None:
    """One point: predicted beside published, memory, verdict. Several: the best of them."""
    if answer.n_points == 1:
        _print_point(answer)
    else:
        _print_sweep(answer)


def _print_point(answer: Answer) -> None:
    from sextant.studies import report

    result, beside = answer.result, report.comparisons(answer)
    print(answer.question.scenario.name)
    table = _table("", ">predicted", ">90% interval", *((">published", ">error") if beside else ()))
    for name in report.headline(answer):
        value = float(result.columns[name][0])
        low, high = report.interval(answer, name) if report.scales(name) else (value, value)
        between = f"{shown(name, low)} .. {shown(name, high)}" if high > low else ""
        row = [METRICS[name].label, shown(name, value), between]
        if beside:
            pair = beside.get(name)
            row += [shown(name, pair.published), f"{100 * float(pair.error):+.1f}%"] if pair else ["", ""]
        table.add_row(*map(Text, row))
    _print(table)
    print(_memory_line(answer))
    shares = ", ".join(f"{100 * share:.0f}% {name}" for name, share in result.provenance.items())
    print(f"provenance of operator times: {shares}")
    print("feasible" if result.feasible[0] else "infeasible: " + "; ".join(result.limits[0]))


def _memory_line(answer: Answer) -> str:
    columns = answer.result.columns
    skip = ("hbm_bytes", "hbm_free_bytes")
    parts = [
        f"{name.removeprefix('hbm_').removesuffix('_bytes')} {values[0] / 1e9:.1f}"
        for name, values in columns.items()
        if name.startswith("hbm_") and name not in skip
    ]
    used, free = columns["hbm_bytes"][0] / 1e9, columns["hbm_free_bytes"][0] / 1e9
    verdict = f"fits in {used + free:.1f} GB, {free:.1f} GB free" if free >= 0 else f"misses by {-free:.1f} GB"
    return f"memory of the fullest GPU, GB: {' + '.join(parts)} = {used:.1f}: {verdict}"


def _print_sweep(answer: Answer) -> None:
    from sextant.studies import report

    result, swept = answer.result, answer.axis_values()
    order = report.best(answer)
    wanted = [n for n in answer.question.scenario.objectives if n in result.columns]
    names = wanted or report.headline(answer)[:4]
    ok = int(result.feasible.sum())
    print(f"{answer.question.scenario.name}: {answer.n_points:,} points, {ok:,} feasible")
    table = _table(*(path.rpartition(".")[2] for path in swept), *(f">{n}" for n in names), "limits")
    for i in order[:_MAX_ROWS]:
        cells = [_cell(path, values[i]) for path, values in swept.items()]
        cells += [shown(n, float(result.columns[n][i])) for n in names]
        table.add_row(*map(Text, [*cells, "; ".join(result.limits[i])]))
    _print(table)
    if answer.n_points > _MAX_ROWS:
        what = f"best by {names[0]}" if wanted else "first"
        print(f"({_MAX_ROWS} of {answer.n_points:,} shown, {what}; --out DIR writes them all)")


def _cell(path: str, value: Any) -> str:
    from sextant.simulator.units import dimension

    return show(float(value), dimension(path.rpartition(".")[2])) if isinstance(value, float) else str(value)


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table."""
    table = _table(*head)
    for row in rows:
        table.add_row(*map(Text, row))
    _print(table)


def print_listing(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per catalogue entry: the scalar fields of each row."""
    if not rows:
        return
    names = [n for n in rows[0] if not isinstance(rows[0][n], dict | list)]
    print_rows(names, [[_short(row[n]) for n in names] for row in rows])


def print_card(card: Mapping[str, Any]) -> None:
    """A mapping of sections: scalars first, then a table per nested mapping."""
    print_rows(("field", "value"), [(k, _short(v)) for k, v in card.items() if not isinstance(v, dict)])
    for name, section in card.items():
        if isinstance(section, dict) and section:
            print(f"\n{name}")
            print_rows(("", ""), [(k, _short(v)) for k, v in section.items()])


def print_comparison(found: Mapping[str, Any]) -> None:
    """Metrics, operators and resources of two scenarios side by side."""
    print(f"A: {found['a']}\nB: {found['b']}")
    for section in ("metrics", "operators", "resources"):
        table = _table(section, ">A", ">B", ">B - A", ">B / A")
        for row in found[section][: 2 * _MAX_ROWS]:
            a, b, name = row["a"], row["b"], row["name"]
            key = name if section == "metrics" else "x_s"
            delta = ("+" if b >= a else "-") + shown(key, abs(b - a))
            ratio = f"{b / a:.3f}" if a else ""
            table.add_row(*map(Text, (name, shown(key, a), shown(key, b), delta, ratio)))
        _print(table)


def print_judged(rows: Sequence[Mapping[str, Any]]) -> None:
    """Published figures beside predictions."""
    table = _table("figure", ">predicted", ">published", ">error", "inside", "fitted inputs")
    for row in rows:
        name = row["id"].rpartition(".")[2]
        error = f"{100 * row['error']:+.2f}%"
        table.add_row(
            *map(Text, (row["id"], shown(name, row["predicted"]), shown(name, row["published"]), error)),
            Text({True: "yes", False: "no", None: ""}[row["inside"]]), Text(row["fitted"]),
        )  # fmt: skip
    _print(table)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return str(value)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        table.add_column(Text(name.lstrip(">")), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    console = Console(highlight=False, soft_wrap=False)
    # A pipe has no width of its own: leave room, so that columns are not folded for programs that read them.
    Console(highlight=False, width=console.width if console.is_terminal else 160).print(table)
