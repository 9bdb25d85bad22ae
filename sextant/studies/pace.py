"""Who waits for whom in a training step, and how long: devices that are not equally fast, nor equally loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sextant.simulator.spread import Pace, Varying
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Num, Scenario


def pace_of(scenario: Scenario) -> Pace:
    """All devices that hold a stage wait for one another: in each layer that exchanges tokens, else at the end."""
    plan = scenario.plan
    n_devices = plan.tensor * plan.context * plan.data
    return Pace(
        n_devices=n_devices, n_exchanging=np.minimum(plan.expert, n_devices),
        clock_spread=scenario.cluster.device.clock_spread, routing_spread=scenario.load.routing_spread,
    )  # fmt: skip


def lasting_s(scenario: Scenario, timed: TimedStep) -> Num:
    """Standard deviation over the devices of the seconds that a whole step of a mean stage takes, for their clocks."""
    plan, load = scenario.plan, scenario.load
    waits = Waits(pace_of(scenario), (timed.beside or timed).varying())
    layers = [(n / plan.pipeline, each) for part, n in timed.step.layers.items() for each in waits.passes(part)]
    return load.batch / (plan.data * plan.micro_batch) * waits.pace.lasting_s(layers)


class Waits:
    """What chunks wait for the slowest device that holds them; ``varying`` as ``TimedStep.varying`` finds it.

    Chunks are given as the number of layers of each part.
    """

    def __init__(self, pace: Pace, varying: Mapping[tuple[str, str, str], Varying]) -> None:
        self.pace = pace
        self._passes: dict[str, tuple[Varying, Varying]] = {}
        # What a layer does between two exchanges: the experts, and all else.
        self._pieces: dict[tuple[str, str], list[Varying]] = {}
        for (part, block, phase), each in varying.items():
            pieces = self._pieces.setdefault((part, phase), [Varying(), Varying()])
            pieces[block == "mlp"] += each

    def alone_s(self, counts: Mapping[str, Num], phase: str) -> Num:
        """Of a chunk that nothing overlaps: devices meet in every exchange, before and after the experts. A weight
        gradient exchanges nothing."""
        if phase == "backward_weight":
            return self.pace.waits_s((n, self._whole(part, phase)) for part, n in counts.items())
        pieces = ((n, piece) for part, n in counts.items() for piece in self._of(part, phase))
        return sum((n * self.pace.waits_s([(1.0, piece)]) for n, piece in pieces), 0.0)

    def late_s(self, counts: Mapping[str, Num]) -> Num:
        """What a chunk of both gradients waits longer than they do apart (``alone_s``): the weight gradients of a layer
        stand between the same exchanges as its input gradients, and are of the same tokens."""
        total: Num = 0.0
        for part, n in counts.items():
            pieces = zip(self._of(part, "backward_input"), self._of(part, "backward_weight"), strict=True)
            for inputs, weights in pieces:
                total = total + n * (self.pace.waits_s([(1.0, inputs + weights)]) - self.pace.waits_s([(1.0, inputs)]))
        return total - self.alone_s(counts, "backward_weight")

    def pair_s(self, forward: Mapping[str, Num], backward: Mapping[str, Num]) -> Num:
        """Of two that overlap: a device that comes late to an exchange computes the other chunk meanwhile, so that the
        slowest over the whole pair sets its pace (played device by device in the tests)."""
        layers = [(n, self.passes(part)[0]) for part, n in forward.items()]
        return self.pace.waits_s([*layers, *((n, self.passes(part)[1]) for part, n in backward.items())])

    def passes(self, part: str) -> tuple[Varying, Varying]:
        """A layer forward, and backward: both gradients, which are of the same tokens."""
        if part not in self._passes:
            backward = self._whole(part, "backward_input") + self._whole(part, "backward_weight")
            self._passes[part] = self._whole(part, "forward"), backward
        return self._passes[part]

    def _whole(self, part: str, phase: str) -> Varying:
        first, second = self._of(part, phase)
        return first + second

    def _of(self, part: str, phase: str) -> Sequence[Varying]:
        return self._pieces.get((part, phase), (Varying(), Varying()))
