"""NVIDIA A100 SXM4, 80 GB HBM2e. It has no FP8: such products run at the BF16 rate."""

from __future__ import annotations

from sextant.hwmodels.gpus import CLOCK_SPREAD, LAUNCH, LAUNCH_S, SPREAD, Transfer
from sextant.hwmodels.memories import HBM2E_80GB, HOST_DDR4_PCIE4, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="h100", low=0.8, high=1.35, provenance="assumed",
    reason="of an A100 only products and collectives were measured; another generation of SM and of kernels",
)  # fmt: skip

DEVICE = Device(
    name="a100-80gb",
    peak_flops_per_s={"bf16": 312e12, "tf32": 156e12},
    n_sms=108.0,
    memories={"hbm": HBM2E_80GB, "host": HOST_DDR4_PCIE4, "nvme": NVME},
    l2_bytes=40e6,
    launch_s=LAUNCH_S,
    clock_under_load=258.0 / 262.5,
    clock_spread=CLOCK_SPREAD,
    power_w=400.0,
    price_usd_per_h=1.2,
    source={
        "peak_flops_per_s.bf16": "312 TFLOP/s dense (aiconfigurator systems; glennklockwood.com A100)",
        "peak_flops_per_s.tf32": "156 TFLOP/s dense (hmc-tech.com A100 SXM, 155.9)",
        "n_sms": "108 (glennklockwood.com A100; PMC10448217 table 3)",
        "l2_bytes": "40 MB (glennklockwood.com A100)",
        "launch_s": LAUNCH,
        "power_w": "400 W (hmc-tech.com A100 SXM)",
        "price_usd_per_h": "assumed: 1.2 USD/h; set it to what you pay",
        "clock_spread": SPREAD,
        "clock_under_load": "0.983: 258 TFLOP/s of a BF16 product of 8192 x 8192 x 8192 with normally distributed "
        "values, repeated at the power limit (thonking.ai, strangely-matrix-multiplications, cuBLAS, 2022), over the "
        "262.5 of the table that the products were fitted to",
    },
)
