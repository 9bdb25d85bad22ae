"""The absorbed latent-attention kernel: both limits at once, and never below either."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Memory, Num

BLOCK = KernelFit(
    coefficients={
        "memory_efficiency": 0.906, "matrix_efficiency": 0.659, "overlap_power": 10.0, "program_s": 2.7e-6,
        "row_passes": 1.87, "chunk_tokens": 176.0, "program_bytes_per_s": 5.15e10, "split_passes": 1.53,
        "floor_s": 1.15e-5,
    },
    low=0.87, high=1.17, provenance="fitted",
)  # fmt: skip
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6,
    power_w=700.0, price_usd_per_h=2.0, kernels={"mla": BLOCK},
    memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
CLUSTER = Cluster(name="one", device=H100, n_devices=1.0, tiers={})
BANDWIDTH, PEAKS = "device.memories.hbm.bandwidth_bytes_per_s", "device.peak_flops_per_s.bf16"

cases = st.tuples(
    st.integers(1, 2048), st.sampled_from([1, 4, 16, 64, 128]), st.integers(1, 2), st.integers(1, 200_000)
)


def shape(batch: Num, heads: Num, q_len: Num, kv_len: Num) -> dict[str, Num]:
    named = {"batch": batch, "heads": heads, "q_len": q_len, "kv_len": kv_len}
    return {**{k: np.asarray(v, dtype=float)[()] for k, v in named.items()},
            "kv_lora_rank": 512.0, "qk_rope_head_dim": 64.0}  # fmt: skip


def time(case: tuple, cluster: Cluster = CLUSTER) -> Estimate:
    return estimate(operator("mla", "mla", "bf16", shape(*case), variant="decode"), cluster)


def test_flops_and_bytes_by_hand() -> None:
    """2 FLOPs x 128 heads x 4096 tokens x (576 for the scores + 512 for the values); 576 values of 2 bytes a token."""
    op = operator("mla", "mla", "bf16", shape(3, 128, 1, 4096), variant="decode")
    assert op.flops == 2 * 3 * 128 * 4096 * (576 + 512)
    assert op.traffic_bytes["hbm"] == 2 * 3 * (4096 * 576 + 128 * (576 + 512))


@given(cases)
def test_never_below_the_datasheet(case: tuple) -> None:
    op = operator("mla", "mla", "bf16", shape(*case), variant="decode")
    seconds = estimate(op, CLUSTER).seconds
    assert np.isfinite(seconds)
    assert seconds > op.flops / 989e12
    assert seconds > op.traffic_bytes["hbm"] / 3.35e12


@given(cases, st.floats(1.0, 4.0))
def test_faster_memory_and_faster_math_never_slow_it(case: tuple, factor: float) -> None:
    seconds = time(case).seconds * (1 + 1e-12)
    assert time(case, paths.put(CLUSTER, BANDWIDTH, 3.35e12 * factor)).seconds <= seconds
    assert time(case, paths.put(CLUSTER, PEAKS, 989e12 * factor)).seconds <= seconds


@settings(max_examples=300)
@given(cases, st.integers(0, 3), st.sampled_from([1, 7, 100]))
def test_more_requests_heads_queries_or_tokens_never_faster(case: tuple, which: int, more: int) -> None:
    larger = tuple(value + more if i == which else value for i, value in enumerate(case))
    assert time(larger).seconds >= time(case).seconds * (1 - 1e-12)


def test_an_array_is_its_scalars() -> None:
    rng = np.random.default_rng(1)
    columns = [rng.integers(1, high, 200) for high in (512, 129, 3, 100_000)]
    whole = time(tuple(columns))
    singles = [time(tuple(int(column[i]) for column in columns)) for i in range(200)]
    assert np.allclose(whole.seconds, [one.seconds for one in singles], rtol=1e-12)
    assert list(whole.bound) == [str(one.bound) for one in singles]


def test_all_heads_of_one_instruction_cost_the_same_product() -> None:
    one, full = time((256, 1, 1, 8192)), time((256, 64, 1, 8192))
    assert one.limits["math"] == full.limits["math"]
    assert time((256, 65, 1, 8192)).limits["math"] == 2 * full.limits["math"]


def test_few_heads_wait_for_memory_and_two_queries_of_all_heads_for_math() -> None:
    assert str(time((128, 16, 1, 8192)).bound) == "memory"
    assert str(time((128, 128, 2, 8192)).bound) == "math"
    rate = 128 * 128 * 2 * 8192 * 2 * 1088 / time((128, 128, 2, 8192)).seconds
    assert rate == pytest.approx(0.64 * 989e12, rel=0.05)
