"""Fits: known coefficients are found again from synthetic rows, and unseen measured kernels are predicted."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.types import Device, KernelFit, Memory
from sextant.validate.fit_attention import attention_op, fit_attention, fit_mla, mla_op
from sextant.validate.solver import Row, alone, column, held_out, with_fit

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "measured" / "h100_sxm"
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6,
    power_w=700.0, price_usd_per_h=2.0, memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
NVLINK = 450e9


def rows_of(name: str) -> list[Row]:
    path = MEASURED / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path} is absent")
    with gzip.open(path, "rt") as lines:
        return list(csv.DictReader(lines))


def test_held_out_rows_keep_their_group_together_and_always_the_same() -> None:
    keys = [(heads, 8) for heads in range(50) for _ in range(4)]
    mask = held_out(keys)
    assert np.all(mask.reshape(50, 4).all(axis=1) == mask.reshape(50, 4).any(axis=1))
    assert 0 < mask.mean() < 0.5
    assert np.array_equal(mask, held_out(keys))


def test_missing_columns_and_mixed_directions_are_refused() -> None:
    row: Row = {"op": "attention", "batch": 1, "heads": 8, "kv_heads": 8, "q_len": 128, "kv_len": 128,
                "head_dim": 128, "us": 10.0, "direction": "forward"}  # fmt: skip
    with pytest.raises(InputError, match="'us' is absent"):
        column([{"op": "attention"}], "us")
    with pytest.raises(InputError, match="one direction"):
        attention_op([row, {**row, "direction": "backward"}])
    with pytest.raises(InputError, match="fitted to backward rows only"):
        fit_attention("attention_backward", [row], H100)


def test_backward_coefficients_are_found_again_and_change_the_provenance() -> None:
    """Synthetic backward rows; what matters is that predictions of unseen head counts agree."""
    truth = KernelFit(
        coefficients={
            "kv_tile_elements": 16384.0, "matrix_efficiency": 0.55, "exp_per_s_per_sm": 1.8e10, "overlap_power": 2.0,
            "prologue_tiles": 1.0, "wave_share": 0.5, "tail": 0.3, "passes": 1.3, "token_s": 0.0, "serial_power": 1.5,
            "floor_s": 1.5e-5,
        },
        low=1.0, high=1.0, provenance="measured",
    )  # fmt: skip
    rows: list[Row] = [
        {"op": "attention", "direction": "backward", "batch": batch, "heads": heads, "kv_heads": heads, "q_len": length,
         "kv_len": length, "head_dim": dim, "causal": 1}
        for batch in (1, 4, 16) for heads in (1, 2, 4, 8, 12, 16, 32, 48, 64, 128)
        for length in (128, 512, 2048, 8192) for dim in (64, 128, 256)
    ]  # fmt: skip
    seconds = estimate(attention_op(rows), alone(with_fit(H100, "attention_backward", truth))).seconds
    rows = [{**row, "us": float(s) * 1e6} for row, s in zip(rows, np.asarray(seconds), strict=True)]
    found = fit_attention("attention_backward", rows, H100)
    assert found.held_out.mape < 0.01
    again = estimate(attention_op(rows), alone(with_fit(H100, found.name, found.fit)))
    assert again.provenance == "fitted"


@pytest.mark.parametrize(
    ("name", "file", "mape", "bias"),
    [
        ("attention_forward", "attention_prefill", 0.08, 0.03),
        ("attention_encoder", "attention_encoder", 0.06, 0.03),
        ("mla_prefill", "mla_prefill", 0.06, 0.03),
        ("attention_decode", "attention_decode", 0.14, 0.03),
    ],
)
def test_unseen_attention_shapes(name: str, file: str, mape: float, bias: float) -> None:
    """Whole (heads, kv_heads, head_dim) combinations that the fit never saw."""
    found = fit_attention(name, rows_of(file), H100)
    assert found.held_out.n_rows > 100
    assert found.held_out.mape < mape
    assert abs(found.held_out.bias) < bias


def test_unseen_latent_decode_sites_and_published_flashmla_rates() -> None:
    """Unfitted: FlashMLA on an H800 streams 3000 GB/s when memory-bound and computes 660 TFLOP/s when not (580 in
    its first version; deepseek-ai/FlashMLA README)."""
    found = fit_mla(rows_of("mla_decode"), H100)
    assert found.held_out.mape < 0.08
    cluster = alone(with_fit(H100, "mla", found.fit))
    shape = {"batch": 128, "q_len": 1, "kv_len": 16384, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    streaming = mla_op([{**shape, "heads": 16}])
    computing = mla_op([{**shape, "heads": 128, "q_len": 2}])
    rate = np.asarray(streaming.traffic_bytes["hbm"] / estimate(streaming, cluster).seconds)
    assert rate == pytest.approx(3000e9, rel=0.07)
    assert np.asarray(computing.flops / estimate(computing, cluster).seconds) == pytest.approx(660e12, rel=0.07)
