"""Sparse parameters between experts and tables: the paper's counts, equal totals, what cannot be divided."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.workloads import allocation, parameters
from sextant.workloads.models import model
from sextant.workloads.ops import engram
from sextant.workloads.sizes import sparse_parameters

FRACTIONS = np.linspace(0.0, 0.6, 61)
BUDGETS = ("engram-5.7b", "engram-9.9b", "engram-27b")
#: The paper's Table 5 has rows in multiples of half its vocabulary: 17.5 and 56 vocabularies.
HALF_VOCABULARY = 129280 / 2


def at(name, fraction, given=None):
    return allocation.allocated(replace(model(name), engram_fraction=fraction), given)


def test_engram_27b_has_the_published_share():
    """Table 5: 74.3%."""
    assert round(100 * float(allocation.rho(model("engram-27b"))), 1) == 74.3
    assert allocation.rho(model("moe-27b")) == 1.0


def test_engram_27b_follows_from_moe_27b():
    """At the parameters of MoE-27B 74.3% leave 55 experts and, rounded as the paper rounds, 2,262,400 rows."""
    pure = model("moe-27b")
    found = at("engram-27b", 1.0 - 0.743, allocation.budget(pure))
    assert found.n_routed_experts == 55.0 == model("engram-27b").n_routed_experts
    assert found.engram_rows == pytest.approx(2_262_400, rel=1.5e-3)
    assert round(found.engram_rows / HALF_VOCABULARY) * HALF_VOCABULARY == 2_262_400
    assert model("engram-40b").engram_rows % HALF_VOCABULARY == 0


def test_without_tables_it_is_moe_27b():
    """And what the published pair differs by, 7.75 M parameters, is left over."""
    found, given = at("engram-27b", 0.0), allocation.budget(model("engram-27b"))
    assert found.n_routed_experts == 72.0
    assert parameters.n_parameters(found) == parameters.n_parameters(model("moe-27b"))
    assert 0 < allocation.leftover_parameters(found, given) < 8e6


@pytest.mark.parametrize(
    ("name", "total", "activated", "experts", "at_40"),
    [("5.7b", 5.7e9, 568e6, 106, 46), ("9.9b", 9.9e9, 993e6, 99, 43)],
)
def test_the_published_budgets(name, total, activated, experts, at_40):
    """s3.1: P_tot to one decimal of a billion, P_act to a million, experts at rho = 100% and at about 40%."""
    pure = model(f"moe-{name}")
    assert abs(parameters.backbone_parameters(pure) - total) < 0.05e9
    assert abs(parameters.activated_backbone_parameters(pure) - activated) < 0.5e6
    assert sparse_parameters(pure) == parameters.backbone_parameters(pure) - parameters.activated_backbone_parameters(
        pure
    )
    assert pure.n_routed_experts == experts
    assert at(f"engram-{name}", 0.6).n_routed_experts == at_40
    assert replace(at(f"engram-{name}", 0.0), name=pure.name, engram_rows=pure.engram_rows) == pure


@pytest.mark.parametrize("name", ("5.7b", "9.9b"))
def test_the_shipped_engram_models_are_the_budgets_at_80_percent(name):
    """Their round rows are the least that do not fall short of P_tot, so that rho = 100% has all experts again."""
    ours, pure = model(f"engram-{name}"), model(f"moe-{name}")
    assert at(f"engram-{name}", 0.2, allocation.budget(pure)).n_routed_experts == ours.n_routed_experts
    more = parameters.backbone_parameters(ours) - parameters.backbone_parameters(pure)
    assert 0 <= more < len(ours.engram_layers) * ours.engram_dim


@pytest.mark.parametrize("name", BUDGETS)
def test_parameters_are_equal_up_to_what_is_reported(name):
    """P_tot counted anew, with prime tables; what is left is less than one more row in the largest step of primes."""
    given = allocation.budget(model(name))
    found = at(name, FRACTIONS[1:], given)
    left = allocation.leftover_parameters(found, given)
    for i in (0, 17, 59):
        one = paths.take(found, i)
        primes = sum(engram.prime_rows(one)) * one.engram_dim / engram.n_rows(one)
        nominal = len(one.engram_layers) * engram.table_parameters(one)
        assert parameters.backbone_parameters(one) - nominal + primes + left[i] == given.total
        assert one.engram_rows == engram.prime_rows(one)[0]
    assert np.all(left >= 0) and np.all(left < 1e-4 * given.total)
    assert allocation.leftover_parameters(at(name, 0.0, given), given) < given.expert


@pytest.mark.parametrize("name", BUDGETS)
def test_activated_parameters_change_by_modules_and_routers_alone(name):
    """P_act does not move with rho but by the columns of the routers; any table at all costs the Engram modules."""
    pure, found = at(name, 0.0), at(name, FRACTIONS[1:])
    gone = pure.n_routed_experts - found.n_routed_experts
    routers = parameters.layer_counts(pure)["moe_layer"] * pure.hidden_size * gone
    modules = len(found.engram_layers) * (engram.gate_parameters(found) + found.engram_dim)
    change = parameters.activated_backbone_parameters(found) - parameters.activated_backbone_parameters(pure)
    assert change == pytest.approx(modules - routers)


@pytest.mark.parametrize("name", BUDGETS)
def test_more_tables_mean_fewer_experts(name):
    found = at(name, FRACTIONS[1:])
    steps, rows = np.diff(found.n_routed_experts), np.diff(found.engram_rows)
    assert np.all(steps <= 0) and np.all(rows >= 0)
    assert np.array_equal(steps < 0, rows > 0)
    # Whole experts are rounded down: rho is less than asked for by up to one of them, and more by what the Engram
    # modules take from the tables, and by primes, whose least stands for all of them.
    short = (1.0 - FRACTIONS[1:]) - allocation.rho(found)
    spare = allocation.budget(model(name)).experts - found.num_experts_per_tok
    layers = len(found.engram_layers)
    taken = layers * (engram.gate_parameters(found) + found.engram_dim - engram.table_parameters(found))
    taken = taken + allocation.prime_parameters(found)
    assert np.all(short < 1.0 / spare) and np.all(short > -taken / (sparse_parameters(at(name, 0.0)) - taken))


def test_arrays_are_their_elements():
    many = at("engram-9.9b", FRACTIONS[1:])
    for i in (0, 30, 59):
        assert paths.take(many, i) == at("engram-9.9b", float(FRACTIONS[1:][i]))


def test_the_model_says_the_rest():
    """Nothing but experts, rows and, without tables, layers changes; without a fraction nothing does."""
    base, found = model("engram-27b"), at("engram-27b", 0.3)
    moved = {"n_routed_experts": base.n_routed_experts, "engram_rows": base.engram_rows}
    assert replace(found, **moved) == base
    assert allocation.allocated(base) is base


@pytest.mark.parametrize(
    ("name", "fraction", "message"),
    [
        ("engram-27b", 1.0, "below 1"), ("engram-27b", -0.1, "at least 0"), ("dense-4b", 0.2, "no routed experts"),
        ("moe-27b", 0.2, "no Engram layers"), ("engram-27b", np.array([0.0, 0.2]), "cannot mix 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided(name, fraction, message):
    with pytest.raises(InputError, match=message):
        at(name, fraction)


def test_modules_that_take_more_than_the_fraction_leaves():
    """Gates of 16 layers are dearer than one narrow expert."""
    base = replace(
        model("engram-9.9b"), moe_intermediate_size=64.0, engram_layers=tuple(np.arange(1.0, 17.0)), engram_rows=50.0
    )
    with pytest.raises(InputError, match="smallest tables"):
        allocation.allocated(replace(base, engram_fraction=0.01))


@pytest.mark.parametrize(("low", "high"), [(0, 40), (2, 3), (90, 97), (10**6, 10**6 + 500)])
def test_primes_between_two_numbers(low, high):
    slow = [n for n in range(max(low, 2), high) if all(n % d for d in range(2, int(n**0.5) + 1))]
    assert engram.primes(low, high).tolist() == slow
