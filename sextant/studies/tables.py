"""Answers as text for a terminal. What users wrote is shown as plain text, never as markup or a terminal's command."""

from __future__ import annotations

import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sextant.simulator.units import dimension, show
from sextant.studies import study
from sextant.studies.cli import plain
from sextant.studies.metrics import METRICS, compared, shown

if TYPE_CHECKING:
    from rich.table import Table

    from sextant.studies.provenance import Leaf
    from sextant.studies.report import Answer

_MAX_ROWS = 12
#: Stands for a space at which no line ends.
_NO_BREAK = "\0"
#: A pipe has no width of its own: room enough that columns are not cut for programs that read them.
_PIPE_WIDTH = 160


def answer(found: Answer) -> str:
    """One point: predicted beside published, memory, verdict. Several: the best of them. A study: what it says."""
    asked = study.find(found.question.study) if found.question.study else None
    if asked is not None and asked.text is not None:
        return asked.text(found)
    return _point(found) if found.n_points == 1 and asked is None else sweep(found, asked.columns if asked else ())


def _point(found: Answer) -> str:
    from sextant.studies import report

    if not report.planned(found):
        reasons = [f"infeasible: {plain(reason)}" for reason in report.limits(found, 0)]
        return "\n".join([plain(found.question.scenario.name), *reasons])
    result, beside = found.result, report.comparisons(found)
    table = grid("", ">predicted", ">90% interval", *((">published", ">error") if beside else ()))
    for name in report.headline(found):
        value = float(result.columns[name][0])
        low, high = report.interval(found, name) if report.scales(name) else (value, value)
        between = f"{shown(name, low)} .. {shown(name, high)}" if high > low else ""
        row = [METRICS[name].label, shown(name, value), between]
        if beside:
            pair = beside.get(name)
            row += [shown(name, pair.published), f"{100 * float(pair.error):+.1f}%"] if pair else ["", ""]
        add(table, row)
    lines = [plain(found.question.scenario.name), *_solved(found), rendered(table), *_time(found), *_memory(found)]
    shares = ", ".join(f"{100 * share:.0f}% {name}" for name, share in result.provenance.items())
    lines.append(f"operator times: {shares}")
    sources = dict.fromkeys(pair.source for pair in beside.values())
    if sources:
        lines.append(_clipped("published: " + "; ".join(sources)))
    reasons = report.limits(found, 0)
    return "\n".join([*lines, *([f"infeasible: {plain(reason)}" for reason in reasons] or ["feasible"])])


def _time(found: Answer) -> list[str]:
    """Where the time of the step goes, by block and pass, as a table that adds up."""
    from sextant.studies.parts import messages_s, parts

    rows = parts(found.result)
    if not rows:
        return []
    step_s = float(found.result.columns["step_time_s"][0])
    training = found.question.scenario.load.phase == "training"
    table = grid(
        "where the time goes", *((">forward", ">gradients", ">of weights") if training else ()), ">all", ">share"
    )
    for part in rows:
        passes = [shown("x_s", x) if x else "" for x in part.passes or (0.0, 0.0, 0.0)] if training else []
        add(table, (part.name, *passes, shown("x_s", part.seconds), f"{100 * part.seconds / step_s:.1f}%"))
    add(table, ("whole step", *(("", "", "") if training else ()), shown("x_s", step_s), "100.0%"))
    sent = messages_s(found.result)
    exposed = float(found.result.columns.get("exposed_comm_s", [0.0])[0])
    note = f"messages: {shown('x_s', sent)} in all; exposed, with waiting for slower GPUs: {shown('x_s', exposed)}"
    return ["", rendered(table), *([note] if sent else []), *(_ranks(found) if training else []), ""]


