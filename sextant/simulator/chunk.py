"""A pipeline chunk: consecutive layers on one device, and how its compute and messages line up.

A layer runs forward as attention, dispatch, feed-forward, combine; backward in reverse, with the weight gradients
wherever the schedule puts them. A chunk alone runs one after the other. A forward and a backward chunk of different
micro-batches run together as in DualPipe: while one computes, the other one communicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from sextant.simulator.overlap import Task, busy_s, finish_times, makespan_s
from sextant.simulator.types import Num

Table = Mapping[tuple[str, str, str, str], Num]

#: Blocks that are neither attention nor feed-forward: they run after a layer's forward part, before its backward.
_ENDS = ("vision", "embedding", "engram", "streams", "head", "generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of the pieces of one layer, forward and backward (``_b`` inputs, ``_w`` weights)."""

    attention: Num
    dispatch: Num
    mlp: Num
    combine: Num
    end: Num
    attention_b: Num
    dispatch_b: Num
    mlp_b: Num
    combine_b: Num
    end_b: Num
    attention_w: Num
    mlp_w: Num
    end_w: Num

    @property
    def forward_s(self) -> Num:
        """One forward pass, nothing overlapped."""
        return self.attention + self.dispatch + self.mlp + self.combine + self.end

    @property
    def backward_input_s(self) -> Num:
        """Input gradients, nothing overlapped."""
        return self.attention_b + self.dispatch_b + self.mlp_b + self.combine_b + self.end_b

    @property
    def forward_messages_s(self) -> Num:
        """Dispatch and combine of the forward pass."""
        return self.dispatch + self.combine

    @property
    def backward_messages_s(self) -> Num:
        """Dispatch and combine of the backward pass."""
        return self.dispatch_b + self.combine_b

    @property
    def backward_weight_s(self) -> Num:
        """Weight gradients."""
        return self.attention_w + self.mlp_w + self.end_w


def layer_times(table: Table, part: str) -> LayerTimes:
    """The pieces of one occurrence of ``part`` from ``TimedStep.table``."""

    def compute(blocks: tuple[str, ...], phase: str) -> Num:
        keys = ((part, block, phase, "compute") for block in blocks)
        return sum((table[key] for key in keys if key in table), 0.0)

    def message(block: str, phase: str) -> Num:
        return table.get((part, block, phase, "communication"), 0.0)

    return LayerTimes(
        attention=compute(("attention",), "forward"), mlp=compute(("mlp",), "forward"),
        dispatch=message("dispatch", "forward"), combine=message("combine", "forward"),
        end=compute(_ENDS, "forward"), attention_b=compute(("attention",), "backward_input"),
        mlp_b=compute(("mlp",), "backward_input"), dispatch_b=message("dispatch_backward", "backward_input"),
        combine_b=message("combine_backward", "backward_input"), end_b=compute(_ENDS, "backward_input"),
        attention_w=compute(("attention",), "backward_weight"), mlp_w=compute(("mlp",), "backward_weight"),
        end_w=compute(_ENDS, "backward_weight"),
    )  # fmt: skip


def alone_s(counts: Mapping[str, Num], layers: Mapping[str, LayerTimes], phase: str) -> Num:
    """Seconds of a chunk with so many layers of each part that nothing overlaps; ``phase`` is forward_s,
    backward_input_s or backward_weight_s."""
    return sum((n * getattr(layers[part], phase) for part, n in counts.items()), 0.0)


def pair_tasks(forward: Sequence[str], backward: Sequence[str], layers: Mapping[str, LayerTimes]) -> list[Task]:
    """Tasks of a forward chunk beside a backward chunk (input and weight gradients) of another micro-batch.

    Layers are paired in the order of execution. Per pair the compute stream runs attention F, feed-forward B and W,
    feed-forward F, attention B and W; the communication stream the combine of B (which dispatches gradients), the
    dispatch of F, the dispatch of B and the combine of F: the order of the published DualPipe trace.
    """
    tasks: list[Task] = []
    last_f = last_b = ""
    for i, (f, b) in enumerate(zip_longest(forward, reversed(backward))):
        tasks += _pair(i, layers.get(f) if f else None, layers.get(b) if b else None, last_f, last_b)
        last_f, last_b = f"end_f{i}" if f else last_f, f"attention_b{i}" if b else last_b
    return tasks


