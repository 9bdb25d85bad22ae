"""The cluster DeepSeek-V3 was trained on."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.h800 import DEVICE
from sextant.hwmodels.links import CONNECTX7, NVLINK4_H800

CLUSTER = nodes_of_eight(
    "h800-2048", DEVICE, NVLINK4_H800, CONNECTX7, n_nodes=256.0, topology="multi-plane fat tree",
    source="2048 H800 in 256 nodes of 8, NVLink and NVSwitch inside, InfiniBand between (DeepSeek-V3 report s3.1; "
    "ISCA25 Insights Table 4 for the multi-plane network)",
)  # fmt: skip
