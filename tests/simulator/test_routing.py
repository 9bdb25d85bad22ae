"""Where a token goes: the exact law beside counted choices, and beside a router that ranks drawn scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from sextant.simulator.kernels.routing import destinations, distinct, occupancy

V3 = {"n_experts": 256.0, "top_k": 8.0, "n_group": 8.0, "topk_group": 4.0, "n_gpus_per_node": 8.0}
V2 = {"n_experts": 160.0, "top_k": 6.0, "n_group": 8.0, "topk_group": 3.0, "n_gpus_per_node": 8.0}
FREE = {"n_experts": 128.0, "top_k": 8.0, "n_gpus_per_node": 8.0}
N_DRAWS = 20_000


def routed(shape: dict[str, float], best: int, seed: int = 0) -> NDArray[np.int64]:
    """Experts that a router chooses for drawn scores, shape (N_DRAWS, top_k); it ranks groups by the sum of the
    sigmoid scores of their ``best`` best experts."""
    rng = np.random.default_rng(seed)
    n_group, limit, top_k = int(shape.get("n_group", 1)), int(shape.get("topk_group", 1)), int(shape["top_k"])
    scores = 1 / (1 + np.exp(-rng.standard_normal((N_DRAWS, n_group, int(shape["n_experts"]) // n_group))))
    of_groups = np.sort(scores, axis=-1)[..., -best:].sum(axis=-1)
    kept = np.zeros((N_DRAWS, n_group), bool)
    np.put_along_axis(kept, np.argsort(-of_groups, axis=1)[:, :limit], True, axis=1)
    masked = np.where(kept[..., None], scores, -1.0).reshape(N_DRAWS, -1)
    return np.argsort(-masked, axis=1)[:, :top_k]


def counted(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distinct values in each row."""
    ordered = np.sort(bins, axis=1)
    return 1.0 + (np.diff(ordered, axis=1) > 0).sum(axis=1)


