"""Validation loss over the share rho of sparse parameters in experts, from what the Engram paper says of it.

The paper prints two losses and two sentences (arXiv:2601.07372 s3.1); its figure is an image. They are 1.7248 at
rho = 1 and 1.7109 near 80% at 6e20 FLOPs; in both budgets the best share is 75 to 80%, and 40% about as good as 100%.
Four statements give four unknowns. Nothing says which curve it is, so three forms stand side by side, and what each
statement leaves open is sampled; the band is what all of them allow:

``logarithms``  - a ln(experts) - b ln(1 + tables / k): the paper's law of memory, log-linear in slots (s3.2), bent as
                it must be where tables are small; experts by the same law.
``powers``      a experts^-alpha - b tables^k, a power law each; alpha is not published, and sampled.
``cubic``       around the best share, without a mechanism: what smoothness alone says. A parabola is no form: it
                cannot be as high at 40% as at 100% with its lowest point at 75 to 80%.

Experts are those of a token and the share rho of the others, tables the share 1 - rho.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sextant.validate import published

Array = NDArray[np.float64]

#: (rho, loss) at 6e20 FLOPs, and how far the last digit and "about 80%" may be off.
PURE_LOSS, BEST_LOSS, LOSS_DIGIT, NEAR_BEST = 1.7248, 1.7109, 0.5e-4, (0.775, 0.825)
#: Where the best share lies.
OPTIMUM = (0.75, 0.80)
#: The share that is about as good as pure experts. "About" is taken for a seventh of the gain: an assumption.
AS_GOOD_AS_PURE, ABOUT = 0.40, 0.002
#: Experts of a token among all of the pure mixture of that budget.
ACTIVE = 6.0 / 99.0
#: Exponents of the experts' power law that are tried: nobody published one.
EXPERT_EXPONENTS = (0.05, 1.0)
#: Ends of the band.
PERCENTILES = (5.0, 95.0)
FORMS = ("logarithms", "powers", "cubic")

_N_SAMPLES = 256
_N_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """Samples of one form: ``at(share, tables)`` is the change of loss, shape (n_samples, n_points), against rho = 1.

    ``tables`` may differ from 1 - rho where tables are larger than the budget; a form without tables of its own takes
    none. ``parameters`` (n_samples,) each.
    """

    form: str
    parameters: Mapping[str, Array]

    def at(self, share: Array, tables: Array | None = None) -> Array:
        """Loss less that of the pure mixture of experts at experts' shares ``share`` (n_points,)."""
        if tables is not None and self.form == "cubic":
            raise ValueError("the cubic form has no tables of its own")
        share = np.atleast_1d(np.asarray(share, dtype=float))
        tables = 1.0 - share if tables is None else np.atleast_1d(np.asarray(tables, dtype=float))
        p = {name: values[:, None] for name, values in self.parameters.items()}
        experts, memory = _TERMS[self.form]
        moved = experts(share, p) - experts(np.ones(1), p)
        return p["a"] * moved + p["b"] * (memory(tables, p) - memory(np.zeros(1), p))

    def best(self) -> Array:
        """The share of least loss of each sample, shape (n_samples,)."""
        share = np.linspace(AS_GOOD_AS_PURE, 1.0, 1201)
        return share[np.argmin(self.at(share), axis=1)]


def _experts(share: Array) -> Array:
    return ACTIVE + (1.0 - ACTIVE) * share


_Term = Callable[[Array, Mapping[str, Array]], Array]
#: Of each form the terms that ``a`` and ``b`` multiply, of the experts' share and of the tables'.
_TERMS: Mapping[str, tuple[_Term, _Term]] = {
    "logarithms": (lambda r, p: -np.log(_experts(r)), lambda t, p: -np.log1p(t / p["k"])),
    "powers": (lambda r, p: _experts(r) ** -p["alpha"], lambda t, p: -(t ** p["k"])),
    "cubic": (lambda r, p: (r - p["optimum"]) ** 2, lambda t, p: (1.0 - t - p["optimum"]) ** 3),
}
#: Where ``k`` is looked for.
_RANGES = {"logarithms": (1e-5, 10.0), "powers": (1e-3, 0.999)}


