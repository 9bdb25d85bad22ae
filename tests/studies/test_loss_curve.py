"""The U of losses: what it is fitted to, what it is not, and how wide it is."""

import numpy as np
import pytest

from sextant.studies import loss_curve
from sextant.validate import published


@pytest.mark.parametrize("form", loss_curve.FORMS)
def test_every_sample_goes_through_the_statements(form):
    found = loss_curve.curves(form)
    p = found.parameters
    assert len(p["a"]) >= 200
    assert np.allclose(found.at(1.0)[:, 0], 0.0)
    near = np.diagonal(found.at(p["near"]))
    assert np.allclose(near, -p["gain"], atol=1e-9)
    assert np.all(np.abs(p["gain"] - 0.0139) <= 1e-4)
    assert np.allclose(found.at(loss_curve.AS_GOOD_AS_PURE)[:, 0], p["as_good"], atol=1e-7)
    best = found.best()
    assert np.all((best > 0.749) & (best < 0.801))
    assert np.allclose(best, p["optimum"], atol=1e-3)


@pytest.mark.parametrize("form", ("logarithms", "powers"))
def test_experts_and_tables_both_help(form):
    """At fixed tables more experts lower the loss, at fixed experts more tables do."""
    found = loss_curve.curves(form)
    share = np.linspace(0.3, 1.0, 15)
    assert np.all(np.diff(found.at(share, np.full(15, 0.2)), axis=1) < 0)
    assert np.all(np.diff(found.at(np.full(15, 0.7), np.linspace(0.01, 2.0, 15)), axis=1) < 0)


def test_a_parabola_cannot_say_what_is_published():
    """With its lowest point at 75 to 80% and 100% where it is, 40% lies far above "about as good"."""
    for optimum in loss_curve.OPTIMUM:
        ratio = (loss_curve.AS_GOOD_AS_PURE - optimum) ** 2 / (1.0 - optimum) ** 2
        least = loss_curve.PURE_LOSS - loss_curve.BEST_LOSS
        assert (ratio - 1.0) * least > 5 * loss_curve.ABOUT


def test_the_band_holds_the_published_points_and_the_forms():
    share = np.linspace(0.4, 1.0, 61)
    found = loss_curve.band(share)
    assert np.all(found.low <= found.middle) and np.all(found.middle <= found.high)
    for values in found.forms.values():
        assert np.all(values >= found.low - 1e-12) and np.all(values <= found.high + 1e-12)
    near = np.argmin(np.abs(share - 0.8))
    assert found.low[near] < loss_curve.BEST_LOSS - loss_curve.PURE_LOSS < found.high[near] + 1e-3
    assert found.high[0] - found.low[0] > 1.5 * loss_curve.ABOUT  # no statement says more of 40%
    width = found.high - found.low
    assert width[20] > 2 * width[near]  # between the statements less is known


def test_the_same_seed_gives_the_same_band():
    share = np.array([0.5, 0.9])
    loss_curve.curves.cache_clear()
    first = loss_curve.band(share, seed=3)
    loss_curve.curves.cache_clear()
    again = loss_curve.band(share, seed=3)
    assert first.low.tobytes() == again.low.tobytes() and first.middle.tobytes() == again.middle.tobytes()
    assert not np.array_equal(first.low, loss_curve.band(share, seed=4).low)


def test_nothing_is_fitted_to_the_losses_that_judge(monkeypatch):
    """Other published losses of 27B and 40B change no curve, only the error."""
    shares = {"engram_27b": (0.742, 0.257), "engram_40b": (0.742, 0.821)}
    before, band = loss_curve.checks(shares), loss_curve.band(np.array([0.6]))
    loss_curve.curves.cache_clear()
    real = published.figures

    def other(prefix):
        return [type(f)(**{**{k: getattr(f, k) for k in f.__slots__}, "value": 3.0}) for f in real(prefix)]

    monkeypatch.setattr(published, "figures", other)
    after = loss_curve.checks(shares)
    assert [c.predicted for c in before] == [c.predicted for c in after]
    assert [c.published for c in before] == [-0.012, -0.024] and [c.published for c in after] == [-3.0, -3.0]
    assert loss_curve.band(np.array([0.6])).low == band.low


def test_the_changes_that_judge_are_differences_of_published_losses():
    losses = {f.id.split(".")[1]: f.value for f in published.figures("engram_loss") if f.metric == "validation_loss"}
    for change in (f for f in published.figures("engram_loss") if f.metric == "saved_loss"):
        assert change.value == pytest.approx(losses["moe_27b"] - losses[change.id.split(".")[1]])


def test_how_far_the_larger_models_are_off():
    """Both gains come out larger than published: by 0.002 and 0.005 of loss."""
    found = loss_curve.checks({"engram_27b": (49 / 66, 0.2565), "engram_40b": (49 / 66, 0.8209)})
    assert -0.0025 < found[0].error < -0.0010
    assert -0.0100 < found[1].error < -0.0020


def test_the_law_of_memory():
    """Through both losses of the 3B model, falling, and nearly straight in the logarithm where the paper says so."""
    slots = np.geomspace(*loss_curve.LAW_SLOTS, 50)
    law = loss_curve.memory_law(slots)
    assert np.all(np.diff(law.middle) < 0) and np.all(law.low <= law.high)
    at = loss_curve.memory_law(np.array([0.0, loss_curve.TABLE_SLOTS]))
    assert at.middle == pytest.approx([loss_curve.PLAIN_LOSS, loss_curve.TABLE_LOSS])
    fit = np.polynomial.Polynomial.fit(np.log(slots), law.middle, 1)
    assert np.corrcoef(np.log(slots), law.middle)[0, 1] ** 2 > 0.97
    # It still bends: what a purely log-linear law would deny.
    assert 0.002 < np.max(np.abs(law.middle - fit(np.log(slots)))) < 0.01


def test_a_form_without_tables_refuses_them():
    with pytest.raises(ValueError, match="no tables"):
        loss_curve.curves("cubic").at(0.7, 0.5)


def test_what_lies_outside_is_told():
    assert len(loss_curve.notes(np.array([0.5]))) == 1
    assert "40%" in loss_curve.notes(np.array([0.2]))[-1]
