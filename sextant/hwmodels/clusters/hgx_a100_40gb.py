"""One HGX node of eight A100 SXM4 40 GB."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.a100_40gb import DEVICE
from sextant.hwmodels.links import CONNECTX6, NVLINK3

CLUSTER = nodes_of_eight(
    "hgx-a100-40gb", DEVICE, NVLINK3, CONNECTX6, topology="NVSwitch",
    source="one node of eight; assumed: ConnectX-6 at 200 Gbit/s per GPU",
)  # fmt: skip
