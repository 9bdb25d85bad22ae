"""One HGX node of eight H20 SXM5."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.h20 import DEVICE
from sextant.hwmodels.links import CONNECTX7, NVLINK4

CLUSTER = nodes_of_eight(
    "hgx-h20", DEVICE, NVLINK4, CONNECTX7, topology="NVSwitch",
    source="one node of eight; assumed: ConnectX-7 at 400 Gbit/s per GPU, as InferSim's 40 GB/s effective with 8 ports",
)  # fmt: skip
