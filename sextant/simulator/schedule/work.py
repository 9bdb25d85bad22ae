"""What a rank of a pipeline executes: forward and backward chunks of micro-batches, and what they wait for."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("F", "B", "W", "BW", "FB")

#: What a chunk makes for others: "F" (activations) or "B" (input gradients), of a micro-batch, by a stage.
Output = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """One instruction: forward of micro-batch ``f`` on stage ``f_stage`` and/or backward of ``b`` on ``b_stage``.

    -1 stands for none. Micro-batches that enter a DualPipe at its far end are numbered after the others.
    """

    kind: str
    f: int = -1
    f_stage: int = -1
    b: int = -1
    b_stage: int = -1

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What other instructions may wait for; weight gradients are nobody's input."""
        made: list[Output] = [("F", self.f, self.f_stage)] if self.f >= 0 else []
        if self.kind in ("B", "BW", "FB"):
            made.append(("B", self.b, self.b_stage))
        return tuple(made)

    def inputs(self, n_stages: int) -> tuple[Output, ...]:
        """What this waits for, of ``n_stages`` in all: forward on the stage before, input gradients from the stage
        after, where the last stage has its own forward instead. A weight gradient follows its B on the same rank."""
        needed: list[Output] = [("F", self.f, self.f_stage - 1)] if self.f >= 0 and self.f_stage > 0 else []
        if self.kind in ("B", "BW", "FB"):
            last = self.b_stage == n_stages - 1
            needed.append(("F", self.b, self.b_stage) if last else ("B", self.b, self.b_stage + 1))
        return tuple(needed)
