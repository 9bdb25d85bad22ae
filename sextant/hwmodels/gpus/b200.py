"""NVIDIA B200 SXM (HGX, 1000 W): two dies that act as one GPU."""

from __future__ import annotations

from sextant.hwmodels.gpus import CLOCK_SPREAD, FULL_CLOCK, LAUNCH, LAUNCH_S, SPREAD, Transfer
from sextant.hwmodels.memories import HBM3E_180GB, HOST_DDR5_PCIE5, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="h100", low=0.8, high=1.35, provenance="assumed",
    reason="no B200 kernel was fitted; another tensor-core generation and other kernels",
)  # fmt: skip

DEVICE = Device(
    name="b200",
    peak_flops_per_s={"bf16": 2250e12, "fp8": 4500e12, "tf32": 1125e12},
    n_sms=148.0,
    memories={"hbm": HBM3E_180GB, "host": HOST_DDR5_PCIE5, "nvme": NVME},
    l2_bytes=126.5e6,
    launch_s=LAUNCH_S,
    clock_spread=CLOCK_SPREAD,
    power_w=1000.0,
    price_usd_per_h=4.0,
    source={
        "peak_flops_per_s.bf16": "2250 TFLOP/s dense (glennklockwood.com B200, HGX at 1000 W)",
        "peak_flops_per_s.fp8": "4500 TFLOP/s dense (glennklockwood.com B200, HGX at 1000 W)",
        "peak_flops_per_s.tf32": "assumed: half the BF16 rate (glennklockwood.com rounds it to 1100)",
        "n_sms": "148 as the driver reports (pytorch/ao pull request 4002)",
        "l2_bytes": "126.5 MB as the driver reports (pytorch/ao pull request 4002; whether MB or MiB is not stated)",
        "launch_s": LAUNCH,
        "power_w": "1000 W (glennklockwood.com B200)",
        "price_usd_per_h": "assumed: 4 USD/h; set it to what you pay",
        "clock_spread": SPREAD,
        "clock_under_load": FULL_CLOCK,
    },
)