def pair_seconds(forward: Sequence[str], backward: Sequence[str], layers: Mapping[str, LayerTimes]) -> tuple[Num, Num]:
    """Seconds of an overlapped forward and full backward chunk, and those of them in which no compute runs."""
    tasks = pair_tasks(forward, backward, layers)
    whole = makespan_s(tasks)
    return whole, whole - busy_s(tasks, "compute")


def pair_s(forward: Sequence[str], backward: Sequence[str], layers: Mapping[str, LayerTimes]) -> Num:
    """Seconds of an overlapped forward and full backward chunk."""
    return pair_seconds(forward, backward, layers)[0]


def pair_exposed_s(forward: Sequence[str], backward: Sequence[str], layers: Mapping[str, LayerTimes]) -> Num:
    """Seconds of an overlapped pair in which no compute runs."""
    return pair_seconds(forward, backward, layers)[1]


def pair_leads_s(forward: Sequence[str], backward: Sequence[str], layers: Mapping[str, LayerTimes]) -> tuple[Num, Num]:
    """Seconds before the end of a pair at which its outputs are there: activations, input gradients.

    What ends the forward part of the last layer (mHC's F_post,res of the feed-forward) starts once the combine has
    brought its tensor, on a stream of high priority, and does not queue behind the other chunk's attention; a weight
    gradient that follows the last input gradient keeps no message.
    """
    tasks = pair_tasks(forward, backward, layers)
    done = finish_times(tasks)
    last_f, last_b = len(forward) - 1, len(backward) - 1
    end = makespan_s(tasks)
    made_f = done[f"combine_f{last_f}"] + layers[forward[-1]].end
    return np.maximum(end - made_f, 0.0), end - done[f"attention_b{last_b}"]


def _pair(i: int, f: LayerTimes | None, b: LayerTimes | None, last_f: str, last_b: str) -> list[Task]:
    """One layer forward beside one layer backward; either may be missing where chunks differ in length."""
    after_f, after_b = tuple(filter(None, [last_f])), tuple(filter(None, [last_b]))
    tasks: list[Task] = []
    if b is not None:
        end_s = b.end_b + b.end_w
        # What computes nothing must not queue behind the other compute of the pair before.
        stream = "compute" if np.any(np.asarray(end_s) > 0.0) else "nothing"
        tasks.append(Task(name=f"end_b{i}", stream=stream, seconds=end_s, after=after_b))
        tasks.append(Task(name=f"combine_b{i}", stream="communication", seconds=b.combine_b, after=(f"end_b{i}",)))
    if f is not None:
        tasks.append(Task(name=f"attention_f{i}", stream="compute", seconds=f.attention, after=after_f))
        tasks.append(
            Task(name=f"dispatch_f{i}", stream="communication", seconds=f.dispatch, after=(f"attention_f{i}",))
        )
    if b is not None:
        tasks.append(Task(name=f"mlp_b{i}", stream="compute", seconds=b.mlp_b, after=(f"combine_b{i}",)))
        tasks.append(Task(name=f"dispatch_b{i}", stream="communication", seconds=b.dispatch_b, after=(f"mlp_b{i}",)))
        tasks.append(Task(name=f"mlp_w{i}", stream="compute", seconds=b.mlp_w))
    if f is not None:
        tasks.append(Task(name=f"mlp_f{i}", stream="compute", seconds=f.mlp, after=(f"dispatch_f{i}",)))
        tasks.append(Task(name=f"combine_f{i}", stream="communication", seconds=f.combine, after=(f"mlp_f{i}",)))
    if b is not None:
        tasks.append(Task(name=f"attention_b{i}", stream="compute", seconds=b.attention_b, after=(f"dispatch_b{i}",)))
        tasks.append(Task(name=f"attention_w{i}", stream="compute", seconds=b.attention_w))
    if f is not None:
        tasks.append(Task(name=f"end_f{i}", stream="compute", seconds=f.end, after=(f"combine_f{i}",)))
    return tasks
