"""When messages between stages leave that need not wait for the end of their chunk (``plan.early_sends``)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from sextant.simulator.chunk import LayerTimes, layer_times, pair_leads_s
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Num, Scenario
from sextant.studies.stages import ChunkTimes, Layouts, Stages
from sextant.workloads.ops import hyperconnection


def early(scenario: Scenario, timed: TimedStep, stages: Stages | Layouts, times: ChunkTimes) -> ChunkTimes:
    """``times`` with when messages leave, where the plan sends them early and sends do not block.

    Activations and gradients leave once they are there (``chunk.pair_leads_s``); a full backward chunk alone ends in
    the weight gradients of its first layer. A gradient need not come before the stage it comes to has made its streams
    again, which starts from a residual that it holds itself (mHC, s4.3.3): counted as if it left that much earlier.
    """
    if not scenario.plan.early_sends or scenario.plan.blocking_sends:
        return times
    alone = _layers(timed)
    again = remade_s(timed)
    held = [stages.counts(i) for i in range(stages.n_stages - 1)]
    later = [0.0, *(sum((n * again.get(part, 0.0) for part, n in counts.items()), 0.0) for counts in held)]
    leads: dict[tuple[str, int, int], tuple[Num, Num]] = {}
    for b in range(stages.n_stages):
        weights = stages.pick(lambda each, b=b: each.chunks[b][0]).of(lambda part: alone[part].attention_w)
        leads["B", -1, b], leads["BW", -1, b] = (0.0, later[b]), (0.0, weights + later[b])
    if timed.beside is not None:
        beside = _layers(timed.beside)
        found = cache(lambda chunks: pair_leads_s(chunks[0], chunks[1], beside))
        for f, b in times.pair:
            held = stages.pick(lambda each, f=f, b=b: (each.chunks[f], each.chunks[b]))
            forward, backward = (held.of(lambda pair, i=i: found(pair)[i]) for i in range(2))
            leads["FB", f, b] = forward, backward + later[b]
    return replace(times, leads=leads)


def remade_s(timed: TimedStep) -> dict[str, Num]:
    """Seconds of one occurrence of each part in which mHC's streams are made again."""
    found: dict[str, Num] = {}
    for item in timed.ops:
        if hyperconnection.is_remade(item.op.name):
            found[item.op.part] = found.get(item.op.part, 0.0) + item.seconds
    return found


def _layers(timed: TimedStep) -> dict[str, LayerTimes]:
    table = timed.table()
    return {part: layer_times(table, part) for part in timed.step.layers}
