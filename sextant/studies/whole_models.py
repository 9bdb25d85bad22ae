"""Whole models on one GPU: predicted seconds beside measured ones, none of which any fit has seen.

A case (``sextant.validate.whole.cases``) says which model runs under which load, and what the implementation does
otherwise than the list of operators says (``differs``). The prediction is that of ``sextant run`` for the same model,
load and GPU, less the operators that do not run, plus the kernels that run instead, which are predicted as kernel cases
are.

Measured are passes repeated for seconds, and predicted at the clock that the GPU's record states under such load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sextant import hwmodels
from sextant.simulator.errors import InputError
from sextant.simulator.evaluate import time_ops
from sextant.simulator.timed import TimedOp, TimedStep
from sextant.simulator.types import Cluster, Load, Scenario
from sextant.studies import fetches, whole_kernels
from sextant.validate import prediction
from sextant.validate.whole.cases import Difference, WholeCase, steps

#: The phase of a scenario that a case's phase is part of, where they are not called the same.
_PHASES = {"vision": "image_understanding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An operator of a step: what it computes (``whole_kernels``), how often it runs, and the seconds of all its runs
    with their 90% interval."""

    name: str
    what: str
    count: float
    seconds: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The step of a case on one GPU, the sum of its lines."""

    case: str
    lines: tuple[Line, ...]

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(line.seconds for line in self.lines)

    @property
    def low_s(self) -> float:
        """Lower end of the interval: every operator at its own at once."""
        return sum(line.low_s for line in self.lines)

    @property
    def high_s(self) -> float:
        """Upper end of the interval."""
        return sum(line.high_s for line in self.lines)


def scenario_of(case: WholeCase, device: str, cool: bool = False) -> Scenario:
    """The scenario that a case is part of, on one GPU called ``device``; ``cool``: at the clock of a GPU at rest."""
    cluster = replace(hwmodels.cluster(f"hgx-{device}"), n_devices=1.0)
    if cool:
        cluster = replace(cluster, device=replace(cluster.device, clock_under_load=1.0))
    load = Load(
        phase=_PHASES.get(case.phase, case.phase), batch=float(case.batch), context_tokens=float(case.context_tokens)
    )
    plan = replace(case.plan, micro_batch=float(case.batch)) if case.phase == "training" else case.plan
    return Scenario(name=case.name, model=case.model, cluster=cluster, plan=plan, load=load)


def predicted(case: WholeCase, device: str = "h200", cool: bool = False) -> Predicted:
    """The case's pass, operator by operator, ``cool`` as ``scenario_of`` has it. InputError for a difference that
    cannot be predicted, or that names an operator which the pass has not."""
    scenario = scenario_of(case, device, cool)
    left_out = {name for each in case.differs for name in each.instead_of}
    lines: list[Line] = []
    for step in steps(case):
        timed = time_ops(step, scenario.cluster)
        lines += [_line(item, float(step.layers.get(item.op.part, 1.0))) for item in timed.ops]
        lines += _waited(scenario, timed, sum(line.seconds for line in lines)) if "engram" in step.layers else []
    if missing := left_out - {line.name for line in lines}:
        raise InputError(f"{case.name}: differs.instead_of: no operator {min(missing)!r} in this pass")
    lines = [line for line in lines if line.name not in left_out and line.seconds]
    lines += [_added(case.name, each, scenario.cluster) for each in case.differs if each.count]
    return Predicted(case=case.name, lines=tuple(lines))


def _line(item: TimedOp, n: float) -> Line:
    """``n`` layers' executions of an operator; a fetch from host memory is waited for (``_waited``), not run."""
    count = n * float(item.op.count) if item.op.stream != "host" else 0.0
    seconds, low_s, high_s = (count * float(x) for x in (item.time.seconds, item.time.low, item.time.high))
    return Line(
        name=item.op.name, what=whole_kernels.of_operator(item.op), count=count, seconds=seconds, low_s=low_s,
        high_s=high_s,
    )  # fmt: skip


def _waited(scenario: Scenario, timed: TimedStep, step_s: float) -> list[Line]:
    """What rows from host memory add to the pass, as a scenario has it (``fetches.scene``)."""
    scene = fetches.scene(scenario, timed, step_s)
    stalled = float(scene.played().exposed_s) if scene else 0.0
    if scene is None or not stalled:
        return []
    low, high = (float(scene.exposed_s(end)) for end in ("low", "high"))
    return [
        Line(name="engram_wait", what="Engram", count=float(len(scenario.model.engram_layers)), seconds=stalled,
             low_s=low, high_s=high)
    ]  # fmt: skip


def _added(name: str, each: Difference, cluster: Cluster) -> Line:
    """The kernel that the implementation runs beside, or instead of, operators."""
    columns = {column: [str(value)] for column, value in each.case.items()}
    found = prediction.predict(columns, 1, cluster)
    if found.error[0]:
        raise InputError(f"{name}: differs.case: {found.error[0]}")
    seconds, low_s, high_s = (1e-6 * each.count * float(x[0]) for x in (found.us, found.low_us, found.high_us))
    op = str(each.case["op"])
    return Line(
        name=f"{op} ({'instead of ' + ', '.join(each.instead_of) if each.instead_of else 'added'})",
        what=whole_kernels.of_case(op), count=float(each.count), seconds=seconds, low_s=low_s, high_s=high_s,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A case: seconds measured, predicted, and the prediction's 90% interval."""

    case: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1.0

    @property
    def inside(self) -> bool:
        """Whether the measured time lies in the interval."""
        return self.low_s <= self.measured_s <= self.high_s


def compared(cases: Sequence[WholeCase], measured_s: Mapping[str, float], device: str = "h200") -> list[Compared]:
    """Every case that was measured, beside its prediction."""
    found = []
    for case in cases:
        if case.name in measured_s:
            guess = predicted(case, device)
            found.append(
                Compared(
                    case=case.name, measured_s=measured_s[case.name], predicted_s=guess.seconds, low_s=guess.low_s,
                    high_s=guess.high_s,
                )
            )  # fmt: skip
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Errors over all cases, shares of the measured time; ``largest`` is that of ``worst``."""

    n_cases: int
    mean: float
    largest: float
    worst: str
    bias: float
    n_inside: int


def summary(rows: Sequence[Compared]) -> Summary:
    """The errors of all rows; InputError where there are none."""
    if not rows:
        raise InputError("case: nothing was measured of this; see `sextant validate models` for what was")
    errors = np.array([row.error for row in rows])
    worst = rows[int(np.argmax(np.abs(errors)))]
    return Summary(
        n_cases=len(rows), mean=float(np.abs(errors).mean()), largest=worst.error, worst=worst.case,
        bias=float(errors.mean()), n_inside=sum(row.inside for row in rows),
    )  # fmt: skip
