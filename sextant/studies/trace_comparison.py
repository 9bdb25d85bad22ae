"""A profile of a pipeline chunk pair beside what a training scenario predicts of it: named seconds on both sides.

    sextant validate trace FILE [--scenario NAME] [--json]

The profile names its ranges as DualPipe's code does: attention, feed-forward and the exchange of experts, each (F) for
forward, (B) for input gradients and, of compute, (W) for weight gradients. The scenario's pair is that of the rank in
the middle of the pipeline, a forward chunk of one micro-batch beside a backward chunk of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator.chunk import layer_times, pair_s
from sextant.simulator.errors import InputError
from sextant.simulator.timed import TimedOp, TimedStep
from sextant.simulator.types import Op, Scenario
from sextant.studies import stages, training
from sextant.validate import trace as profile
from sextant.validate.trace_file import Trace

#: The block and phase of a step that a range of the profile launches.
RANGES: Mapping[str, tuple[str, str]] = {
    "attn(F)": ("attention", "forward"), "mlp(F)": ("mlp", "forward"),
    "attn(B)": ("attention", "backward_input"), "mlp(B)": ("mlp", "backward_input"),
    "attn(W)": ("attention", "backward_weight"), "mlp(W)": ("mlp", "backward_weight"),
    "dispatch(F)": ("dispatch", "forward"), "combine(F)": ("combine", "forward"),
    "combine(B)": ("combine_backward", "backward_input"), "dispatch(B)": ("dispatch_backward", "backward_input"),
}  # fmt: skip
COMPUTE = tuple(name for name, (block, _) in RANGES.items() if block in ("attention", "mlp"))

#: Classes of kernels that stand in one line of the comparison: no operator tells them apart.
_TOGETHER: Mapping[str, str] = {
    "attention backward, before and after": "attention backward", "preparation of products": "grouped product",
    **dict.fromkeys(("routing", "elementwise", "memset"), "routing, elementwise"), "memcpy": "copy",
}  # fmt: skip
#: The same classes for the memory-bound operators of a step, by name: the first pattern found decides.
_OPERATORS: tuple[tuple[str, str], ...] = (
    ("SwiGLU backward", r"swiglu(_weight)?_backward$"),
    ("cast", r"(swiglu|output|input)_(save|load)$"),
    ("SwiGLU", r"swiglu"),
    ("cast and transpose", r"(grad_cast|requant)_transpose$"),
    ("transpose", r"transpose(_recompute)?$"),
    ("cast", r"cast(_recompute)?$"),
    ("norm backward", r"norm_backward$"),
    ("norm", r"norm(_recompute)?$"),
    ("RoPE", r"^rope"),
    ("permutation", r"permute|expert_index"),
    ("copy", r"concat|copy|split"),
    ("routing, elementwise", r"."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One name on both sides, in seconds; ``predicted_s`` is None where the prediction has no such thing.

    A line of a class of kernels also counts the traced kernels and the operators of the prediction.
    """

    name: str
    traced_s: float
    predicted_s: float | None
    n_kernels: int = 0
    n_operators: float = 0.0

    @property
    def error(self) -> float | None:
        """Predicted over traced, less one; None where either is missing or nothing was traced."""
        return None if self.predicted_s is None or self.traced_s <= 0 else self.predicted_s / self.traced_s - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A chunk pair of a scenario: its operators beside messages with how often each runs, and what the pair takes."""

    operators: tuple[tuple[TimedOp, float], ...]
    pair_s: float
    exposed_s: float


def comparable(trace: Trace) -> bool:
    """Whether every range of a chunk pair is in the profile, each as often as the others: once per layer."""
    counts = range_counts(trace)
    return len(set(counts.values())) == 1 and min(counts.values()) > 0


def range_counts(trace: Trace) -> dict[str, int]:
    """How often each range of a chunk pair is in the profile."""
    return {name: trace.ranges.count(name) for name in RANGES}


def chunk_pair(scenario: Scenario) -> Pair:
    """The pair of the middle rank. InputError where the scenario is no training of one point with DualPipe."""
    if scenario.load.phase != "training" or scenario.plan.schedule != "dualpipe" or scenario.axes:
        remedy = "name a scenario of training with plan.schedule: dualpipe and no axes"
        raise InputError(f"scenario: {scenario.name!r} has no chunk pair to compare; {remedy}")
    timed = training.timed_step(scenario)
    ((_, layout),) = stages.layouts(scenario, timed, 1)
    times = stages.chunk_times(scenario, timed, layout)
    held = layout.ranks[len(layout.ranks) // 2 - 1]
    f, b = held[0], held[-1]
    beside = timed.beside or timed
    return Pair(
        operators=tuple(_counted(beside, layout.chunks[f], layout.chunks[b])), pair_s=_one(times.pair[f, b]),
        exposed_s=_one(times.pair_exposed[f, b]),
    )  # fmt: skip


def _counted(timed: TimedStep, forward: stages.Chunk, backward: stages.Chunk) -> list[tuple[TimedOp, float]]:
    """Operators that run in the pair, and in how many layers: forward ones of one chunk, the rest of the other."""
    counts = ((item, (forward if item.op.phase == "forward" else backward).count(item.op.part)) for item in timed.ops)
    return [(item, float(n)) for item, n in counts if n]


def traced(trace: Trace) -> dict[str, float]:
    """Named seconds of a profile: covered by each phase, of the exchange's kernels, of the whole."""
    groups, whole = profile.groups(trace), profile.times(trace)

    def of(kernel_class: str) -> float:
        return sum(group.sum_s for group in groups if group.kernel_class == kernel_class)

    seconds = {phase.name: phase.busy_s for phase in profile.phases(trace) if phase.name in RANGES}
    casts_s = sum(g.sum_s for g in groups if g.kernel_class == "cast" and g.phase in RANGES and g.phase not in COMPUTE)
    return {
        **{name: seconds[name] for name in COMPUTE if name in seconds}, "dispatch": of("dispatch"),
        "combine": of("combine"), "notify": of("notify"), "casts of messages": casts_s,
        "compute busy": whole.compute_busy_s, "exposed communication": whole.exposed_s, "span": whole.span_s,
    }  # fmt: skip


