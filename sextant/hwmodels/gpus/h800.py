"""NVIDIA H800 SXM5: the H100's die and memory with 400 instead of 900 GB/s of NVLink."""

from __future__ import annotations

from sextant.hwmodels.gpus import CLOCK_SPREAD, LAUNCH, LAUNCH_S, SPREAD, SUSTAINED, SUSTAINED_CLOCK, Transfer
from sextant.hwmodels.memories import HBM3_80GB, HOST_DDR5_PCIE5, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="h100", low=0.9, high=1.1,
    reason="the same compute die and memory; what holds 92 to 95% of an H200's products predicted from an H100's fits "
    "(sextant validate transfer)",
)  # fmt: skip

DEVICE = Device(
    name="h800",
    peak_flops_per_s={"bf16": 989e12, "fp8": 1979e12, "tf32": 494.7e12},
    n_sms=132.0,
    memories={"hbm": HBM3_80GB, "host": HOST_DDR5_PCIE5, "nvme": NVME},
    l2_bytes=50e6,
    launch_s=LAUNCH_S,
    clock_under_load=SUSTAINED_CLOCK,
    clock_spread=CLOCK_SPREAD,
    power_w=700.0,
    price_usd_per_h=2.0,
    source={
        "peak_flops_per_s.bf16": "989 TFLOP/s dense (InferSim hardware table; 990 in FlashMLA's documents, 385 TFLOP/s "
        "at 38.94% in ISCA25 Insights Table 4)",
        "peak_flops_per_s.fp8": "1979 TFLOP/s dense (InferSim hardware table)",
        "peak_flops_per_s.tf32": "assumed: as H100, the same die",
        "n_sms": "132 (deepseek-ai/profile-data, train.json, deviceProperties; DeepSeek-V3 report s3.2.2)",
        "l2_bytes": "unconfirmed: 50 MB as H100, the same die",
        "launch_s": LAUNCH,
        "power_w": "unconfirmed: 700 W as H100 SXM5",
        "price_usd_per_h": "2 USD/h, the rental price DeepSeek's own cost figure assumes (DeepSeek-V3 report Table 1)",
        "clock_spread": SPREAD,
        "clock_under_load": f"{SUSTAINED}; the same die and power limit. FlashMLA's authors see about 1600 MHz, 865 of "
        "989 TFLOP/s (0.875), on an H800 under lasting load (FlashMLA docs 20250422-new-kernel-deep-dive)",
    },
)
