"""Attention: FLOPs and bytes by hand, and the laws that its time obeys whatever the coefficients."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.attention import visible_pairs
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Memory, Num

TILED = KernelFit(
    coefficients={
        "kv_tile_elements": 16384.0, "matrix_efficiency": 0.7, "exp_per_s_per_sm": 2.0e10, "overlap_power": 1.8,
        "prologue_tiles": 0.8, "wave_share": 0.7, "tail": 0.4, "passes": 1.5, "token_s": 2e-10, "serial_power": 1.2,
        "floor_s": 1.2e-5,
    },
    low=0.9, high=1.1, provenance="fitted",
)  # fmt: skip
DECODE = KernelFit(
    coefficients={
        "efficiency": 0.89, "l2_share": 0.4, "l2_bytes_per_s": 1.3e13, "shared_group": 32.0, "split_share": 0.25,
        "chunk_tokens": 320.0, "program_bytes_per_s": 5e10, "program_s": 3.8e-6, "light_program_s": 1.2e-6,
        "row_s": 5.6e-12, "drain_s": 1.5e-5, "light_drain_s": 5e-6, "overlap_power": 2.2, "floor_s": 8e-6,
    },
    low=0.8, high=1.4, provenance="fitted",
)  # fmt: skip
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6,
    power_w=700.0, price_usd_per_h=2.0, kernels={"attention_forward": TILED, "attention_decode": DECODE},
    memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
CLUSTER = Cluster(name="one", device=H100, n_devices=1.0, tiers={})
BANDWIDTH, PEAKS = "device.memories.hbm.bandwidth_bytes_per_s", "device.peak_flops_per_s.bf16"

shapes = st.fixed_dictionaries({
    "batch": st.integers(1, 256), "kv_heads": st.integers(1, 64), "group": st.sampled_from([1, 2, 8, 16, 64]),
    "q_len": st.integers(1, 20000), "more": st.sampled_from([0, 1, 128, 5000]),
    "head_dim": st.sampled_from([64, 72, 128, 192, 256]), "v_head_dim": st.sampled_from([64, 128, 256]),
    "causal": st.sampled_from([0.0, 1.0]),
})  # fmt: skip
variants = st.sampled_from(["forward", "backward"])


def make(drawn: dict) -> dict[str, Num]:
    shape = {name: float(value) for name, value in drawn.items() if name not in ("group", "more")}
    return {**shape, "heads": shape["kv_heads"] * drawn["group"], "kv_len": shape["q_len"] + drawn["more"]}


def time(shape: dict[str, Num], variant: str = "forward", cluster: Cluster = CLUSTER) -> Estimate:
    return estimate(operator("attention", "a", "bf16", shape, variant=variant), cluster)


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 7), (5, 5), (3, 8), (8, 3)])
def test_visible_pairs_are_those_of_the_mask(q_len: int, kv_len: int) -> None:
    """The last query is aligned with the last key; earlier queries without any key see none."""
    mask = [key <= query + kv_len - q_len for query, key in itertools.product(range(q_len), range(kv_len))]
    assert visible_pairs(q_len, kv_len, 1.0) == sum(mask)
    assert visible_pairs(q_len, kv_len, 0.0) == q_len * kv_len


def test_flops_and_bytes_of_a_small_case_by_hand() -> None:
    shape = {"batch": 2.0, "heads": 4.0, "kv_heads": 2.0, "q_len": 3.0, "kv_len": 3.0, "head_dim": 192.0,
             "v_head_dim": 128.0, "causal": 1.0}  # fmt: skip
    forward = operator("attention", "a", "bf16", shape, variant="forward")
    assert forward.flops == 2 * 2 * 4 * 6 * (192 + 128)
    assert forward.traffic_bytes["hbm"] == 2 * (2 * 4 * 3 * (192 + 128) + 2 * 2 * 3 * (192 + 128))
    backward = operator("attention", "a", "bf16", shape, variant="backward")
    assert backward.flops == 2 * 2 * 4 * 6 * (3 * 192 + 2 * 128)


def test_backward_is_two_and_a_half_times_forward_when_the_widths_agree() -> None:
    shape = {"batch": 1.0, "heads": 8.0, "q_len": 4096.0, "kv_len": 4096.0, "head_dim": 128.0}
    forward = operator("attention", "a", "bf16", shape, variant="forward")
    backward = operator("attention", "a", "bf16", shape, variant="backward")
    assert backward.flops == 2.5 * forward.flops
    assert backward.traffic_bytes["hbm"] > 2 * forward.traffic_bytes["hbm"]


@given(shapes, variants)
def test_never_below_the_datasheet(drawn: dict, variant: str) -> None:
    """Math at the dense peak; HBM at line rate for what the L2 cannot have kept."""
    shape = make(drawn)
    op = operator("attention", "a", "bf16", shape, variant=variant)
    found = estimate(op, CLUSTER)
    assert np.isfinite(found.seconds)
    assert found.seconds > op.flops / 989e12
    assert found.seconds > (op.traffic_bytes["hbm"] - H100.l2_bytes) / 3.35e12
    assert found.low <= found.seconds <= found.high


@given(shapes, variants, st.floats(1.0, 4.0))
def test_faster_memory_and_faster_math_never_slow_it(drawn: dict, variant: str, factor: float) -> None:
    shape = make(drawn)
    seconds = time(shape, variant).seconds * (1 + 1e-12)
    assert time(shape, variant, paths.put(CLUSTER, BANDWIDTH, 3.35e12 * factor)).seconds <= seconds
    assert time(shape, variant, paths.put(CLUSTER, PEAKS, 989e12 * factor)).seconds <= seconds


@settings(max_examples=200)
@given(shapes, variants, st.sampled_from(["batch", "heads", "both"]), st.sampled_from([2.0, 3.0]))
def test_more_work_never_faster(drawn: dict, variant: str, name: str, factor: float) -> None:
    """More requests, heads (each with keys of its own), or a longer sequence on both sides."""
    shape = make({**drawn, "more": 0})
    more = dict(shape)
    for key in {"heads": ("heads", "kv_heads"), "both": ("q_len", "kv_len")}.get(name, (name,)):
        more[key] = shape[key] * factor
    assert time(more, variant).seconds >= time(shape, variant).seconds * (1 - 1e-12)


@given(shapes, variants, st.sampled_from([2.0, 3.0]))
def test_wider_heads_never_faster_once_tiles_are_full(drawn: dict, variant: str, factor: float) -> None:
    """On short sequences they can be, in kernels and here: narrow heads walk over keys in longer strides."""
    shape = make({**drawn, "more": 0, "q_len": 4096, "v_head_dim": drawn["head_dim"]})
    wide = {**shape, "head_dim": shape["head_dim"] * factor, "v_head_dim": shape["v_head_dim"] * factor}
    assert time(wide, variant).seconds >= time(shape, variant).seconds * (1 - 1e-12)


@given(shapes, st.sampled_from([2.0, 3.0]))
def test_a_longer_cache_never_faster(drawn: dict, factor: float) -> None:
    """Up to a thousandth: a longer cache may be split into parts that fill the SMs a little better."""
    shape = make({**drawn, "q_len": 1, "more": max(drawn["more"], 1), "v_head_dim": drawn["head_dim"]})
    assert time({**shape, "kv_len": shape["kv_len"] * factor}).seconds >= time(shape).seconds * (1 - 1e-3)


def test_an_array_across_decode_and_prefill_is_its_scalars() -> None:
    rng = np.random.default_rng(0)
    n = 300
    shape = {
        "batch": rng.integers(1, 64, n) * 1.0, "heads": np.full(n, 32.0), "kv_heads": rng.choice([1.0, 8.0, 32.0], n),
        "q_len": rng.choice([1.0, 4.0, 128.0, 3000.0], n), "kv_len": rng.choice([3000.0, 8192.0], n),
        "head_dim": rng.choice([64.0, 128.0, 192.0], n), "v_head_dim": np.full(n, 128.0),
        "causal": rng.choice([0.0, 1.0], n),
    }  # fmt: skip
    whole = time(shape)
    singles = [time({name: float(values[i]) for name, values in shape.items()}) for i in range(n)]
    for part in ("seconds", "low", "high"):
        assert np.allclose(getattr(whole, part), [getattr(one, part) for one in singles], rtol=1e-12)
    assert list(whole.bound) == [str(one.bound) for one in singles]


def test_an_unmeasured_backward_says_so_and_widens_its_interval() -> None:
    shape = {"batch": 1.0, "heads": 16.0, "q_len": 4096.0, "kv_len": 4096.0, "head_dim": 128.0}
    guess = time(shape, "backward")
    assert guess.provenance == "assumed"
    assert guess.low == pytest.approx(guess.seconds * TILED.low * 0.7)
    assert guess.high == pytest.approx(guess.seconds * TILED.high * 1.6)
    measured = replace(H100, kernels={**H100.kernels, "attention_backward": TILED})
    assert time(shape, "backward", replace(CLUSTER, device=measured)).provenance == "fitted"


def test_long_decode_streams_the_cache_and_long_prefill_computes() -> None:
    shape = {"batch": 64.0, "heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0, "q_len": 1.0, "kv_len": 32768.0}
    assert str(time(shape).bound) == "memory"
    assert str(time({**shape, "batch": 1.0, "q_len": 32768.0}).bound) == "math"
