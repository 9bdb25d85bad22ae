"""The answer of a search over plans: a table for a terminal, JSON, a file of all plans, a figure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from sextant.studies import report
from sextant.studies.cli import plain
from sextant.studies.files import folder, save
from sextant.studies.metrics import METRICS, shown
from sextant.studies.plans import Found, sign
from sextant.studies.tables import add, grid, rendered, wrapped

#: Metrics that the table of best plans and the file of all plans show, where the phase has them.
_SHOWN = ("step_time_s", "tpot_s", "ttft_s", "mfu_causal", "tokens_per_s_per_device", "usd_per_trillion_tokens",
          "bubble_s", "exposed_comm_s", "optimizer_s", "goodput", "hbm_bytes")  # fmt: skip
_TABLE = ("step_time_s", "tpot_s", "mfu_causal", "tokens_per_s_per_device", "usd_per_trillion_tokens", "hbm_bytes")
_HEADS = {
    "step_time_s": "step", "tpot_s": "per token", "mfu_causal": "MFU", "tokens_per_s_per_device": "tokens/s per GPU",
    "usd_per_trillion_tokens": "USD/T tokens", "hbm_bytes": "HBM",
}  # fmt: skip
_SHORT = {
    "virtual_stages": "virtual", "micro_batch": "micro", "zero_stage": "ZeRO", "n_comm_sms": "SMs",
}  # fmt: skip


def as_json(found: Found, by: str, n: int) -> dict[str, Any]:
    """{scenario, by, sense, n_plans, n_evaluated, n_feasible, infeasible: {reason: n}, best, front, warnings ...}.

    A plan of ``best`` and ``front`` is {plan, sets, metrics}; ``sets`` are the words that make ``sextant run`` run it.
    """
    return {
        "scenario": found.scenario.name, "by": by, "sense": "max" if sign(found.scenario, by) < 0 else "min",
        "n_plans": found.n_plans, "n_evaluated": found.n_evaluated, "n_feasible": int(found.feasible.sum()),
        "infeasible": found.counts(), "best": [_plan(found, i) for i in found.best(by, n)],
        "front": [_plan(found, i) for i in found.front()], "warnings": list(found.warnings),
        "versions": report.versions(), "seed": found.scenario.seed,
    }  # fmt: skip


def sets(plan: Mapping[str, Any]) -> list[str]:
    """What ``sextant run --set`` takes to run a plan of the search."""
    words = []
    for name, value in plan.items():
        listed = f"[{', '.join(value)}]" if isinstance(value, tuple) else value
        words.append(f"plan.{name}={listed if isinstance(listed, str) else f'{listed:g}'}")
    return [*words, "plan.layers_per_stage=[]", "engine=analytic"]


def text(found: Found, by: str, n: int) -> str:
    """The best plans by a metric, the Pareto front in short, and how many plans each reason rules out."""
    head = (
        f"{plain(found.scenario.name)}: {found.n_plans:,} plans, {found.n_evaluated:,} evaluated, "
        f"{int(found.feasible.sum()):,} feasible"
    )
    lines = [head]
    best, front = found.best(by, n), found.front()
    if best:
        lines += ["", *wrapped(f"best by {_label(by)}:"), rendered(_table(found, best, by))]
        lines += ["", *wrapped(f"no plan beats these {len(front)} in both step time and memory:")]
        lines.append(rendered(_table(found, _spread(front, n), by)))
        lines += ["", *wrapped("to run the best: sextant run SCENARIO " + _command(found, best[0]))]
    elif (near := found.closest()) is not None:
        miss = -found.columns["hbm_free_bytes"][near] / 1e9
        lines += ["", *wrapped(f"nearest miss, {miss:.1f} GB too much: {_command(found, near)}")]
    counts = found.counts()
    if counts:
        table = grid(">plans", "ruled out by")
        for reason, number in counts.items():
            add(table, (f"{number:,}", reason))
        lines += ["", rendered(table)]
    return "\n".join(lines)


def write(found: Found, by: str, n: int, out: str | Path) -> list[Path]:
    """search.json, plans.csv (every plan) and a figure in folder ``out``; returns the files."""
    from sextant.studies.search_figure import draw

    place = folder(out)
    files = [
        save(place / "search.json", lambda f: f.write(report.dumps(as_json(found, by, n)) + "\n")),
        save(place / "plans.csv", lambda f: _csv(found, f)),
    ]
    return files + draw(found, place)


def _label(name: str) -> str:
    return METRICS[name].label if name in METRICS else name


def _varied(found: Found) -> list[str]:
    """Fields with more than one value among the feasible plans, without those that follow from the schedule."""
    ok = {name: values[found.feasible].tolist() for name, values in found.plans.items()}
    follow = ("overlap", "n_comm_sms") if len(set(ok["schedule"])) > 1 else ()
    told = [name for name in follow if len(set(zip(ok["schedule"], ok[name], strict=True))) == len(set(ok["schedule"]))]
    return [name for name, values in ok.items() if len(set(values)) > 1 and name not in told]


def _table(found: Found, plans: Sequence[int], by: str):
    fields = _varied(found)
    names = [n for n in dict.fromkeys((by, *_TABLE)) if n in found.columns]
    texts = ("schedule", "overlap", "recompute")
    table = grid(*(_SHORT.get(f, f) if f in texts else f">{_SHORT.get(f, f)}" for f in fields),
                 *(f">{_HEADS.get(n, _label(n))}" for n in names))  # fmt: skip
    for i in plans:
        plan = found.plan(i)
        cells = [_cell(plan[name]) for name in fields]
        add(table, [*cells, *(shown(n, float(found.columns[n][i])) for n in names)])
    return table


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value) or "none"
    return value if isinstance(value, str) else f"{value:g}"


def _spread(front: Sequence[int], n: int) -> list[int]:
    """At most ``n`` of a front, its ends among them."""
    if len(front) <= n:
        return list(front)
    return [front[i] for i in sorted({round(x) for x in np.linspace(0, len(front) - 1, n)})]


def _command(found: Found, i: int) -> str:
    words = sets(found.plan(i))
    return " ".join("--set " + (f"'{word}'" if "[" in word else word) for word in words)


def _plan(found: Found, i: int) -> dict[str, Any]:
    plan = found.plan(i)
    values = {name: float(column[i]) for name, column in found.columns.items()}
    return {"plan": plan, "sets": sets(plan), "metrics": values}


def _csv(found: Found, file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    names = [name for name in dict.fromkeys((*_SHOWN, "hbm_free_bytes")) if name in found.columns]
    writer.writerow([*found.plans, *names, "feasible", "limits"])
    fields = [[_cell(v) for v in values.tolist()] for values in found.plans.values()]
    numbers = [[repr(v) for v in found.columns[name].tolist()] for name in names]
    ok = found.feasible.astype(int).tolist()
    reasons: list[list[str]] = [[] for _ in ok]
    for text_, hit in found.reasons.items():
        for i in np.flatnonzero(hit).tolist():
            reasons[i].append(text_)
    writer.writerows(zip(*fields, *numbers, ok, ("; ".join(r) for r in reasons), strict=True))
