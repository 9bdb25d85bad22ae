"""NVIDIA H100 SXM5, 80 GB HBM3: the GPU whose kernels were fitted."""

from __future__ import annotations

from sextant.hwmodels.gpus import CLOCK_SPREAD, LAUNCH, LAUNCH_S, SPREAD, SUSTAINED, SUSTAINED_CLOCK, Transfer
from sextant.hwmodels.memories import HBM3_80GB, HOST_DDR5_PCIE5, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="h200", low=0.85, high=1.15,
    reason="the same die behind slower memory; products carried over from an H200 err by 10% (sextant validate "
    "transfer)",
)  # fmt: skip

DEVICE = Device(
    name="h100",
    peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12, "tf32": 494.7e12},
    n_sms=132.0,
    memories={"hbm": HBM3_80GB, "host": HOST_DDR5_PCIE5, "nvme": NVME},
    l2_bytes=50e6,
    launch_s=LAUNCH_S,
    clock_under_load=SUSTAINED_CLOCK,
    clock_spread=CLOCK_SPREAD,
    power_w=700.0,
    price_usd_per_h=2.0,
    source={
        "peak_flops_per_s.bf16": "989 TFLOP/s dense (aiconfigurator systems; glennklockwood.com H100, at 1.83 GHz)",
        "peak_flops_per_s.fp8": "1978 TFLOP/s dense (aiconfigurator systems)",
        "peak_flops_per_s.tf32": "494.7 TFLOP/s dense (glennklockwood.com H100)",
        "n_sms": "132 (glennklockwood.com H100; hpctech.co.jp H100)",
        "l2_bytes": "50 MB (hpctech.co.jp H100)",
        "launch_s": LAUNCH,
        "power_w": "700 W (hpctech.co.jp H100; glennklockwood.com H100)",
        "price_usd_per_h": "assumed: the 2 USD/h of the H800; set it to what you pay",
        "clock_spread": SPREAD,
        "clock_under_load": f"assumed: {SUSTAINED}; the same die and power limit",
    },
)
