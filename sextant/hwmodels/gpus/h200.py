"""NVIDIA H200 SXM5: the H100's die with 141 GB of HBM3e."""

from __future__ import annotations

from sextant.hwmodels.gpus import CLOCK_SPREAD, LAUNCH, LAUNCH_S, SPREAD, SUSTAINED, SUSTAINED_CLOCK, Transfer
from sextant.hwmodels.memories import HBM3E_141GB, HOST_DDR5_PCIE5, NVME
from sextant.simulator.types import Device

FIT: Transfer | None = Transfer(
    gpu="h100", low=0.9, high=1.1,
    reason="the same die behind faster memory; products carried over from an H100 err by 7 to 8% (sextant validate "
    "transfer)",
)  # fmt: skip

#: Blocks whose name says no library are of this one: attention of torch, forward as its backward.
LIBRARIES = {"attention_forward": "cudnn", "attention_encoder": "cudnn", "mla_prefill": "cudnn"}

DEVICE = Device(
    name="h200",
    peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12, "tf32": 494.7e12},
    n_sms=132.0,
    memories={"hbm": HBM3E_141GB, "host": HOST_DDR5_PCIE5, "nvme": NVME},
    l2_bytes=62914560.0,
    launch_s=LAUNCH_S,
    clock_under_load=SUSTAINED_CLOCK,
    clock_spread=CLOCK_SPREAD,
    power_w=700.0,
    price_usd_per_h=2.5,
    source={
        "peak_flops_per_s.bf16": "989 TFLOP/s dense (aiconfigurator systems)",
        "peak_flops_per_s.fp8": "1978 TFLOP/s dense (aiconfigurator systems)",
        "peak_flops_per_s.tf32": "assumed: as H100, the same die",
        "n_sms": "132 (aiconfigurator systems)",
        "l2_bytes": "60 MiB, as the device itself reports (validate/data/measured/h200_kernels.csv, header)",
        "launch_s": LAUNCH,
        "power_w": "700 W (NVIDIA's MLPerf Inference v4.1 system description, H200 TGP)",
        "price_usd_per_h": "assumed: 2.5 USD/h; set it to what you pay",
        "clock_spread": SPREAD,
        "clock_under_load": SUSTAINED,
    },
)
