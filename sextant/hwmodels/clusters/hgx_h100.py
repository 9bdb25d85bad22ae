"""One HGX node of eight H100 SXM5."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.h100 import DEVICE
from sextant.hwmodels.links import CONNECTX7, NVLINK4

CLUSTER = nodes_of_eight(
    "hgx-h100", DEVICE, NVLINK4, CONNECTX7, topology="NVSwitch",
    source="one node of eight; ConnectX-7 at 400 Gbit/s per GPU (aiconfigurator systems)",
)  # fmt: skip