def _ranks(found: Answer) -> list[str]:
    """Between what the parts of a step lie over the ranks of its pipeline, whose means the table shows."""
    from sextant.studies.training import parts_by_rank

    scenario, columns = found.question.scenario, found.result.columns
    if float(scenario.plan.pipeline) <= 1:
        return []
    beyond = sum(float(columns[name][0]) for name in ("optimizer_s", "jitter_s") if name in columns)
    ranks = parts_by_rank(scenario, float(columns["step_time_s"][0]) - beyond)
    names = ("forward_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "bubble_s")
    texts = []
    for name in names:
        values = [float(each[name]) for each in ranks]
        if max(values) > 0:
            label = METRICS[name].label.partition(":")[0]
            texts.append(f"{label} {shown(name, min(values))} to {shown(name, max(values))}")
    return wrapped(f"over the ranks of the pipeline: {', '.join(texts)}")


def _memory(found: Answer) -> list[str]:
    columns = found.result.columns
    skip = ("hbm_bytes", "hbm_free_bytes")
    parts = [
        f"{name.removeprefix('hbm_').removesuffix('_bytes').replace('_', ' ')} {values[0] / 1e9:.1f}"
        for name, values in columns.items()
        if name.startswith("hbm_") and name not in skip and values[0]
    ]
    used, free = columns["hbm_bytes"][0] / 1e9, columns["hbm_free_bytes"][0] / 1e9
    verdict = f"fits, {free:.1f} GB free" if free >= 0 else f"does not fit, {-free:.1f} GB too much"
    return wrapped(f"memory of the fullest GPU: {used:.1f} of {used + free:.1f} GB: {verdict}") + wrapped(
        f"  in GB: {', '.join(parts)}"
    )


def _solved(found: Answer) -> list[str]:
    """A line with the solved fields of a single point, and the sizes that they reach."""
    pairs = [f"{name} {_size(name, float(found.result.columns[name][0]))}" for name in found.solved_columns()]
    return wrapped(f"solved: {', '.join(pairs)}") if pairs else []


def _size(name: str, value: float) -> str:
    """A solved field in full, a size in four digits or its unit."""
    return f"{value:,.12g}" if abs(value) < 1e5 else shown(name, value)


def sweep(found: Answer, columns: Sequence[str] = ()) -> str:
    """The first points by the objective as a table: its axes, its objectives (or ``columns``), what does not fit."""
    from sextant.studies import report

    result, swept = found.result, found.axis_values()
    order = report.best(found)
    if len(order) > _MAX_ROWS:
        order.sort(key=lambda i: not result.feasible[i])
    wanted = [n for n in found.question.scenario.objectives if n in result.columns]
    solved = found.solved_columns()
    listed = [n for n in columns if n in result.columns] or compared(result.columns)
    names = [n for n in wanted or listed if n not in solved]
    ok = int(result.feasible.sum())
    heads = [n if wanted else METRICS[n].label for n in names]
    last = "" if ok == len(order) else "limits"
    table = grid(*(f">{head}" for head in (*map(_last, swept), *solved, *heads)), last)
    for i in order[:_MAX_ROWS]:
        cells = [_cell(path, values[i]) for path, values in swept.items()]
        cells += [_size(n, float(result.columns[n][i])) for n in solved]
        cells += [shown(n, float(result.columns[n][i])) for n in names]
        add(table, [*cells, "; ".join(report.limits(found, i))])
    title = f"{plain(found.question.scenario.name)}: {found.n_points:,} points, {ok:,} feasible"
    lines = [title, rendered(table)]
    if found.n_points > _MAX_ROWS:
        what = f"best by {wanted[0]}" if wanted else "the first that are feasible"
        lines.append(f"({_MAX_ROWS} of {found.n_points:,} shown, {what}; --out DIR writes them all)")
    return "\n".join(lines)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _cell(path: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return show(float(value), dimension(_last(path))) if isinstance(value, float) else str(value)


def results(folder: Path, files: Sequence[Path]) -> str:
    """The folder and the names of written files, those that differ only in their suffix together."""
    kinds: dict[str, list[str]] = {}
    for file in sorted(files):
        kinds.setdefault(file.stem, []).append(file.suffix[1:])
    names = ", ".join(f"{stem}.{'+'.join(suffixes)}" for stem, suffixes in kinds.items())
    return "\n".join(wrapped(f"results: {folder}/: {names}"))


def resolved(leaves: Sequence[Leaf]) -> str:
    """One line per field of a scenario: its value, and the beginning of its source; one for all of a kernel."""
    rows = [("field", "value", "source")]
    fits: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        device, _, fitted = leaf.path.partition(".kernels.")
        if fitted and leaf.source.startswith("base"):
            fits.setdefault(f"{device}.kernels.{fitted.partition('.')[0]}", []).append(leaf)
        else:
            rows.append((leaf.path, leaf.text.replace("inf rows/s", "unlimited"), _near(leaf.source)))
    for kernel, found in fits.items():
        n = sum(".coefficients." in leaf.path for leaf in found)
        rows.append((kernel, f"{n} coefficients", found[0].source))
    rows = [tuple(map(plain, row)) for row in rows]
    first = max(len(row[0]) for row in rows)
    second = min(28, max(len(row[1]) for row in rows))
    return "\n".join(cut(f"{a:{first}}  {b:{second}}  {c}", _width()) for a, b, c in rows)


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters."""
    return text if len(text) <= width else text[: width - 4].rstrip() + " ..."


def _near(source: str) -> str:
    """A place without the folder, if the file is among the shipped scenarios or in the working directory."""
    from sextant.studies.catalogue import SCENARIOS

    for folder in (f"{SCENARIOS}/", f"{Path.cwd()}/"):
        source = source.removeprefix(folder)
    return source


def listing(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per catalogue entry: the scalar fields of each row that differ from entry to entry."""
    names = [n for n in rows[0] if not isinstance(rows[0][n], dict | list)] if rows else []
    same = [n for n in names if len(rows) > 1 and len({row[n] for row in rows}) == 1 and isinstance(rows[0][n], str)]
    told = [n for n in names if n not in same]
    table = grid(*(f">{_head(n)}" if isinstance(rows[0][n], int | float) else _head(n) for n in told))
    for row in rows:
        add(table, [_short(n, row[n]) for n in told])
    return "\n".join([rendered(table), *(f"{n}: {plain(rows[0][n])}" for n in same)])


def _head(name: str) -> str:
    """A field's name as words; FLOP/s stand beside their values."""
    return name.removesuffix("_flops_per_s").replace("_per_", "/").replace("_", " ")


def card(found: Mapping[str, Any]) -> str:
    """A mapping of sections: scalars first, then a section per nested mapping; ``yaml`` as it stands.

    A kernel is given one line, in which the source of its fit may be cut.
    """
    sections = {"": {k: v for k, v in found.items() if not isinstance(v, Mapping) and k != "yaml"}}
    sections |= {name: section for name, section in found.items() if isinstance(section, Mapping) and section}
    width = max((len(key) for section in sections.values() for key in section), default=0)
    blocks = []
    for name, section in sections.items():
        rows = []
        for key, value in section.items():
            text = _short(_last(key) if dimension(_last(key)) else name, value)
            first, *rest = textwrap.wrap(text, max(40, _width() - width - 2), break_on_hyphens=False) or [""]
            if name == "kernels":
                first, rest = cut(text, max(40, _width() - width - 2)), []
            rows += [f"{plain(key) or '(all)':{width}}  {first}", *(f"{'':{width}}  {line}" for line in rest)]
        blocks.append("\n".join([*([f"[{name}]"] if name else []), *rows]))
    if "yaml" in found:
        blocks.append("\n".join(map(plain, found["yaml"].splitlines())))
    return "\n\n".join(blocks)


def comparison(found: Mapping[str, Any]) -> str:
    """Metrics, operators and resources of two scenarios side by side, the largest differences first."""
    lines = [f"A: {plain(found['a'])}", f"B: {plain(found['b'])}"]
    for section in ("metrics", "operators", "resources"):
        rows = found[section] if section == "metrics" else [row for row in found[section] if row["a"] != row["b"]]
        if not rows:
            lines.append(f"{section}: no difference")
            continue
        table = grid(section, ">A", ">B", ">B - A", ">B / A")
        for row in rows if section == "metrics" else rows[:_MAX_ROWS]:
            a, b, name = row["a"], row["b"], row["name"]
            key = name if section == "metrics" else "x_s"
            ratio = f"{b / a:.3f}" if a else ""
            label = METRICS[name].label if section == "metrics" else name
            add(table, (label, shown(key, a), shown(key, b), _difference(key, b - a), ratio))
        lines.append(rendered(table))
        if section != "metrics" and len(rows) > _MAX_ROWS:
            lines.append(f"({_MAX_ROWS} of {len(rows)} that differ; --json lists all)")
    return "\n".join(lines)


def _difference(key: str, delta: float) -> str:
    if delta == 0:
        return "="
    text = shown(key, abs(delta))
    # A difference of percentages is in points, which are no share of A.
    percent = key in METRICS and METRICS[key].percent
    return ("+" if delta > 0 else "-") + (text.replace("%", " points") if percent else text)


def figure_name(id: str) -> str:
    """A figure's id as the table prints it: without a metric that its unit tells."""
    return id.removesuffix(".achieved_flops_per_s").removesuffix(".achieved_bytes_per_s").removesuffix(".kernel_s")


def judged(rows: Sequence[Mapping[str, Any]]) -> str:
    """Published figures beside predictions, then the errors of each group; what was fitted is a footnote."""
    fits = dict.fromkeys(row["fitted"] for row in rows if row["fitted"] != "none")
    marks = {text: f"*{i + 1}" for i, text in enumerate(fits)}
    single = [row["id"] != figure_name(row["id"]) for row in rows]
    parts = [[row for row, one in zip(rows, single, strict=True) if one is kernel] for kernel in (False, True)]
    shown_tables = [rendered(_judged_part(part, marks)) for part in parts if part]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"].partition(".")[0], []).append(row)
    groups["all"] = list(rows)
    totals = grid("group", ">figures", ">mean |error|", ">median |error|", ">largest |error|", ">inside")
    for name, members in groups.items():
        sizes = sorted(abs(row["error"]) for row in members)
        middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
        held = [row["inside"] for row in members if row["inside"] is not None]
        numbers = (sum(sizes) / len(sizes), middle, sizes[-1])
        inside = f"{sum(held)} of {len(held)}" if held else ""
        add(totals, (name, str(len(sizes)), *(f"{100 * x:.2f}%" for x in numbers), inside))
    notes = [line for text, mark in marks.items() for line in wrapped(f"{mark} rests on fits: {text}")]
    inside = wrapped("inside: the figure lies in the prediction's 90% interval; blank where the prediction is a count")
    return "\n".join([*shown_tables, *inside, *notes, "", rendered(totals)])


def _judged_part(rows: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> Table:
    """Figures of whole systems, or of single kernels: their numbers have other widths."""
    table = grid("figure", ">predicted", ">published", ">error", "inside")
    for row in rows:
        name = _last(row["id"])
        inside = {True: "yes", False: "no", None: ""}[row["inside"]]
        cells = (
            figure_name(row["id"]),
            shown(name, row["predicted"]),
            shown(name, row["published"]),
            f"{100 * row['error']:+.2f}%",
        )
        add(table, (*cells, inside + marks.get(row["fitted"], "")))
    return table


def _short(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isinf(value)):
        return "unlimited"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        if dimension(name):
            return show(value, dimension(name), METRICS[name].digits if name in METRICS else 4)
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_short(name, each) for each in value)
    return plain(str(value))


def _width() -> int:
    return shutil.get_terminal_size((100, 40)).columns if sys.stdout.isatty() else _PIPE_WIDTH


def width() -> int:
    """Columns of the terminal, or of what a pipe is given."""
    return _width()


def wrapped(text: str) -> list[str]:
    """``text`` as lines that fit the terminal, at most 100 characters long; a number keeps its unit."""
    held = re.sub(r"(?<=\d) (?=(?:[TGMk]?B|[mun]?s|us|[TGMK])\b)", _NO_BREAK, plain(text))
    lines = textwrap.wrap(held, min(_width(), 100), subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _clipped(text: str) -> str:
    return textwrap.shorten(plain(text), min(_width(), 100), placeholder=" ...")


def grid(*columns: str) -> Table:
    """A table with these heads, ``>`` for numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        side = "right" if name.startswith(">") else "left"
        table.add_column(Text(plain(name.lstrip(">"))), justify=side, overflow="fold")
    return table


def add(table: Table, cells: Iterable[str]) -> None:
    """One more row of a table, of plain text."""
    from rich.text import Text

    table.add_row(*(Text(plain(cell)) for cell in cells))


def rendered(table: Table) -> str:
    """A table as lines of text that fit the terminal."""
    from rich.console import Console

    console = Console(highlight=False, width=_width(), force_terminal=sys.stdout.isatty())
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
