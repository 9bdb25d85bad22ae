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


#: What a power limit of 700 W leaves of the speed of short runs, when a training step's mix of products, attention and
#: memory-bound kernels lasts for seconds: measured on an H200 (validate/data/measured/h200_sustained.csv): 4,392 us in
#: bursts, 4,936 us sustained, of which 1,107 us memory do not change, so (4392 - 1107) / (4936 - 1107).
SUSTAINED_CLOCK = 0.86
SUSTAINED = (
    "0.86 of the speed of millisecond runs, measured on an H200 under a lasting mix of products, attention and memory"
)
FULL_CLOCK = "assumed: 1.0, no measurement of lasting load"

#: Identical GPUs at their power limit keep different clocks. Sinha et al. (SC 2022, arXiv:2208.11035) ran five clusters
#: of V100 and MI60: 8% average variation between GPUs, outliers left out. Read as the distance between the whiskers of
#: a box plot, 5.4 standard deviations of a normal law.
CLOCK_SPREAD = 0.08 / 5.4
SPREAD = (
    "assumed: as on the V100 clusters of Sinha et al. (SC 2022, arXiv:2208.11035), whose GPUs vary by 8%, read as 5.4 "
    "standard deviations"
)

#: A kernel that does nothing, its gap to the next included.
LAUNCH_S = 1.0e-6
LAUNCH = (
    "1.0 us: the smallest kernels in a CUDA graph on an H200 take 1.06 to 1.3 us each, gap included "
    "(validate/data/measured/h200_kernels.csv); the fits hold what more each kind takes"
)