@lru_cache(maxsize=8)
def curves(form: str, seed: int = 0) -> Curves:
    """Curves of ``form`` through the published statements, each with a sample of what these leave open.

    Samples that no curve of the form fits, with experts and tables that both help, are left out; a form always has
    some.
    """
    random = np.random.default_rng(seed)
    n = _N_SAMPLES
    given = {
        "optimum": random.uniform(*OPTIMUM, n),
        "near": random.uniform(*NEAR_BEST, n),
        "alpha": random.uniform(*EXPERT_EXPONENTS, n),
        "gain": PURE_LOSS - BEST_LOSS + random.uniform(-1.0, 1.0, n) * 2.0 * LOSS_DIGIT,
        "as_good": random.uniform(-ABOUT, ABOUT, n),
    }
    found = _through(form, given) if form in _RANGES else _smooth(given)
    fits = np.isfinite(found["a"]) & (found["a"] > 0) & (found["b"] > 0)
    return Curves(form=form, parameters={name: values[fits] for name, values in {**given, **found}.items()})


def _smooth(given: Mapping[str, Array]) -> dict[str, Array]:
    """a and b of the cubic: two linear equations, gain and height at 40%; its slope at the optimum is 0 as it is."""
    x1, xn, x4 = (at - given["optimum"] for at in (1.0, given["near"], AS_GOOD_AS_PURE))
    rows = np.stack([np.stack([x**2 - x1**2, x**3 - x1**3], axis=-1) for x in (xn, x4)], axis=-2)
    right = np.stack([-given["gain"], given["as_good"]], axis=-1)
    a, b = np.moveaxis(np.linalg.solve(rows, right[..., None])[..., 0], -1, 0)
    return {"a": a, "b": b}


def _through(form: str, given: Mapping[str, Array]) -> dict[str, Array]:
    """a, b and k: for a k, gain and optimum are two linear equations; k is where 40% comes out, found by halving."""
    low, high = (np.full_like(given["gain"], np.log(end)) for end in _RANGES[form])
    at_low, at_high = (_miss(form, np.exp(end), given)[0] for end in (low, high))
    bracketed = at_low * at_high < 0
    for _ in range(_N_STEPS):
        middle = (low + high) / 2.0
        same = _miss(form, np.exp(middle), given)[0] * at_low > 0
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    k = np.exp((low + high) / 2.0)
    _, a, b = _miss(form, k, given)
    return {"a": np.where(bracketed, a, np.nan), "b": b, "k": k}


