"""NVIDIA A100 SXM4, 40 GB HBM2. It has no FP8: such products run at the BF16 rate."""

from __future__ import annotations

from sextant.hwmodels.gpus import CLOCK_SPREAD, FULL_CLOCK, LAUNCH, LAUNCH_S, SPREAD, Transfer
from sextant.hwmodels.memories import HBM2_40GB, HOST_DDR4_PCIE4, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="a100-80gb", low=0.9, high=1.15, provenance="assumed",
    reason="the same die behind slower memory; no kernel of the 40 GB card was fitted",
)  # fmt: skip

DEVICE = Device(
    name="a100-40gb",
    peak_flops_per_s={"bf16": 312e12, "tf32": 156e12},
    n_sms=108.0,
    memories={"hbm": HBM2_40GB, "host": HOST_DDR4_PCIE4, "nvme": NVME},
    l2_bytes=40e6,
    launch_s=LAUNCH_S,
    clock_spread=CLOCK_SPREAD,
    power_w=400.0,
    price_usd_per_h=1.0,
    source={
        "peak_flops_per_s.bf16": "312 TFLOP/s dense (LLM-Viewer hardware_params.py; glennklockwood.com A100)",
        "peak_flops_per_s.tf32": "156 TFLOP/s dense (hmc-tech.com A100 SXM, 155.9)",
        "n_sms": "108 (glennklockwood.com A100)",
        "l2_bytes": "40 MB (glennklockwood.com A100)",
        "launch_s": LAUNCH,
        "power_w": "400 W (hmc-tech.com A100 SXM)",
        "price_usd_per_h": "assumed: 1.0 USD/h; set it to what you pay",
        "clock_spread": SPREAD,
        "clock_under_load": FULL_CLOCK,
    },
)
