"""The published offload experiment: an offline batch served with and without an Engram table in host memory.

The scenario is the table in host memory, read ahead by a kernel of few programs. Its variants are the backbone alone
(``baseline``), rows gathered by the CPU and copied (``copied``), a prefetch that takes nothing from compute
(``unhindered``), rows read when their layer begins (``on_demand``) and the table in HBM as if it fitted (``in_hbm``).
Every answer is the mean over ``N_SEEDS`` draws of the lengths, whose spread is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator.capacity import capacity
from sextant.simulator.errors import InputError
from sextant.simulator.result import join, result
from sextant.simulator.types import Num, Result, Scenario
from sextant.studies import axes, serving
from sextant.studies.offline import Served, hashed_on_cpu, serve
from sextant.studies.study import Study
from sextant.workloads import residency

if TYPE_CHECKING:
    from sextant.studies.report import Answer
    from sextant.studies.scenario import Question

#: Draws of the lengths; the published experiment is one draw of an unknown seed.
N_SEEDS = 5
#: The scenario itself with n-grams hashed by the host: no variant, since no field of a scenario says it.
CPU_HASH = "cpu_hash"
#: Variants in the order of the table, with what a reader calls them; "" is the scenario itself.
ROWS: Mapping[str, str] = {
    "baseline": "no Engram", "": "host, read ahead by few SMs", CPU_HASH: "the same, hashed on the CPU",
    "copied": "host, gathered and copied ahead", "unhindered": "host, read ahead at no cost",
    "on_demand": "host, read when needed", "in_hbm": "in HBM",
}  # fmt: skip


def answer(asked: Question, progress: Callable[[int], None]) -> Result:
    """Metrics of every point and, with the variant's name before them, of each variant there; ``throughput_loss`` is
    the share of the baseline's tokens per second that is lost, request by request draw."""
    missing = [name for name in ROWS if name not in ("", CPU_HASH, *asked.variants)]
    if missing:
        raise InputError(f"variants: the study offload needs {', '.join(missing)}; add what they change")
    n_points = int(np.prod([len(values) for values in asked.scenario.axes.values()], dtype=int))
    swept = axes.columns(asked.scenario.axes, np.arange(n_points))
    results = []
    for i in range(n_points):
        results.append(_point(asked, {path: values[i] for path, values in swept.items()}))
        progress(i + 1)
    return join(results, [np.array([i]) for i in range(n_points)])


def _point(asked: Question, point: Mapping[str, Any]) -> Result:
    scenarios = {name: asked.variants.get(name, asked).at(point) for name in ROWS if name != CPU_HASH}
    seeds = range(asked.scenario.seed, asked.scenario.seed + N_SEEDS)
    served = {name: serve(scenario, seeds) for name, scenario in scenarios.items()}
    served[CPU_HASH] = hashed_on_cpu(served[""], scenarios[""])
    columns: dict[str, Num] = {}
    for name, run in served.items():
        before = f"{name}_" if name else ""
        own = {**_columns(run), **_lost(run, served["baseline"])}
        columns.update({f"{before}{metric}": value for metric, value in own.items()})
    tables = residency.table_bytes(scenarios[""].model, scenarios[""].plan, "decode", 1.0)["host"]
    columns["host_bytes"] = tables
    held = capacity(scenarios[""].cluster.device, "host", {"tables": tables})
    columns["in_hbm_free_bytes"] = serving.memory_use(_small(scenarios["in_hbm"])).free_bytes
    return result(1, columns, {"host: Engram tables do not fit": ~held.fits}, warnings=_warnings())


def _small(scenario: Scenario) -> Scenario:
    """The scenario with an empty cache and no batch: what must lie in HBM whatever is asked."""
    return replace(scenario, load=replace(scenario.load, batch=0.0))


