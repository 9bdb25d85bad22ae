"""Fits of one GPU in another's place: what follows the datasheet, what stays, and what two rates of the target add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator.errors import InputError
from sextant.simulator.types import Device, KernelFit
from sextant.validate.prediction import predict, single_kernel_cluster
from sextant.validate.solver import alone
from sextant.validate.transfer import Rate, named_rates, news, restated, transferred

COPY = {"op": "copy", "format": "bf16", "variant": "kernel", "bytes": str(2**32)}
SQUARE = {"op": "gemm", "format": "bf16", "m": "16384", "n": "16384", "k": "8192"}
CASES = (
    COPY, SQUARE, {"op": "gemm", "format": "fp8_block", "m": "512", "n": "4096", "k": "7168"},
    {"op": "gemm", "format": "bf16", "m": "8", "n": "32768", "k": "8192"},
    {"op": "attention", "phase": "decode", "batch": "64", "heads": "32", "kv_heads": "8", "q_len": "1",
     "kv_len": "8192", "head_dim": "128"},
    {"op": "mhc_post", "n_tokens": "65536", "hidden": "4096", "n_streams": "4"},
)  # fmt: skip


def own(name: str) -> Device:
    """A GPU with the kernels measured on it, at the clock of short runs."""
    return replace(single_kernel_cluster(name).device, kernels=hwmodels.own_fits(name))


def seconds(device: Device, *cases: Mapping[str, str]) -> np.ndarray:
    names = dict.fromkeys(name for case in cases for name in case)
    found = predict({name: [case.get(name, "") for case in cases] for name in names}, len(cases), alone(device))
    assert not any(found.error), found.error
    return 1e-6 * found.us


def rate(device: Device, case: Mapping[str, str], slower: float = 1.0) -> Rate:
    return Rate(case=case, seconds=slower * float(seconds(device, case)[0]))


def with_hbm(device: Device, share: float) -> Device:
    hbm = device.memories["hbm"]
    less = replace(hbm, bandwidth_bytes_per_s=share * hbm.bandwidth_bytes_per_s)
    return replace(device, memories={**device.memories, "hbm": less})


def test_a_device_in_its_own_place_is_itself() -> None:
    device = own("h200")
    found = transferred(device, device, rate(device, COPY), rate(device, SQUARE))
    assert found.kernels == device.kernels
    assert np.array_equal(seconds(found, *CASES), seconds(device, *CASES))


def test_half_the_bandwidth_takes_twice_as_long_where_memory_decides() -> None:
    device = own("h200")
    slow = transferred(device, with_hbm(device, 0.5))
    copy, square, _, streaming, decode, streams = seconds(slow, *CASES) / seconds(device, *CASES)
    assert [copy, streams] == pytest.approx([2.0, 2.0], rel=0.02)
    # Work of tiles and of programs that the memory does not hide stays as it is.
    assert 1.85 < streaming < 2.0 and 1.85 < decode < 2.05 and square == pytest.approx(1.0, rel=0.02)


def test_what_one_sm_loads_from_l2_does_not_follow_the_memory() -> None:
    """A product whose tiles wait for L2 alone takes as long behind any memory that is fast enough."""
    block = KernelFit(
        coefficients={
            "launch_s": 1e-6, "math_share": 1.0, "load_ratio": 1.0, "fill_s": 1e-6, "hbm_share": 0.9, "ramp_s": 0.0,
            "exposed": 0.0, "convert": 4.0, "padding": 1.0,
        },
        low=0.9, high=1.1, provenance="fitted",
    )  # fmt: skip
    source = replace(own("h100"), kernels={"gemm_bf16": block})
    target = transferred(source, with_hbm(source, 2.0))
    assert seconds(target, SQUARE) == pytest.approx(seconds(source, SQUARE), rel=1e-12)
    untouched = replace(with_hbm(source, 2.0), kernels=source.kernels)
    assert seconds(untouched, SQUARE) == pytest.approx(seconds(source, SQUARE) / 2.0, rel=0.05)
    changed = target.kernels["gemm_bf16"].coefficients
    assert (changed["load_ratio"], changed["convert"], changed["padding"]) == pytest.approx((0.5, 8.0, 2.0))


def test_more_sms_load_more_and_padding_of_rows_is_no_cost_in_bytes() -> None:
    device = own("h200")
    more = replace(device, n_sms=2.0 * device.n_sms)
    decode = restated("attention_decode", device.kernels["attention_decode"], device, more).coefficients
    assert decode["l2_bytes_per_s"] == 2.0 * device.kernels["attention_decode"].coefficients["l2_bytes_per_s"]
    gate, post = device.kernels["engram_gate"], own("h100").kernels["mhc_post"]
    assert restated("mhc_post", post, device, more) is post
    faster = restated("engram_gate", gate, device, with_hbm(device, 2.0)).coefficients
    assert faster["padding"] == gate.coefficients["padding"]
    assert faster["row_cost"] == 2.0 * gate.coefficients["row_cost"]


def test_a_rate_inside_the_interval_is_no_news() -> None:
    device = own("h200")
    block = device.kernels["gemm_bf16"]
    assert news(device, rate(device, SQUARE, 0.999 * block.high)) == 1.0
    assert news(device, rate(device, SQUARE, 1.001 * block.low)) == 1.0
    assert news(device, rate(device, SQUARE, 1.3 * block.high)) == pytest.approx(1.3)
    assert news(device, rate(device, SQUARE, 0.8 * block.low)) == pytest.approx(0.8)


def test_a_slow_product_slows_tensor_cores_alone() -> None:
    device = own("h200")
    found = transferred(device, device, gemm_rate=rate(device, SQUARE, 1.25 * device.kernels["gemm_bf16"].high))
    copy, square, _, streaming, *_ = seconds(found, *CASES) / seconds(device, *CASES)
    assert square == pytest.approx(1.25, rel=0.03)
    assert copy == 1.0 and streaming == pytest.approx(1.0, rel=0.02)
    forward = "attention_forward"
    assert found.kernels[forward].coefficients["matrix_efficiency"] == pytest.approx(
        device.kernels[forward].coefficients["matrix_efficiency"] / 1.25
    )


def test_a_slow_copy_slows_what_writes_as_much_as_it_reads() -> None:
    device = own("h200")
    found = transferred(device, device, copy_rate=rate(device, COPY, 1.5 * device.kernels["memory"].high))
    copy, square, _, streaming, decode, streams = seconds(found, *CASES) / seconds(device, *CASES)
    assert [copy, streams] == pytest.approx([1.5, 1.5], rel=0.02)
    assert square == streaming == decode == 1.0


def test_residual_streams_stand_in_for_a_copy_and_it_for_them() -> None:
    """The H100's rows have no copy: its write-back of streams says how long one would take, within what they differ."""
    bare, streams = own("h100"), CASES[-1]
    assert "memory" not in bare.kernels
    token_bytes = 2 * 9 * 4096 + 80
    expected = rate(bare, {**streams, "n_tokens": str(round(2 * 2**32 / token_bytes))}, bare.kernels["mhc_post"].high)
    assert news(bare, replace(expected, case=COPY, seconds=1.2 * expected.seconds)) == pytest.approx(1.2, rel=1e-3)
    copying = replace(bare, kernels={"memory": own("h200").kernels["memory"]})
    as_copy = rate(copying, {"op": "copy", "bytes": str(65536 * token_bytes // 2)}, copying.kernels["memory"].low)
    assert news(copying, replace(as_copy, case=streams)) == pytest.approx(1.0)
    assert news(copying, replace(as_copy, case=streams, seconds=0.7 * as_copy.seconds)) == pytest.approx(0.7)
    with pytest.raises(InputError, match="no block of h100 predicts op copy"):
        news(replace(bare, kernels={}), Rate(case=COPY, seconds=1e-3))


def test_rates_are_the_largest_copy_and_the_largest_square_product() -> None:
    def product(m: int, n: int, k: int, **more: str) -> dict[str, str]:
        return {"op": "gemm", "format": "bf16", "m": str(m), "n": str(n), "k": str(k), "us": "9", **more}

    rows = [
        product(4096, 4096, 4096), product(8192, 4096, 4096), product(65536, 4096, 4096),
        product(16384, 8192, 8192, format="fp8"), product(16384, 8192, 8192, direction="backward", variant="wgrad"),
        product(16384, 8192, 8192, us=""),
        {"op": "copy", "bytes": "4096", "us": "1"}, {"op": "copy", "bytes": "8192", "variant": "memcpy", "us": "3"},
        {"op": "copy", "bytes": "8192", "us": "2"},
        {"op": "mhc_post", "n_tokens": "9", "hidden": "4096", "n_streams": "4", "us": "5"},
        {"op": "mhc_post", "n_tokens": "8", "hidden": "7168", "n_streams": "4", "us": "7"},
    ]  # fmt: skip
    found = named_rates(rows)
    assert found.gemm is not None and found.gemm.case["m"] == "8192" and found.gemm.seconds == pytest.approx(9e-6)
    assert found.copy is not None and (found.copy.case["bytes"], found.copy.seconds) == ("8192", pytest.approx(2e-6))
    streams = named_rates([row for row in rows if row["op"] == "mhc_post"])
    assert streams.gemm is None and streams.copy is not None and streams.copy.case["hidden"] == "7168"