def _miss(form: str, k: Array, given: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """How far 40% is off with ``k``, and the a and b that gain and optimum then demand."""
    p = {**given, "k": k}
    experts, memory = _TERMS[form]

    def change(share: Array) -> tuple[Array, Array]:
        one = np.ones_like(k)
        return experts(share, p) - experts(one, p), memory(1.0 - share, p) - memory(one - one, p)

    step = 1e-6
    above, below = (change(given["optimum"] + side * step) for side in (1.0, -1.0))
    slope_e, slope_t = ((x - y) / (2.0 * step) for x, y in zip(above, below, strict=True))
    near_e, near_t = change(given["near"])
    # a slope_e + b slope_t = 0 and a near_e + b near_t = -gain.
    ratio = -slope_e / slope_t
    a = -given["gain"] / (near_e + ratio * near_t)
    b = ratio * a
    far_e, far_t = change(np.full_like(k, AS_GOOD_AS_PURE))
    return a * far_e + b * far_t - given["as_good"], a, b


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Change of loss against the pure mixture of experts, shape (n_points,): the median, and what 90% lie between."""

    middle: Array
    low: Array
    high: Array
    forms: Mapping[str, Array]


def band(share: Array, tables: Array | None = None, seed: int = 0) -> Band:
    """The change of loss at experts' shares ``share``, all forms weighing the same; ``forms`` has the median of each.

    With ``tables`` of their own, shares of the budget's sparse parameters too, only forms that know tables count.
    """
    wanted = [form for form in FORMS if tables is None or form != "cubic"]
    each = {form: curves(form, seed).at(share, tables) for form in wanted}
    # Every form has the same weight, however many of its samples fit.
    n = min(len(found) for found in each.values())
    stacked = np.concatenate([found[:n] for found in each.values()])
    low, middle, high = np.percentile(stacked, [PERCENTILES[0], 50.0, PERCENTILES[1]], axis=0)
    return Band(
        middle=middle, low=low, high=high, forms={form: np.median(found, axis=0) for form, found in each.items()}
    )


def notes(share: Array) -> list[str]:
    """What a reader of the losses at ``share`` should know."""
    found = [
        "loss_change follows from two published losses and two sentences at 6e20 FLOPs, its shape taken for that of "
        "every budget; the level of a loss, and the scatter of training runs, are not known"
    ]
    if np.any(share < AS_GOOD_AS_PURE - 0.01):
        found.append("loss_change below 40% in experts lies outside all that is published")
    return found


#: The 3B model of the paper's s6.2 (568 M activated, 100 B tokens): its loss without tables and with 1.6 B parameters
#: of them, and how many slots these are. A slot has 1,280 elements: 1e7 slots are 13 B parameters.
PLAIN_LOSS, TABLE_LOSS, TABLE_SLOTS = 1.808, 1.768, 1.6e9 / 1280.0
#: Slots between which the paper found its law of memory log-linear (s3.2).
LAW_SLOTS = (2.58e5, 1.0e7)
#: Sparse parameters of the budget of 6e20 FLOPs, in slots.
BUDGET_SLOTS = (9.9e9 - 993e6) / 1280.0


def memory_law(slots: Array, seed: int = 0) -> Band:
    """Loss of the 3B model with tables of ``slots`` rows over all layers, shape (n_points,).

    Its two published losses and the bend that the U of the larger budget has in ``logarithms``; the paper prints no
    slope. The law is then log-linear as far as slots are many beside the bend.
    """
    bend = curves("logarithms", seed).parameters["k"][:, None] * BUDGET_SLOTS
    gain = np.log1p(np.atleast_1d(slots) / bend) / np.log1p(TABLE_SLOTS / bend)
    losses = PLAIN_LOSS - (PLAIN_LOSS - TABLE_LOSS) * gain
    low, middle, high = np.percentile(losses, [PERCENTILES[0], 50.0, PERCENTILES[1]], axis=0)
    return Band(middle=middle, low=low, high=high, forms={"logarithms": middle})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The published change of a loss against MoE-27B's, and what the curve makes of it."""

    name: str
    predicted: float
    low: float
    high: float
    published: float

    @property
    def error(self) -> float:
        """Predicted less published."""
        return self.predicted - self.published


def checks(shares: Mapping[str, tuple[float, float]], seed: int = 0) -> list[Check]:
    """Engram-27B and -40B beside MoE-27B (Engram paper Table 1), to which nothing here is fitted.

    ``shares`` has the experts and tables of each, by the last part of a published group's name, as shares of MoE-27B's
    sparse parameters. Differences are all that can be predicted: the level of MoE-27B is another budget's.
    """
    found = []
    for name, (experts, tables) in shares.items():
        each = band(np.array([experts]), np.array([tables]), seed)
        predicted, low, high = (float(x[0]) for x in (each.middle, each.low, each.high))
        (figure,) = (f for f in published.figures(f"engram_loss.{name}") if f.metric == "saved_loss")
        found.append(Check(name=name, predicted=predicted, low=low, high=high, published=-figure.value))
    return found