def _columns(run: Served) -> dict[str, Num]:
    """The mean over draws of every metric of one run, and the spread of its rate."""
    rates, prefill = run.tokens_per_s(), run.iterations.prefill
    whole = run.total_s(run.seconds) + run.text_s
    return {
        "step_time_s": whole.mean(), "step_time_low_s": (run.total_s(run.low_s) + run.text_low_s).mean(),
        "step_time_high_s": (run.total_s(run.high_s) + run.text_high_s).mean(), "tokens_per_s": rates.mean(),
        "tokens_per_s_least": rates.min(), "tokens_per_s_most": rates.max(),
        "prefill_s": run.total_s(run.compute_s + run.launch_s, prefill).mean(),
        "decode_s": run.total_s(run.compute_s + run.launch_s, ~prefill).mean(),
        "host_s": (run.total_s(run.host_s) + run.text_s).mean(), "fetch_s": run.total_s(run.fetch_s).mean(),
        "exposed_fetch_s": run.total_s(run.stalled_s).mean(),
        "exposed_prefill_fetch_s": run.total_s(run.stalled_s, prefill).mean(),
        "n_iterations": len(prefill) / len(rates), "n_preempted": run.iterations.n_preempted.sum() / len(rates),
        "n_blocks": float(run.engine.n_blocks),
    }  # fmt: skip


def _lost(run: Served, base: Served) -> dict[str, Num]:
    """The share of the baseline's rate that is lost, and its interval.

    Kernels and host are the same in both runs, and so are their errors: the interval is that of what only one of them
    has, Engram's operators, fetches and hashes.
    """
    lost = {"": float(1.0 - (run.tokens_per_s() / base.tokens_per_s()).mean())}
    for end in ("low", "high"):
        other = run.seconds - run.engram_s + getattr(run, f"engram_{end}_s")
        lost[f"_{end}"] = float(1.0 - (run.tokens_per_s(other) / base.tokens_per_s()).mean())
    return {f"throughput_loss{end}": value for end, value in lost.items()}


def _warnings() -> list[str]:
    return [
        "the engine's host work was measured on another host than the published experiment's",
        "attention is FlashAttention of torch, without paged caches: steps measured on an H100, prompts on an H200",
        "prompts are given as tokens; text is made of the outputs at the end, one after the other",
        "the backbone of the published experiment is not published: qwen3-4b is assumed (docs/decisions 25)",
    ]


def rows(found: Answer) -> Iterator[tuple[int, str, dict[str, float]]]:
    """(point, variant, its metrics) in the order of the table."""
    for i in range(found.n_points):
        for name in ROWS:
            before = f"{name}_" if name else ""
            others = tuple(f"{each}_" for each in ROWS if each)
            yield i, name, {
                metric.removeprefix(before): float(values[i])
                for metric, values in found.result.columns.items()
                if (metric.startswith(before) if before else not metric.startswith(others))
            }  # fmt: skip


def judged(found: Answer) -> Mapping[str, Mapping[str, tuple[float, float, float]]]:
    """What the first point, the headline's backbone, predicts of the published figures."""
    own = {name: metrics for i, name, metrics in rows(found) if i == 0}
    offloaded = own[""]
    loss, low, high = (offloaded[f"throughput_loss{end}"] for end in ("", "_low", "_high"))
    return {
        "engram_offload.baseline": {"tokens_per_s": _rate(own["baseline"])},
        "engram_offload.host": {"tokens_per_s": _rate(offloaded), "throughput_loss": (loss, low, high)},
    }  # fmt: skip


def _rate(metrics: Mapping[str, float]) -> tuple[float, float, float]:
    rate, step_s = metrics["tokens_per_s"], metrics["step_time_s"]
    return rate, rate * step_s / metrics["step_time_high_s"], rate * step_s / metrics["step_time_low_s"]


def text(found: Answer) -> str:
    """The table of all variants of all points."""
    from sextant.studies.offload_report import table

    return table(found)


def figures(found: Answer) -> Mapping[str, Any]:
    """``seconds``: where the time goes, per backbone and variant; ``batch``: the first point along its iterations."""
    from sextant.studies.offload_report import seconds

    return {"seconds": seconds(found)}


STUDY = Study(
    about="tokens per second of an offline batch with an Engram table in host memory, and without",
    answer=answer, columns=("tokens_per_s", "throughput_loss", "exposed_fetch_s"), figures=figures, text=text,
    judged=judged, fitted="kernel efficiencies, to H100 and H200 kernels; host work, to a loop on an H100's host",
)  # fmt: skip
