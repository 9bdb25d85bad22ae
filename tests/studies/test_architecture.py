"""Shapes at equal parameters, and which of them none beats."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.errors import InputError
from sextant.studies import answer, report, tables
from sextant.studies.architecture_report import own
from sextant.studies.pareto import unbeaten
from sextant.workloads import allocation, parameters, shapes
from sextant.workloads.models import model

E27 = model("engram-27b")
FEW = [
    "axes.model.engram_fraction=[0.0, 0.257, 0.4]", "axes.model.n_streams=[1, 4]",
    "axes.model.num_hidden_layers=[20, 30]", "axes.model.num_experts_per_tok=[6]",
]  # fmt: skip


@pytest.fixture(scope="module")
def found():
    asked = answer.question("architecture_27b", FEW)
    return report.Answer(question=asked, result=answer.answer(asked))


@pytest.mark.parametrize("layers", [20.0, 30.0, 42.0])
@pytest.mark.parametrize("top", [3.0, 6.0, 12.0])
@pytest.mark.parametrize("fraction", [0.0, 0.257, 0.5])
def test_every_shape_has_the_parameters_of_the_model(layers, top, fraction):
    """P_tot up to what whole experts leave (all of it becomes rows where there are tables), P_act up to the step of a
    width and the routers' columns for other numbers of experts."""
    given = replace(E27, num_hidden_layers=layers, num_experts_per_tok=top, engram_fraction=fraction)
    made = shapes.reshaped(given, E27)
    total = parameters.backbone_parameters(E27)
    missing = total - parameters.backbone_parameters(made)
    one = 3 * made.hidden_size * made.moe_intermediate_size * (layers - 1)
    assert 0 <= missing < (1.001 * one if fraction == 0 else 1e-3 * total)
    step = 3 * made.hidden_size * shapes.WIDTH_STEP * (layers - 1) * (top + made.n_shared_experts)
    used = [parameters.activated_backbone_parameters(each) for each in (made, E27)]
    routers = made.hidden_size * abs(made.n_routed_experts - E27.n_routed_experts) * (layers - 1)
    assert abs(used[0] - used[1]) <= (step / 2 + routers) * (1 + 1e-9)
    assert bool(made.engram_layers) == (fraction > 0)


def test_the_model_itself_is_one_of_its_shapes():
    """At its own fraction, depth, streams and grain: its 55 experts and width; rows but for the primes' excess."""
    fraction = 1.0 - float(allocation.rho(E27))
    made = shapes.reshaped(replace(E27, engram_fraction=fraction), E27)
    assert (made.n_routed_experts, made.moe_intermediate_size, made.engram_layers) == (55.0, 1536.0, (2.0, 15.0))
    assert made.engram_rows == pytest.approx(E27.engram_rows, rel=1e-3)


def test_arrays_are_their_scalars():
    fractions = np.array([0.1, 0.257, 0.4])
    whole = shapes.reshaped(replace(E27, engram_fraction=fractions), E27)
    for i, fraction in enumerate(fractions):
        one = shapes.reshaped(replace(E27, engram_fraction=float(fraction)), E27)
        for name in ("n_routed_experts", "engram_rows", "moe_intermediate_size"):
            assert np.broadcast_to(getattr(whole, name), 3)[i] == getattr(one, name)


@given(st.lists(st.tuples(*(3 * [st.integers(0, 5)])), min_size=1, max_size=40))
def test_unbeaten_by_definition(points):
    """A point stays exactly where no other is as good in all and better in one."""
    kept = unbeaten(np.array(points, dtype=float).T)
    for point, stays in zip(points, kept, strict=True):
        beaten = any(all(a <= b for a, b in zip(o, point, strict=True)) and o != point for o in points)
        assert stays == (not beaten)


def test_published_effects_alone_change_the_loss(found):
    """Streams by mHC's published gain, tables by the curve, depth not at all."""
    columns, swept = found.result.columns, found.axis_values()
    loss = columns["loss_change"].reshape(3, 2, 2)
    assert swept["model.n_streams"].reshape(3, 2, 2)[0, :, 0].tolist() == [1.0, 4.0]
    assert loss[0, 0] == pytest.approx(0.0, abs=1e-9)
    # Whole experts of another width are another share by half a percent or so.
    assert loss[:, 1] - loss[:, 0] == pytest.approx(-0.021 * np.ones((3, 2)), abs=5e-4)
    assert np.all(np.abs(np.diff(loss, axis=2)) < 1e-3)
    assert np.all(loss[1] < loss[0])


def test_the_front_is_told_for_the_models_own_depth_and_for_all(found):
    columns = found.result.columns
    mine = own(found)
    assert mine and set(columns["num_hidden_layers"][mine]) == {30.0}
    assert columns["unbeaten"].sum() > 0 and np.all(columns["unbeaten_alike"] >= columns["unbeaten"])
    text = tables.answer(found)
    assert "beaten by none" in text and "1,536" in text


def test_a_share_that_leaves_no_rows_is_a_point_with_its_reason():
    asked = answer.question("architecture_27b", [*FEW, "axes.model.num_hidden_layers=[30, 90]"])
    found = answer.answer(asked)
    deep = found.columns["num_hidden_layers"] == 90.0
    assert found.feasible[~deep].any()
    assert all(each for each, feasible in zip(found.limits, found.feasible, strict=True) if not feasible)


def test_solved_fields_are_refused():
    asked = answer.question(
        "architecture_27b", [*FEW, "solve.model.moe_intermediate_size={n_activated_parameters: base}"]
    )
    with pytest.raises(InputError, match="remove solve"):
        answer.answer(asked)


def test_models_and_sizes_of_other_budgets_are_refused():
    """Their losses have other zeros, or nobody knows them."""
    for axis in ("axes.model=[engram-27b, engram-40b]", "axes.model.hidden_size=[1280, 2560]"):
        with pytest.raises(InputError, match="losses at equal parameters"):
            answer.answer(answer.question("architecture_27b", [*FEW, axis]))


def test_modules_of_a_shallow_model_stand_apart():
    made = shapes.reshaped(replace(E27, num_hidden_layers=4.0, engram_fraction=0.2), E27)
    assert made.engram_layers == (2.0, 3.0)
    with pytest.raises(InputError, match="do not fit into 2 layers"):
        shapes.reshaped(replace(E27, num_hidden_layers=2.0, engram_fraction=0.2), E27)
    with pytest.raises(InputError, match="no layer"):
        shapes.reshaped(replace(E27, num_hidden_layers=1.0, engram_fraction=0.0), E27)
