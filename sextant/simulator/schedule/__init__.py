"""Pipeline schedules: the order in which every rank works on its chunks, and the formulas that follow.

A stage is a run of layers; a rank holds one stage, several (interleaved), one from each end (DualPipe), or two that
lie in a V over the ranks (ZB-V, DualPipeV). F is a stage's forward chunk, B its input gradients, W its weight
gradients, BW both, FB a forward chunk overlapped with a full backward chunk of another micro-batch.
"""

from sextant.simulator.schedule.closed_form import bubble_s, counts, in_flight
from sextant.simulator.schedule.orders import (
    NAMES,
    OVERLAPPING,
    VEES,
    clear,
    instructions,
    n_stages,
    programs,
    stages_of_ranks,
)  # fmt: skip
from sextant.simulator.schedule.work import KINDS, Output, Work
from sextant.simulator.schedule.zero_bubble_v import Ratio, ratio

__all__ = [
    "KINDS", "NAMES", "OVERLAPPING", "VEES", "Output", "Ratio", "Work", "bubble_s", "clear", "counts", "in_flight",
    "instructions", "n_stages", "programs", "ratio", "stages_of_ranks",
]  # fmt: skip
