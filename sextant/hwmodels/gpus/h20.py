"""NVIDIA H20 SXM5: a Hopper with 78 SMs at a fraction of the tensor rate, and more memory bandwidth than an H100."""

from __future__ import annotations

from sextant.hwmodels.gpus import FULL_CLOCK, LAUNCH, LAUNCH_S, Transfer
from sextant.hwmodels.memories import HBM3_96GB, HOST_DDR5_PCIE5, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="h100", low=0.8, high=1.35, provenance="assumed",
    reason="no H20 kernel was measured; its ratio of compute to memory is seven times lower",
)  # fmt: skip

DEVICE = Device(
    name="h20",
    peak_flops_per_s={"bf16": 148e12, "fp8": 296e12, "tf32": 74e12},
    n_sms=78.0,
    memories={"hbm": HBM3_96GB, "host": HOST_DDR5_PCIE5, "nvme": NVME},
    l2_bytes=60e6,
    launch_s=LAUNCH_S,
    power_w=400.0,
    price_usd_per_h=1.0,
    source={
        "peak_flops_per_s.bf16": "148 TFLOP/s dense (InferSim hardware table; zangshuxian.com)",
        "peak_flops_per_s.fp8": "296 TFLOP/s dense (InferSim hardware table; zangshuxian.com)",
        "peak_flops_per_s.tf32": "assumed: half the BF16 rate, as on the other Hoppers",
        "n_sms": "78 (zangshuxian.com)",
        "l2_bytes": "unconfirmed: 60 MB",
        "launch_s": LAUNCH,
        "power_w": "unconfirmed: 400 W",
        "price_usd_per_h": "assumed: 1 USD/h; set it to what you pay",
        "clock_spread": "assumed: 0, its tensor cores do not reach the power limit",
        "clock_under_load": FULL_CLOCK,
    },
)