def predicted(pair: Pair) -> dict[str, float]:
    """The same of a scenario's pair; agreement on sizes is part of its dispatches and combines."""
    named = {name: _sum(pair, lambda op, key=key: (op.block, op.phase) == key) for name, key in RANGES.items()}
    casts_s = _sum(pair, lambda op: op.kind == "memory" and op.stream == "communication")
    sends = {name: _sum(pair, lambda op, name=name: op.variant == name) for name in ("dispatch", "combine")}
    return {
        **{name: named[name] for name in COMPUTE}, **sends, "casts of messages": casts_s,
        "compute busy": pair.pair_s - pair.exposed_s, "exposed communication": pair.exposed_s, "span": pair.pair_s,
    }  # fmt: skip


def replayed_s(trace: Trace) -> float:
    """Seconds of the profile's own pieces, layer by layer, played in the order in which the schedule issues a pair.

    What differs from the traced span is the order, and waiting that no piece holds; not how long anything takes.
    ``comparable`` profiles only.
    """
    seconds = profile.range_seconds(trace)
    of = {name: [s for s, each in zip(seconds, trace.ranges, strict=True) if each == name] for name in RANGES}
    table = {
        (str(i), block, phase, "compute" if name in COMPUTE else "communication"): s
        for name, (block, phase) in RANGES.items()
        for i, s in enumerate(of[name])
    }
    parts = [str(i) for i in range(len(of["attn(F)"]))]
    # A chunk lists its layers from first to last; the backward pass begins with the last one.
    return _one(pair_s(parts, parts[::-1], {part: layer_times(table, part) for part in parts}))


def lines(trace: Trace, pair: Pair) -> list[Line]:
    """Both sides by name, in the order of ``traced``."""
    ours = predicted(pair)
    return [Line(name=name, traced_s=s, predicted_s=ours.get(name)) for name, s in traced(trace).items()]


def class_lines(trace: Trace, pair: Pair) -> list[tuple[str, Line]]:
    """(phase, line) of every class of compute kernels: summed seconds on both sides, phase by phase, longest first."""
    theirs: dict[tuple[str, str], tuple[float, float]] = {}
    ours: dict[tuple[str, str], tuple[float, float]] = {}
    for group in profile.groups(trace):
        if group.phase in COMPUTE:
            what = _TOGETHER.get(group.kernel_class, group.kernel_class)
            _add(theirs, (group.phase, what), group.sum_s, group.n_kernels)
    phases = {key: name for name, key in RANGES.items() if name in COMPUTE}
    for item, n in pair.operators:
        if (phase := phases.get((item.op.block, item.op.phase))) is not None:
            _add(ours, (phase, operator_class(item.op)), n * _one(item.seconds), n * _one(item.op.count))
    found = []
    for key in {**theirs, **ours}:
        (traced_s, n_kernels), (predicted_s, n_operators) = (sums.get(key, (0.0, 0.0)) for sums in (theirs, ours))
        line = Line(
            name=key[1], traced_s=traced_s, predicted_s=predicted_s, n_kernels=int(n_kernels), n_operators=n_operators
        )  # fmt: skip
        found.append((key[0], line))
    return sorted(found, key=lambda each: (COMPUTE.index(each[0]), -each[1].traced_s, each[1].name))


def operator_class(op: Op) -> str:
    """The class of the kernels that run an operator, in the words of ``kernel_names``."""
    if op.kind in ("gemm", "grouped_gemm"):
        grouped = "grouped product" if op.kind == "grouped_gemm" else "product"
        # Products of the router are the library's, whose names do not tell what they are for.
        return "weight gradient product" if op.variant == "wgrad" and op.format != "bf16" else grouped
    if op.kind == "attention":
        return "attention backward" if op.variant == "backward" else "attention"
    return next(found for found, pattern in _OPERATORS if re.search(pattern, op.name))


def _add(sums: dict[tuple[str, str], tuple[float, float]], key: tuple[str, str], seconds: float, n: float) -> None:
    before = sums.get(key, (0.0, 0.0))
    sums[key] = (before[0] + seconds, before[1] + n)


def _sum(pair: Pair, where: Callable[[Op], bool]) -> float:
    return sum(n * _one(item.seconds) for item, n in pair.operators if where(item.op))


def _one(value: object) -> float:
    """The single point of a scalar or of an array of shape (1,)."""
    return float(np.ravel(np.asarray(value, dtype=float))[0])