@pytest.mark.parametrize(("n_choices", "n_items", "n_bins"), [(1, 6, 3), (2, 6, 3), (4, 8, 2), (5, 8, 4), (3, 4, 4)])
def test_distinct_is_the_mean_over_every_choice(n_choices: int, n_items: int, n_bins: int) -> None:
    per_bin = n_items // n_bins
    hits = [len({i // per_bin for i in choice}) for choice in itertools.combinations(range(n_items), n_choices)]
    assert distinct(float(n_choices), float(n_items), float(n_bins)) == pytest.approx(np.mean(hits), rel=1e-10)


@pytest.mark.parametrize(
    ("n_group", "limit", "size", "top_k"), [(3, 2, 2, 3), (4, 2, 2, 2), (2, 2, 3, 4), (4, 1, 2, 2)]
)
def test_occupancy_is_the_mean_over_every_ranking(n_group: int, limit: int, size: int, top_k: int) -> None:
    """Every order of all experts, each as likely: the router keeps the groups it meets first."""
    holding, used = np.zeros(top_k + 1), 0.0
    orders = list(itertools.permutations(range(n_group * size)))
    for order in orders:
        groups = [i // size for i in order]
        kept = list(dict.fromkeys(groups))[:limit]
        chosen = [g for g in groups if g in kept][:top_k]
        counts = [chosen.count(g) for g in range(n_group)]
        used += sum(c > 0 for c in counts) / len(orders)
        for c in counts:
            holding[c] += 1 / len(orders)
    found = occupancy(n_group, limit, float(size), top_k)
    assert found.mean_used == pytest.approx(used, abs=1e-9)
    assert found.holding[1] == pytest.approx(holding, abs=1e-9)


@pytest.mark.parametrize("n_gpus", [8, 16, 32, 64, 128, 256])
def test_destinations_of_deepseek_v3_at_every_degree(n_gpus: int) -> None:
    """Groups of 32 experts over 1 to 32 nodes: several groups on a node, one, or a group over several."""
    for best, bias in ((1, 0.0), (2, 0.006)):
        experts = routed(V3, best, seed=n_gpus)
        found = destinations({**V3, "n_gpus": float(n_gpus)})
        for mean, n_bins in zip(found, (n_gpus // 8, n_gpus), strict=True):
            seen = counted(experts * n_bins // 256)
            allowed = 4 * np.std(seen) / np.sqrt(N_DRAWS) + 1e-9 + bias * np.mean(seen)
            assert mean == pytest.approx(np.mean(seen), abs=allowed), (best, n_bins)


@pytest.mark.parametrize(("shape", "n_gpus"), [(V2, 16), (V2, 32), (V2, 80), (FREE, 16), (FREE, 64)])
def test_destinations_of_other_routers(shape: dict[str, float], n_gpus: int) -> None:
    experts = routed(shape, 1)
    found = destinations({**shape, "n_gpus": float(n_gpus)})
    for mean, n_bins in zip(found, (n_gpus // 8, n_gpus), strict=True):
        # 160 experts in 8 groups on 10 nodes lie anyhow; the router's groups are then spread by a random placement.
        placed = experts if n_bins != 10 else np.random.default_rng(5).permuted(np.tile(np.arange(160), (N_DRAWS, 1)), axis=1)[np.arange(N_DRAWS)[:, None], experts]  # fmt: skip # noqa: E501
        seen = counted(placed * n_bins // int(shape["n_experts"]))
        assert mean == pytest.approx(np.mean(seen), abs=4 * np.std(seen) / np.sqrt(N_DRAWS) + 1e-9)


@pytest.mark.parametrize(("n_gpus", "redundant"), [(32, 32), (72, 32), (144, 32), (320, 64)])
def test_destinations_with_redundant_experts(n_gpus: int, redundant: int) -> None:
    """EP32: copies stay on the node of their group. Beyond: slots anywhere. The copied experts are drawn, and of two
    copies each token takes either."""
    rng = np.random.default_rng(n_gpus)
    experts = routed(V3, 1)
    n_slots, n_nodes = 256 + redundant, n_gpus // 8
    home = n_nodes if 8 % n_nodes == 0 else 1  # parts of the cluster within which experts are packed
    slot_of = np.zeros((40, 2, 256), int)
    for draw in slot_of:
        for part in range(home):
            mine = np.arange(256 // home) + part * 256 // home
            copied = rng.permutation(mine)[: redundant // home]
            slots = rng.permutation(n_slots // home) + part * n_slots // home
            draw[0, mine] = draw[1, mine] = slots[: len(mine)]
            draw[1, copied] = slots[len(mine) :]
    placement, copy = rng.integers(0, 40, (N_DRAWS, 1)), rng.integers(0, 2, experts.shape)
    slots = slot_of[placement, copy, experts]
    found = destinations({**V3, "n_gpus": float(n_gpus), "n_slots": float(n_slots)})
    for mean, n_bins in zip(found, (n_nodes, n_gpus), strict=True):
        assert mean == pytest.approx(np.mean(counted(slots * n_bins // n_slots)), rel=0.006)


def test_groups_drawn_blindly_reach_fewer_nodes() -> None:
    """A router that looks at scores fills its four nodes; one that draws four groups first leaves some unused."""
    assert occupancy(8, 4, 32.0, 8).mean_used == pytest.approx(3.983, abs=5e-4)
    blind = occupancy(8, 4, 32.0, 8, blind=True)
    assert blind.mean_used == pytest.approx(distinct(8.0, 128.0, 4.0), rel=1e-12)


def test_bounds_and_limits() -> None:
    """Never more nodes than there are, than the limit on groups allows, or than experts; GPUs at least as many."""
    for n_gpus in (1.0, 4.0, 8.0, 24.0, 40.0, 72.0, 512.0):
        nodes, gpus = destinations({**V3, "n_gpus": n_gpus, "n_slots": 512.0})
        assert 1.0 - 1e-9 <= nodes <= gpus + 1e-9 <= 8.0 + 1e-8
    for n_gpus in (16.0, 32.0, 64.0):
        assert destinations({**V3, "n_gpus": n_gpus})[0] <= 4.0
    assert destinations({**V3, "top_k": 1.0, "n_gpus": 64.0}) == pytest.approx((1.0, 1.0))


def test_arrays_are_their_scalars_and_fractions_lie_between() -> None:
    rng = np.random.default_rng(3)
    columns = {
        "top_k": rng.choice([1.0, 6.0, 6.5, 8.0], 60), "n_gpus": rng.choice([8.0, 32.0, 72.0, 128.0], 60),
        "n_group": rng.choice([1.0, 4.0, 8.0], 60), "n_slots": rng.choice([256.0, 288.0], 60),
    }  # fmt: skip
    whole = destinations({**V3, **columns})
    for i in range(60):
        one = destinations({**V3, **{name: float(v[i]) for name, v in columns.items()}})
        assert (np.asarray(whole[0])[i], np.asarray(whole[1])[i]) == (one[0], one[1])
    six, half, seven = (destinations({**V3, "top_k": k, "n_gpus": 64.0})[1] for k in (6.0, 6.5, 7.0))
    assert half == pytest.approx((six + seven) / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.bool_])
def test_many_points_of_another_type_are_the_same_points(dtype) -> None:
    """Equal points are looked for by their bits: those of doubles, whatever is given."""
    shape = {**V3, "n_gpus": 64.0, "n_gpus_per_node": 8.0}
    values = (np.arange(600) % 3).astype(dtype)
    found = destinations({**shape, "topk_group": 1 + values})
    alone = destinations({**shape, "topk_group": 1.0 + values.astype(float)})
    for one, other in zip(found, alone, strict=True):
        assert np.array_equal(np.broadcast_to(one, (600,)), np.broadcast_to(other, (600,)))
