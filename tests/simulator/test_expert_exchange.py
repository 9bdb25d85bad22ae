"""Expert-parallel exchange: where tokens go under balanced routing, and how long the two hops take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.expert_exchange import hop_bytes
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Link, Memory, Num, Tier

NORMAL = KernelFit(
    coefficients={
        "infiniband_efficiency": 0.96, "nvlink_efficiency": 0.87, "sm_bytes_per_s": 2.2e10, "chunk_s": 2.4e-6,
        "node_copies": 1.7, "combine_copies": 1.35, "dispatch_s": 2.8e-5, "combine_s": 4.8e-5,
        "hop_s": 5.5e-6, "notify_s": 3.1e-5, "notify_hop_s": 2.5e-5,
    },
    low=0.86, high=1.19, provenance="fitted",
)  # fmt: skip
FAST = KernelFit(
    coefficients={
        "infiniband_efficiency": 0.94, "nvlink_efficiency": 0.87, "dispatch_copy_bytes_per_s": 6e11,
        "combine_copy_bytes_per_s": 4.8e11,
        "dispatch_s": 1.3e-5, "combine_s": 1.3e-5, "node_s": 8.6e-6, "hop_s": 2.6e-6,
    },
    low=0.97, high=1.09, provenance="fitted",
)  # fmt: skip
DEVICE = Device(
    name="h800", peak_flops_per_s={"bf16": 989e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6, power_w=700.0,
    price_usd_per_h=2.0, kernels={
        "expert_exchange": NORMAL, "expert_exchange_low_latency": FAST,
        "expert_exchange_2025_02": replace(NORMAL, coefficients={**NORMAL.coefficients, "overlap": 2.4}),
    },
    memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
NVLINK, INFINIBAND = 200e9, 50e9
CLUSTER = Cluster(
    name="h800", device=DEVICE, n_devices=2048.0,
    tiers={
        "nvlink": Tier(n_devices=8.0, link=Link(bandwidth_bytes_per_s=NVLINK, latency_s=1e-6)),
        "infiniband": Tier(n_devices=256.0, link=Link(bandwidth_bytes_per_s=INFINIBAND, latency_s=3.7e-6)),
    },
)  # fmt: skip
V3 = {"hidden": 7168.0, "top_k": 8.0, "n_experts": 256.0, "n_gpus_per_node": 8.0, "n_group": 8.0, "topk_group": 4.0}

cases = st.fixed_dictionaries({
    "n_tokens": st.integers(1, 16384).map(float), "n_gpus": st.sampled_from([2.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
    "mode": st.sampled_from([0.0, 1.0]), "notify": st.sampled_from([0.0, 1.0]), "first": st.sampled_from([0.0, 1.0]),
})  # fmt: skip
variants = st.sampled_from([("dispatch", "fp8_block"), ("combine", "bf16")])


def time(case: dict[str, Num], variant: tuple[str, str], cluster: Cluster = CLUSTER) -> Estimate:
    name, fmt = variant
    return estimate(operator("expert_exchange", name, fmt, {**V3, **case}, variant=name), cluster)


def test_one_node_sends_nothing_over_infiniband_and_low_latency_repeats_tokens() -> None:
    one_node = {**V3, "n_gpus": 8.0, "n_tokens": 4096.0}
    assert hop_bytes(one_node, "bf16")[0] == 0
    normal = hop_bytes({**V3, "n_gpus": 64.0, "n_tokens": 128.0}, "bf16")[0]
    direct = hop_bytes({**V3, "n_gpus": 64.0, "n_tokens": 128.0, "mode": 1.0}, "bf16")[0]
    assert direct == pytest.approx(128 * 8 * 7168 * 2 * 7 / 8)
    assert normal < direct / 2


def test_the_limit_on_nodes_caps_infiniband_traffic() -> None:
    free = hop_bytes({**V3, "n_gpus": 64.0, "n_tokens": 1.0, "topk_group": 8.0}, "bf16")[0]
    capped = hop_bytes({**V3, "n_gpus": 64.0, "n_tokens": 1.0}, "bf16")[0]
    assert capped < free
    assert capped <= 4 * 7168 * 2


@given(cases, variants)
def test_never_below_the_line_rate(case: dict, variant: tuple[str, str]) -> None:
    infiniband, nvlink = hop_bytes({**V3, **case}, variant[1])
    seconds = time(case, variant).seconds
    assert np.isfinite(seconds)
    assert seconds > max(infiniband / INFINIBAND, nvlink / NVLINK)


@given(cases, variants, st.floats(1.0, 5.0))
def test_more_tokens_never_faster_and_faster_links_never_slower(case: dict, variant: tuple, factor: float) -> None:
    seconds = time(case, variant).seconds
    assert time({**case, "n_tokens": case["n_tokens"] * factor}, variant).seconds >= seconds
    assert time({**case, "hidden": 7168.0 * factor}, variant).seconds >= seconds
    for tier, rate in (("nvlink", NVLINK), ("infiniband", INFINIBAND)):
        faster = paths.put(CLUSTER, f"tiers.{tier}.link.bandwidth_bytes_per_s", rate * factor)
        assert time(case, variant, faster).seconds <= seconds


def test_an_array_across_modes_and_degrees_is_its_scalars() -> None:
    rng = np.random.default_rng(3)
    n = 200
    case = {
        "n_tokens": rng.integers(1, 8192, n) * 1.0, "n_gpus": rng.choice([1.0, 4.0, 8.0, 16.0, 64.0, 320.0], n),
        "mode": rng.choice([0.0, 1.0], n),
    }  # fmt: skip
    for variant in (("dispatch", "fp8_block"), ("combine", "bf16")):
        whole = time(case, variant)
        singles = [time({k: float(v[i]) for k, v in case.items()}, variant) for i in range(n)]
        assert np.allclose(whole.seconds, [one.seconds for one in singles], rtol=1e-12)
        assert np.allclose(whole.high, [one.high for one in singles], rtol=1e-12)
        assert np.all((np.asarray(whole.seconds) == 0) == (case["n_gpus"] == 1))


def test_more_sms_help_until_a_link_decides() -> None:
    dispatch = ("dispatch", "fp8_block")
    few, many, all_ = (time({"n_tokens": 4096.0, "n_gpus": 32.0, "n_sms": n}, dispatch) for n in (4.0, 20.0, 132.0))
    assert few.seconds > many.seconds
    assert many.seconds == all_.seconds
    assert str(few.bound) == "memory"
    assert str(many.bound) == "link"


@given(cases, variants)
def test_the_first_version_was_slower_between_nodes_and_the_same_within_one(case: dict, variant: tuple) -> None:
    """Its low-latency messages went over InfiniBand within a node too."""
    first, later = (time({**case, "first": which}, variant).seconds for which in (1.0, 0.0))
    if case["n_gpus"] <= 8 and case["mode"] == 0.0:
        assert first == later
    else:
        assert first >= later
    infiniband, nvlink = hop_bytes({**V3, **case, "first": 1.0, "mode": 1.0}, variant[1])
    others = 1.0 - 1.0 / case["n_gpus"]
    sent = time({**case, "first": 1.0, "mode": 1.0}, variant)
    assert nvlink == 0.0 and sent.seconds > infiniband / INFINIBAND
    assert infiniband == pytest.approx(hop_bytes({**V3, **case, "n_gpus": 1e12, "mode": 1.0}, variant[1])[0] * others)


def test_an_array_of_the_first_version_is_its_scalars() -> None:
    rng = np.random.default_rng(4)
    case = {"n_tokens": rng.integers(1, 8192, 60) * 1.0, "n_gpus": rng.choice([1.0, 8.0, 16.0, 64.0], 60),
            "mode": rng.choice([0.0, 1.0], 60), "first": rng.choice([0.0, 1.0], 60)}  # fmt: skip
    whole = time(case, ("combine", "bf16"))
    singles = [time({k: float(v[i]) for k, v in case.items()}, ("combine", "bf16")) for i in range(60)]
    for end in ("seconds", "low", "high"):
        assert np.allclose(getattr(whole, end), [getattr(one, end) for one in singles], rtol=1e-12)


def test_waiting_for_sizes_is_added_when_asked_for() -> None:
    case, dispatch = {"n_tokens": 64.0, "n_gpus": 64.0}, ("dispatch", "fp8_block")
    wait = time({**case, "notify": 1.0}, dispatch).seconds - time(case, dispatch).seconds
    assert wait == pytest.approx(3.1e-5 + 2 * 2.5e-5)


def test_a_group_beyond_the_only_tier_and_an_unknown_variant_are_refused() -> None:
    one_tier = paths.put(CLUSTER, "tiers", {"nvlink": CLUSTER.tiers["nvlink"]})
    assert time({"n_tokens": 1.0, "n_gpus": 8.0}, ("dispatch", "bf16"), one_tier).seconds > 0
    with pytest.raises(InputError, match="2 nodes needs two"):
        time({"n_tokens": 1.0, "n_gpus": 16.0}, ("dispatch", "bf16"), one_tier)
    first = {"n_tokens": 1.0, "n_gpus": 8.0, "mode": 1.0, "first": 1.0}
    with pytest.raises(InputError, match="second tier of links, and cluster 'h800' has one; use deepep"):
        time(first, ("dispatch", "bf16"), one_tier)
    assert time({**first, "n_gpus": 1.0}, ("dispatch", "bf16"), one_tier).seconds == 0.0
    with pytest.raises(InputError, match="did you mean 'dispatch'"):
        time({"n_tokens": 1.0, "n_gpus": 8.0}, ("dispatsh", "bf16"))
