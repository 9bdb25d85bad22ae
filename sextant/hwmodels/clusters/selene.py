"""Selene, the cluster of DGX A100 nodes that Megatron-LM was measured on."""

from __future__ import annotations

from sextant.hwmodels.clusters import nodes_of_eight
from sextant.hwmodels.gpus.a100_80gb import DEVICE
from sextant.hwmodels.links import CONNECTX6, NVLINK3

CLUSTER = nodes_of_eight(
    "selene", DEVICE, NVLINK3, CONNECTX6, n_nodes=384.0, topology="fat tree",
    source="nodes of 8 A100 80 GB with NVLink and NVSwitch, eight HDR InfiniBand cards of 200 Gbit/s each "
    "(arXiv:2205.05198 s6); 384 nodes, the 3072 GPUs of the largest run published on it (arXiv:2104.04473)",
)  # fmt: skip
