"""One HGX node of eight B200 SXM."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.b200 import DEVICE
from sextant.hwmodels.links import CONNECTX7, NVLINK5

CLUSTER = nodes_of_eight(
    "hgx-b200", DEVICE, NVLINK5, CONNECTX7, topology="NVSwitch",
    source="one node of eight; assumed: ConnectX-7 at 400 Gbit/s per GPU",
)  # fmt: skip
