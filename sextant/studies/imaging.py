"""Images from prompts: seconds of a batch over all passes of the generator, memory, images per second, money."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator import cost
from sextant.simulator.evaluate import interval, provenance_shares, time_ops
from sextant.simulator.result import result
from sextant.simulator.timed import TimedStep, is_message
from sextant.simulator.types import Flag, Num, Op, Result, Scenario
from sextant.studies.breakdown import breakdown
from sextant.studies.fetches import node_size
from sextant.studies.limits import plan_limits
from sextant.studies.serving import memory_use
from sextant.workloads import imaging
from sextant.workloads.shard import shard


@dataclass(frozen=True, slots=True, kw_only=True)
class _TimedPass:
    """A pass with its times: ``repeats`` times ``timed`` make a batch of images."""

    name: str
    timed: TimedStep
    repeats: Num

    @property
    def seconds(self) -> Num:
        """All repeats, operators one after the other."""
        return self.repeats * self._sum(lambda op: True)

    def messages_s(self) -> Num:
        """Those of them that are spent on messages."""
        return self.repeats * self._sum(is_message)

    def _sum(self, wanted: Callable[[Op], bool]) -> Num:
        layers = self.timed.step.layers
        return sum((t.seconds * layers.get(t.op.part, 1.0) for t in self.timed.ops if wanted(t.op)), 0.0)


def evaluate_generation(scenario: Scenario, n_points: int) -> Result:
    """Metrics of an image_generation scenario, each of shape (n_points,).

    ``load.batch`` images of one data-parallel rank are made together; ``image_time_s`` is the time until all of
    them are there, which each of them takes.
    """
    plan, load, cluster = scenario.plan, scenario.load, scenario.cluster
    timed = _timed(scenario)
    by_name: dict[str, Num] = {}
    for each in timed:
        by_name[each.name] = by_name.get(each.name, 0.0) + each.seconds
    total: Num = sum(by_name.values(), 0.0)
    low, high = _ends(timed, total)
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    rate = load.batch * plan.data / total
    memory = memory_use(scenario)
    steps = imaging.n_steps(scenario.model, load)
    columns: dict[str, Num] = {
        "image_time_s": total, "step_time_s": total, "step_time_low_s": low, "step_time_high_s": high,
        "images_per_s": rate, "images_per_s_per_device": rate / used, "n_steps": steps,
        "sampling_step_s": by_name["sampling"] / steps, **{f"{name}_s": s for name, s in by_name.items()},
        "communication_s": sum((each.messages_s() for each in timed), 0.0),
        "usd_per_thousand_images": cost.usd(1e3 / rate, used, cluster),
        "hbm_bytes": memory.used_bytes, "hbm_free_bytes": memory.free_bytes,
        **{f"hbm_{part}_bytes": size for part, size in memory.parts.items()},
    }  # fmt: skip
    reasons: Mapping[str, Flag] = {
        **plan_limits(scenario),
        "hbm: weights, cache and activations do not fit": ~memory.fits,
    }
    return result(
        n_points, columns, reasons, provenance=_provenance(timed, total),
        breakdown=_breakdown(timed, total), warnings=_warnings(scenario),
    )  # fmt: skip


def _timed(scenario: Scenario) -> tuple[_TimedPass, ...]:
    model, plan, cluster = scenario.model, scenario.plan, scenario.cluster
    return tuple(
        _TimedPass(
            name=each.name, repeats=each.repeats,
            timed=time_ops(shard(each.step, model, plan, node_size(scenario)), cluster, n_comm_sms=plan.n_comm_sms),
        )
        for each in imaging.passes(model, scenario.load, plan)
    )  # fmt: skip


def _ends(timed: tuple[_TimedPass, ...], total: Num) -> tuple[Num, Num]:
    """Both ends of the 90% interval: every operator of every pass at its own end at once."""
    low: Num = 0.0
    high: Num = 0.0
    for each in timed:
        least, most = interval(each.timed, each.timed.step.layers)
        low, high = low + each.seconds * least, high + each.seconds * most
    return np.minimum(low, total), np.maximum(high, total)


def _provenance(timed: tuple[_TimedPass, ...], total: Num) -> dict[str, float]:
    """Share of the time by where its rates come from, averaged over points, of all passes."""
    shares: dict[str, float] = {}
    for each in timed:
        weight = float(np.mean(each.seconds / total))
        for name, share in provenance_shares(each.timed, each.timed.step.layers).items():
            shares[name] = shares.get(name, 0.0) + weight * share
    return shares


def _breakdown(timed: tuple[_TimedPass, ...], total: Num) -> dict[str, dict[str, object]]:
    """Rows of all passes by operator; the same operator of several passes is one row."""
    rows: dict[str, dict[str, object]] = {}
    for each in timed:
        for name, row in breakdown(each.timed, each.timed.step.layers, each.repeats, total).items():
            if name not in rows:
                rows[name] = row
                continue
            for key in ("seconds", "low_s", "high_s", "share"):
                rows[name][key] = float(rows[name][key]) + float(row[key])  # type: ignore[arg-type]
    return dict(sorted(rows.items(), key=lambda item: -float(item[1]["seconds"])))  # type: ignore[arg-type]


def _warnings(scenario: Scenario) -> list[str]:
    notes = ["host work between sampling steps is not modelled: graph replay is assumed"]
    if scenario.model.generation.kind == "autoregressive":
        notes.append("an image takes its published number of tokens; its head and sampling run in every step")
    return notes
