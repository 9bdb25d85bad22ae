"""Memories as one device sees them.

``hbm`` carries the bytes a program can allocate, not the label on the box, and the datasheet bandwidth: what kernels
reach of it is in their fits. ``host`` is the node's DRAM as one of eight devices sees it: an eighth of the capacity,
and the narrower of its share of DRAM bandwidth and its own PCIe link. Latency of HBM is part of every kernel's fitted
floor and therefore 0 here; ``rows_per_s`` stays unlimited where the fitted gather knows the limit.
"""

from __future__ import annotations

from sextant.hwmodels.links import PCIE4_X16, PCIE5_X16
from sextant.simulator.types import HostMemory, Link, Memory

GIB = 2.0**30
DEVICES_PER_NODE = 8

HBM2_40GB = Memory(
    capacity_bytes=39.50 * GIB, bandwidth_bytes_per_s=1.555e12,
    source="capacity: 39.50 GiB visible to PyTorch on a 40 GB A100 (github.com/TianheWu/CoSeR issue 10); "
    "bandwidth: 1.555 TB/s (LLM-Viewer hardware_params.py; glennklockwood.com A100)",
)  # fmt: skip
HBM2E_80GB = Memory(
    capacity_bytes=79.25 * GIB, bandwidth_bytes_per_s=2.039e12,
    source="capacity: 79.25 GiB visible to PyTorch on an 80 GB A100 (github.com/wbfwonderful/Vad-R1 issue 11); "
    "bandwidth: 2.039 TB/s (aiconfigurator systems; glennklockwood.com A100)",
)  # fmt: skip
HBM3_80GB = Memory(
    capacity_bytes=84_943_110_144.0, bandwidth_bytes_per_s=3.35e12,
    source="capacity: totalGlobalMem of an H800 (deepseek-ai/profile-data, train.json, deviceProperties), 79.11 GiB, "
    "the same as PyTorch shows on an H100 (vllm-project/vllm issue 27508); bandwidth: 3.35 TB/s (FlashMLA documents "
    "for H800, hpctech.co.jp for H100; InferSim lists 3.43)",
)  # fmt: skip
HBM3_96GB = Memory(
    capacity_bytes=96e9, bandwidth_bytes_per_s=4.0e12,
    source="capacity: 96 GB, the label (InferSim hardware table), what a program sees is unconfirmed; "
    "bandwidth: 4.0 TB/s (zangshuxian.com; InferSim lists 4096 GB/s)",
)  # fmt: skip
HBM3E_141GB = Memory(
    capacity_bytes=139.81 * GIB, bandwidth_bytes_per_s=4.8e12,
    source="capacity: 139.81 GiB visible to PyTorch on an H200 (public logs of several projects); label 141 GB; "
    "bandwidth: 4.8 TB/s (aiconfigurator systems)",
)  # fmt: skip
HBM3E_180GB = Memory(
    capacity_bytes=178.35 * GIB, bandwidth_bytes_per_s=7.672e12,
    source="178.35 GiB, 7680 bit and 3996 MHz as the driver reports them on a B200 (pytorch/ao pull request 4002): "
    "7.672 TB/s; NVIDIA's rounded figures are 180 or 192 GB and 8 TB/s",
)  # fmt: skip

#: Peak of one two-socket node; 4400 MT/s with two DIMMs per channel would leave 563.2 GB/s.
DDR5_4800_NODE_BYTES_PER_S = 2 * 8 * 8 * 4800e6
DDR4_3200_NODE_BYTES_PER_S = 2 * 8 * 8 * 3200e6


def host(node_bytes_per_s: float, pcie: Link, node_capacity_bytes: float, source: str) -> HostMemory:
    """The DRAM of a node of eight as one device sees it while all eight read.

    Bandwidth is the smaller of the device's share of DRAM and its PCIe line rate, one direction; the share of that
    which a copy or a gather reaches belongs to its fit.
    """
    share = node_bytes_per_s / DEVICES_PER_NODE
    return HostMemory(
        capacity_bytes=node_capacity_bytes / DEVICES_PER_NODE,
        bandwidth_bytes_per_s=min(share, float(pcie.bandwidth_bytes_per_s)),
        latency_s=pcie.latency_s,
        source=f"{source}; an eighth each; bandwidth: the smaller of {share / 1e9:.1f} GB/s of DRAM and the PCIe link "
        f"({pcie.source})",
    )  # fmt: skip


HOST_DDR5_PCIE5 = host(
    DDR5_4800_NODE_BYTES_PER_S, PCIE5_X16, 2e12,
    "assumed: 2 TB and two sockets of eight DDR5-4800 channels per node, 614.4 GB/s (ai-hpc.org STREAM guide for the "
    "bandwidth; 2 TB as in NVIDIA's MLPerf Inference v4.1 H200 system)",
)  # fmt: skip
HOST_DDR4_PCIE4 = host(
    DDR4_3200_NODE_BYTES_PER_S, PCIE4_X16, 2e12,
    "assumed: 2 TB and two sockets of eight DDR4-3200 channels per node, 409.6 GB/s",
)  # fmt: skip

NVME = Memory(
    capacity_bytes=3.84e12, bandwidth_bytes_per_s=7e9, latency_s=1e-4, rows_per_s=1e6,
    source="assumed: one PCIe 4.0 x4 drive of 3.84 TB per device, 7 GB/s sequential and a million random reads a "
    "second of up to 4 KiB; no publication",
)  # fmt: skip
