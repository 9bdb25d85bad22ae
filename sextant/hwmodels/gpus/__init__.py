"""One GPU per module: ``DEVICE``, and ``FIT``, where its kernel coefficients come from when it has none of its own.

A figure's source is in ``DEVICE.source`` under the field's dotted path, or in the memory's own ``source``. A text that
starts with ``unconfirmed:`` or ``assumed:`` is not a publication.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Kernel coefficients taken over from another GPU, because nobody measured this one.

    ``low`` and ``high`` multiply the interval's factors and say how far the transfer itself is trusted;
    ``provenance`` replaces the fit's own where the transfer is a guess.
    """

    gpu: str
    low: float
    high: float
    reason: str
    provenance: str = ""


#: Fits hold the throttling of the GPU they were measured on; scaling the clock as well would count it twice.
FULL_CLOCK = "1.0: the kernel fits already contain the throttling of the GPU they were measured on"

#: Between two kernels of one stream or graph. The smallest H100 GEMM takes 2.6 us in all, its gap included.
LAUNCH_S = 1.5e-6
LAUNCH = (
    "assumed: 1 to 3 us between two kernels queued back to back; the smallest kernels of the aiconfigurator H100 "
    "tables take 2.6 us in all, and the fits hold that floor"
)
