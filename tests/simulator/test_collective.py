"""Collectives: the bytes of the hierarchical ring, and a time between latency and line rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import collective, estimate, operator
from sextant.simulator.kernels.algorithms import ALGORITHMS, VARIANTS, plan
from sextant.simulator.kernels.collective import chosen, hop_bytes
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Link, Memory, Num, Tier

BLOCK = KernelFit(
    coefficients={
        "ring_efficiency": 0.86, "direct_efficiency": 0.87, "pair_loss": 0.25, "base_s": 4.5e-6, "step_s": 8.3e-7,
        "chunk_s": 2.5e-6, "setup_s": 3e-6, "setup_bytes": 3e3,
    },
    low=0.88, high=1.16, provenance="fitted",
)  # fmt: skip
DEVICE = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6, power_w=700.0,
    price_usd_per_h=2.0, kernels={"collective": BLOCK},
    memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
RATES = {"nvlink": 450e9, "infiniband": 50e9}
CLUSTER = Cluster(
    name="h100", device=DEVICE, n_devices=256.0,
    tiers={
        "nvlink": Tier(n_devices=8.0, link=Link(bandwidth_bytes_per_s=450e9, latency_s=1e-6)),
        "infiniband": Tier(n_devices=32.0, link=Link(bandwidth_bytes_per_s=50e9, latency_s=3.7e-6, efficiency=0.8)),
    },
)  # fmt: skip
groups = st.sampled_from([2.0, 4.0, 8.0, 16.0, 64.0, 256.0])
sizes = st.floats(1.0, 1e10)
kinds = st.sampled_from(VARIANTS)


def time(variant: str, n_gpus: Num, message_bytes: Num, cluster: Cluster = CLUSTER) -> Estimate:
    return estimate(operator("collective", variant, "bf16", shape(n_gpus, message_bytes), variant=variant), cluster)


def shape(n_gpus: Num, message_bytes: Num) -> dict[str, Num]:
    return {"n_gpus": n_gpus, "n_gpus_per_node": 8.0, "message_bytes": message_bytes}


def test_bytes_of_rings_by_hand() -> None:
    """8 ranks, 800 bytes: each sends 7 parts of 100. Two nodes: also half of its own part over the network."""
    assert hop_bytes(shape(8.0, 800.0), "all_gather") == (700.0, 0.0)
    assert hop_bytes(shape(8.0, 800.0), "all_reduce") == (1400.0, 0.0)
    assert hop_bytes(shape(16.0, 1600.0), "all_gather") == (1400.0, 100.0)
    assert hop_bytes(shape(16.0, 1600.0), "all_to_all") == (700.0, 800.0)


@given(kinds, groups, sizes)
def test_never_below_the_line_rate_and_all_reduce_is_its_two_halves(variant: str, n_gpus: float, size: float) -> None:
    inner, outer = hop_bytes(shape(n_gpus, size), variant)
    seconds = time(variant, n_gpus, size).seconds
    assert np.isfinite(seconds)
    assert seconds > max(inner / RATES["nvlink"], outer / RATES["infiniband"])
    halves = [hop_bytes(shape(n_gpus, size), half) for half in ("reduce_scatter", "all_gather")]
    assert np.allclose(np.sum(halves, axis=0), hop_bytes(shape(n_gpus, size), "all_reduce"))


@given(kinds, groups, sizes, st.floats(1.0, 10.0))
def test_more_bytes_never_faster_and_faster_links_never_slower(
    variant: str, n_gpus: float, size: float, factor: float
) -> None:
    seconds = time(variant, n_gpus, size).seconds
    assert time(variant, n_gpus, size * factor).seconds >= seconds
    for tier, rate in RATES.items():
        faster = paths.put(CLUSTER, f"tiers.{tier}.link.bandwidth_bytes_per_s", rate * factor)
        assert time(variant, n_gpus, size, faster).seconds <= seconds


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_array_is_its_scalars_and_one_rank_needs_no_time(variant: str) -> None:
    rng = np.random.default_rng(4)
    n_gpus, size = rng.choice([1.0, 2.0, 8.0, 32.0], 100), 10 ** rng.uniform(0, 10, 100)
    whole = time(variant, n_gpus, size)
    singles = [time(variant, float(n), float(s)) for n, s in zip(n_gpus, size, strict=True)]
    assert np.allclose(whole.seconds, [one.seconds for one in singles], rtol=1e-12)
    assert np.allclose(whole.high, [one.high for one in singles], rtol=1e-12)
    assert np.all((np.asarray(whole.seconds) == 0) == (n_gpus == 1))


def test_small_messages_wait_for_latency_and_large_ones_for_the_link() -> None:
    assert str(time("all_reduce", 8.0, 1024.0).bound) == "launch"
    assert str(time("all_reduce", 8.0, 1e9).bound) == "link"
    assert time("all_reduce", 8.0, 1024.0).seconds > time("all_reduce", 2.0, 1024.0).seconds


def test_unmeasured_groups_across_nodes_are_marked_and_wider() -> None:
    inside, across = time("all_gather", 8.0, 1e8), time("all_gather", 16.0, 1e8)
    assert (inside.provenance, across.provenance) == ("fitted", "published")
    assert across.high / across.seconds > inside.high / inside.seconds


def test_a_group_beyond_the_only_tier_and_an_unknown_variant_are_refused() -> None:
    one_tier = paths.put(CLUSTER, "tiers", {"nvlink": CLUSTER.tiers["nvlink"]})
    with pytest.raises(InputError, match="2 nodes needs two"):
        time("all_gather", 16.0, 1.0, one_tier)
    with pytest.raises(InputError, match="did you mean 'all_gather'"):
        time("allgather", 8.0, 1.0)


SWITCHING = paths.put(
    CLUSTER, "device.kernels.collective.coefficients",
    {**BLOCK.coefficients, "switch_efficiency": 0.7, "switch_s": 3e-5},
)  # fmt: skip


def op(variant: str, n_gpus: Num, message_bytes: Num, format: str = "bf16"):
    return operator("collective", variant, format, shape(n_gpus, message_bytes), variant=variant)


@given(kinds, groups, sizes)
def test_the_fastest_algorithm_is_taken(variant: str, n_gpus: float, size: float) -> None:
    asked = op(variant, n_gpus, size)
    times = {name: collective.estimate(asked, SWITCHING, name).seconds for name in ALGORITHMS[variant]}
    assert estimate(asked, SWITCHING).seconds == min(times.values())
    assert times[str(chosen(asked, SWITCHING))] == min(times.values())


@given(kinds, groups, sizes)
def test_no_rank_sends_less_than_it_must(variant: str, n_gpus: float, size: float) -> None:
    """Lower bounds that hold for any algorithm without additions in the network: (n - 1) / n of the buffer a turn."""
    for name in ALGORITHMS[variant]:
        moved = plan(shape(n_gpus, size), variant, name)
        if name in ("hierarchical", "ring", "tree") and variant != "broadcast":
            turns = 2.0 if variant == "all_reduce" else 1.0
            assert moved.inner_bytes + moved.outer_bytes >= turns * size * (1 - 1 / n_gpus) * (1 - 1e-12)


@given(st.sampled_from([2.0, 4.0, 8.0]), sizes)
def test_a_broadcast_in_a_node_passes_every_link_whole(n_gpus: float, size: float) -> None:
    for name in ALGORITHMS["broadcast"]:
        assert plan(shape(n_gpus, size), "broadcast", name).inner_bytes == size


def test_plans_by_hand() -> None:
    """Two nodes of eight, 1,600 bytes: a ring sends 15 / 16 of them, an eighth of that over the card; trees send all
    up and down; switches take the buffer once and give back an eighth."""
    two = shape(16.0, 1600.0)
    ring, tree = plan(two, "all_gather", "ring"), plan(two, "all_reduce", "tree")
    assert (ring.inner_bytes, ring.outer_bytes, ring.inner_steps, ring.outer_steps) == (1312.5, 187.5, 14.0, 1.0)
    assert (tree.inner_bytes, tree.outer_bytes, tree.inner_steps, tree.outer_steps) == (3200.0, 400.0, 14.0, 2.0)
    assert plan(shape(8.0, 800.0), "all_reduce", "switch").inner_bytes == 900.0
    assert np.isinf(plan(two, "all_reduce", "switch").inner_bytes)


def test_trees_win_for_small_messages_over_many_nodes_and_switches_for_large_ones_in_a_node() -> None:
    ring, tree = (collective.estimate(op("all_reduce", 256.0, 1e3), CLUSTER, name).seconds for name in ("ring", "tree"))
    assert tree < ring
    ring, tree = (
        collective.estimate(op("all_reduce", 256.0, 1e11), CLUSTER, name).seconds for name in ("ring", "tree")
    )
    assert ring < tree
    assert list(chosen(op("all_reduce", 8.0, np.array([1e4, 1e9])), SWITCHING)) == ["hierarchical", "switch"]
    # Switches add no integers, and nothing is assumed of them where they were not measured.
    assert str(chosen(op("all_reduce", 8.0, 1e9, "int8"), SWITCHING)) == "hierarchical"
    assert "switch" not in collective.choices(op("all_reduce", 8.0, 1e9), CLUSTER)


def test_an_algorithm_that_cannot_run_is_refused() -> None:
    with pytest.raises(InputError, match="all_to_all: no algorithm 'ring'"):
        collective.estimate(op("all_to_all", 8.0, 1.0), CLUSTER, "ring")
