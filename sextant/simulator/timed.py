"""Operators with their times, summed the ways an answer needs them: by layer kind, block, phase and stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from sextant.simulator.spread import Varying
from sextant.simulator.types import Estimate, Num, Op, Step

#: Kinds whose time goes with the clock: tensor cores do most of it.
_CLOCKED = ("attention", "conv2d", "gemm", "grouped_gemm")

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOp:
    """An operator and the time of one execution."""

    op: Op
    time: Estimate

    @property
    def seconds(self) -> Num:
        """Seconds of all ``count`` executions in one occurrence of its part."""
        return self.op.count * self.time.seconds


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """Every operator of a step with its time on one cluster.

    ``beside`` are the same operators while another micro-batch's messages take their share of the memory bandwidth,
    ``varied`` what ``varying`` found before operators were merged.
    """

    step: Step
    ops: tuple[TimedOp, ...]
    beside: TimedStep | None = None
    varied: Mapping[tuple[str, str, str], Varying] | None = None

    def seconds(self, *, end: str = "seconds", where: Callable[[Op], bool] | None = None) -> Num:
        """Sum of one occurrence of each operator that ``where`` accepts; ``end`` is seconds, low or high."""
        total: Num = 0.0
        for timed in self.ops:
            if where is None or where(timed.op):
                total = total + timed.op.count * getattr(timed.time, end)
        return total

    def take(self, index: Any) -> TimedStep:
        """The times of the points at ``index``. Shapes, FLOPs and bytes stay those of all points: they have been used.

        An array that many operators share is picked from once.
        """
        picked: dict[int, Num] = {}

        def pick(value: Num) -> Num:
            if np.ndim(value) == 0:
                return value
            if id(value) not in picked:
                picked[id(value)] = np.asarray(value)[index]
            return picked[id(value)]

        estimates: dict[int, Estimate] = {}
        ops = []
        for item in self.ops:
            time = estimates.get(id(item.time))
            if time is None:
                limits = {name: pick(value) for name, value in item.time.limits.items()}
                ends = {end: pick(getattr(item.time, end)) for end in ("seconds", "low", "high")}
                time = estimates[id(item.time)] = Estimate(limits=limits, provenance=item.time.provenance, **ends)
            op = item.op if np.ndim(item.op.count) == 0 else replace(item.op, count=pick(item.op.count))
            ops.append(TimedOp(op=op, time=time))
        varied = self.varied and {
            key: Varying(clock_s=pick(each.clock_s), experts_s=pick(each.experts_s))
            for key, each in self.varied.items()
        }
        beside = None if self.beside is None else self.beside.take(index)
        return TimedStep(step=self.step, ops=tuple(ops), beside=beside, varied=varied)

    def merged(self, apart: Callable[[Op], bool] = lambda op: False) -> TimedStep:
        """Compute of one part, block, phase and stream as one operator each, without its name and its bound; messages
        stay apart, and what ``apart`` picks.

        ``table``, ``interval``, ``varying`` and ``in_line_s`` of it are the same to the last bit where nothing else is
        apart, and faster for many points.
        """
        groups: dict[Hashable, list[TimedOp]] = {}
        for i, item in enumerate(self.ops):
            op, alone = item.op, is_message(item.op) or apart(item.op)
            groups.setdefault(i if alone else (op.part, op.block, op.phase, op.stream), []).append(item)
        ops = []
        for key, members in groups.items():
            sums = {
                end: sum((each.op.count * getattr(each.time, end) for each in members), 0.0)
                for end in ("seconds", "low", "high")
            }
            time = Estimate(limits={}, provenance=members[0].time.provenance, **sums)
            name = "" if isinstance(key, tuple) else members[0].op.name
            ops.append(TimedOp(op=replace(members[0].op, name=name, count=1.0), time=time))
        beside = None if self.beside is None else self.beside.merged(apart)
        return TimedStep(step=self.step, ops=tuple(ops), beside=beside, varied=self.varying())

    def table(self, end: str = "seconds") -> Mapping[tuple[str, str, str, str], Num]:
        """Seconds of one occurrence of each part, keyed by (part, block, phase, stream)."""
        if end not in self._tables:
            sums = self._tables[end] = {}
            for timed in self.ops:
                key = (timed.op.part, timed.op.block, timed.op.phase, timed.op.stream)
                sums[key] = sums.get(key, 0.0) + timed.op.count * getattr(timed.time, end)
        return self._tables[end]

    @cached_property
    def _tables(self) -> dict[str, dict[tuple[str, str, str, str], Num]]:
        return {}

    def varying(self) -> Mapping[tuple[str, str, str], Varying]:
        """What differs from device to device in one occurrence of each part, keyed by (part, block, phase)."""
        return self._varying if self.varied is None else self.varied

    @cached_property
    def _varying(self) -> dict[tuple[str, str, str], Varying]:
        sums: dict[tuple[str, str, str], Varying] = {}
        for timed in self.ops:
            if is_compute(timed.op):
                one = Varying(
                    clock_s=timed.seconds if timed.op.kind in _CLOCKED else 0.0,
                    experts_s=timed.seconds if timed.op.follows == "experts" else 0.0,
                )
                key = (timed.op.part, timed.op.block, timed.op.phase)
                sums[key] = sums.get(key, Varying()) + one
        return sums


def is_message(op: Op) -> bool:
    """Whether an operator sends something, on a stream of its own or (tensor parallelism) in line with compute."""
    return op.kind in ("collective", "expert_exchange")


def is_compute(op: Op) -> bool:
    """Whether an operator runs on the SMs that compute: neither a message nor a fetch from host memory."""
    return not is_message(op) and op.stream != "host"


def joined(steps: Sequence[TimedStep], sizes: Sequence[int]) -> TimedStep:
    """One step of the points of several, one after the other, each of so many points; ``merged`` ones, whose operators
    are told apart by what they belong to. An operator that a step lacks takes no time there, and where all have the
    same in the same order sums over operators are the same to the last bit.
    """
    if len(steps) == 1:
        return steps[0]
    named = [_named(step) for step in steps]
    ops = []
    for key in _in_order([list(each) for each in named]):
        of_steps = [each.get(key) for each in named]
        first = next(item for item in of_steps if item is not None)
        ends = {
            end: together(
                [0.0 if item is None else item.op.count * getattr(item.time, end) for item in of_steps], sizes
            )
            for end in ("seconds", "low", "high")
        }
        time = Estimate(limits={}, provenance=first.time.provenance, **ends)
        ops.append(TimedOp(op=replace(first.op, count=1.0), time=time))
    varied = [step.varying() for step in steps]
    nothing = Varying()
    both = {
        key: Varying(
            clock_s=together([each.get(key, nothing).clock_s for each in varied], sizes),
            experts_s=together([each.get(key, nothing).experts_s for each in varied], sizes),
        )
        for key in _in_order([list(each) for each in varied])
    }
    beside = [step.beside for step in steps if step.beside is not None]
    return TimedStep(
        step=steps[0].step, ops=tuple(ops), varied=both, beside=joined(beside, sizes) if beside else None
    )  # fmt: skip


def together(values: Sequence[Num], sizes: Sequence[int]) -> Num:
    """The values of all points, where part i has ``sizes[i]`` of them; a number where it is the same for all."""
    if all(np.ndim(value) == 0 for value in values) and len({float(value) for value in values}) == 1:
        return values[0]
    return np.concatenate([np.broadcast_to(value, (n,)) for value, n in zip(values, sizes, strict=True)])


def _named(step: TimedStep) -> dict[Hashable, TimedOp]:
    """The operators by what they belong to; of several alike also by which of them they are."""
    found: dict[Hashable, TimedOp] = {}
    for item in step.ops:
        op, i = item.op, 0
        while (key := (op.part, op.block, op.phase, op.stream, op.name, i)) in found:
            i += 1
        found[key] = item
    return found


def _in_order(lists: Sequence[Sequence[Key]]) -> list[Key]:
    """Every key once, each behind the one that it follows where it is new."""
    order: list[Key] = []
    for keys in lists:
        at = 0
        for key in keys:
            if key in order:
                at = order.index(key) + 1
            else:
                order.insert(at, key)
                at += 1
    return order
