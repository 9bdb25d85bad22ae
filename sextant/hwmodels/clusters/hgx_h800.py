"""One HGX node of eight H800 SXM5."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.h800 import DEVICE
from sextant.hwmodels.links import CONNECTX7, NVLINK4_H800

CLUSTER = nodes_of_eight(
    "hgx-h800", DEVICE, NVLINK4_H800, CONNECTX7, topology="NVSwitch",
    source="one node of eight; eight ConnectX-7 per node (ISCA25 Insights s4.1)",
)  # fmt: skip
