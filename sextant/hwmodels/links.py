"""Links between devices, and between a device and its host: one direction, per device.

``efficiency`` is the share of the line rate that payload reaches with large messages. A fitted collective or an
``ep_dispatch`` model knows more than one number can say and overrides it.
"""

from __future__ import annotations

from sextant.simulator.types import Link

#: DeepSeek, "Insights into DeepSeek-V3" (ISCA 2025), section 4.3: 160 of 200 GB/s over NVLink and 40 of 50 GB/s over
#: InfiniBand are effective. The DeepSeek-V3 report (section 3.2.2) plans with 160 GB/s and the full 50 GB/s.
EFFICIENCY = 0.8
_EFFICIENCY = (
    "efficiency: ISCA25 Insights (arXiv:2505.09343v2) s4.3, 160 of 200 GB/s on NVLink and 40 of 50 GB/s on InfiniBand"
)
_SAME = "assumed: the same share as on the H800's links; " + _EFFICIENCY

#: ISCA25 Insights Table 5. Its setting is unconfirmed: end to end from the CPU, 64 bytes.
NVLINK_LATENCY_S = 3.33e-6
INFINIBAND_SAME_LEAF_LATENCY_S = 2.8e-6
INFINIBAND_CROSS_LEAF_LATENCY_S = 3.7e-6
_NVLINK_LATENCY = "latency: ISCA25 Insights Table 5, NVLink 3.33 us"
_INFINIBAND_LATENCY = "latency: ISCA25 Insights Table 5, InfiniBand 3.7 us across leaves (2.8 us under one leaf)"

NVLINK3 = Link(
    bandwidth_bytes_per_s=300e9, latency_s=NVLINK_LATENCY_S, efficiency=EFFICIENCY,
    source="A100: 600 GB/s both ways, 300 GB/s one way (aiconfigurator systems; glennklockwood.com A100); "
    f"{_NVLINK_LATENCY}, taken over from a later generation; {_SAME}",
)  # fmt: skip
NVLINK4 = Link(
    bandwidth_bytes_per_s=450e9, latency_s=NVLINK_LATENCY_S, efficiency=EFFICIENCY,
    source="H100, H200, H20: 900 GB/s both ways, 450 GB/s one way (aiconfigurator systems; glennklockwood.com H100); "
    f"{_NVLINK_LATENCY}; {_SAME}",
)  # fmt: skip
NVLINK4_H800 = Link(
    bandwidth_bytes_per_s=200e9, latency_s=NVLINK_LATENCY_S, efficiency=EFFICIENCY,
    source="H800: 400 GB/s both ways, 200 GB/s one way (ISCA25 Insights s4.1; InferSim hardware table); "
    f"{_NVLINK_LATENCY}; {_EFFICIENCY}",
)  # fmt: skip
NVLINK5 = Link(
    bandwidth_bytes_per_s=900e9, latency_s=NVLINK_LATENCY_S, efficiency=EFFICIENCY,
    source="B200: 900 GB/s one way (glennklockwood.com B200; ISCA25 Insights s2.3.2 for GB200); "
    f"{_NVLINK_LATENCY}, taken over from an earlier generation; {_SAME}",
)  # fmt: skip

CONNECTX6 = Link(
    bandwidth_bytes_per_s=25e9, latency_s=INFINIBAND_CROSS_LEAF_LATENCY_S, efficiency=EFFICIENCY,
    source=f"ConnectX-6, 200 Gbit/s, one per GPU; {_INFINIBAND_LATENCY}, taken over from ConnectX-7; {_SAME}",
)  # fmt: skip
CONNECTX7 = Link(
    bandwidth_bytes_per_s=50e9, latency_s=INFINIBAND_CROSS_LEAF_LATENCY_S, efficiency=EFFICIENCY,
    source="ConnectX-7, 400 Gbit/s, one per GPU, eight per node (ISCA25 Insights s4.1; DeepSeek-V3 report s3.2.2); "
    f"{_INFINIBAND_LATENCY}; {_EFFICIENCY}",
)  # fmt: skip

#: PCIe's own headers and flow control; 50 to 55 of 64 GB/s is what host-to-device copies are said to reach.
_PCIE = (
    "latency: assumed: about one round trip to host memory; efficiency: unconfirmed: 50 to 55 of 64 GB/s for large "
    "host-to-device copies"
)
PCIE4_X16 = Link(
    bandwidth_bytes_per_s=32e9, latency_s=1e-6, efficiency=0.82,
    source=f"PCIe 4.0 x16, 32 GB/s one way (aiconfigurator systems, A100); {_PCIE}",
)  # fmt: skip
PCIE5_X16 = Link(
    bandwidth_bytes_per_s=64e9, latency_s=1e-6, efficiency=0.82,
    source=f"PCIe 5.0 x16, 64 GB/s one way (aiconfigurator systems, H100 and H200); {_PCIE}",
)  # fmt: skip
