"""The measured allocation curve: losses of tiny models over the share of experts, as a table and a figure.

    sextant validate allocation [--device NAME] [--out DIR] [--json]

Nothing is fitted: a curve is the mean over seeds, its spread the lowest and the highest seed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sextant.simulator.errors import InputError
from sextant.studies.whole_data import MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Models of one corpus, budget and learning rate: ``rho`` [n] from low to high, ``loss`` [n, n_seeds] in nats per
    held-out token; ``unigram_loss`` and ``bigram_loss`` are those of counted words and pairs."""

    corpus: str
    budget: str
    learning_rate: float
    rho: np.ndarray
    loss: np.ndarray
    n_parameters: float
    n_activated_parameters: float
    n_tokens: float
    unigram_loss: float
    bigram_loss: float

    @property
    def mean(self) -> np.ndarray:
        """The mean over seeds, [n]."""
        return self.loss.mean(axis=1)

    @property
    def seed_std(self) -> float:
        """Standard deviation of one seed's loss about its model's mean, over all models; 0 of a single seed."""
        n, seeds = self.loss.shape
        return float(np.sqrt(((self.loss - self.mean[:, None]) ** 2).sum() / (n * max(1, seeds - 1))))

    @property
    def best(self) -> float:
        """The rho of the lowest mean loss."""
        return float(self.rho[np.argmin(self.mean)])

    @property
    def as_good(self) -> tuple[float, float]:
        """Lowest and highest rho whose mean lies within two standard errors of a difference from the lowest mean."""
        error = self.seed_std * np.sqrt(2.0 / self.loss.shape[1])
        near = self.rho[self.mean - self.mean.min() <= 2.0 * error]
        return float(near.min()), float(near.max())


def curves(device: str, folder: Path | None = None) -> list[Curve]:
    """The shipped curves of a device, of models that were trained with every seed; InputError where there are none."""
    path = (folder or MEASURED) / f"{device}_allocation.csv"
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(x for x in lines if not x.startswith("#")) if not row["error"]]
    except FileNotFoundError:
        raise InputError(
            f"device: no measured allocation of {device!r} ({path.name}); sextant measure allocation --out {path.name}"
        ) from None
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["corpus"], row["budget"], row["learning_rate"]), []).append(row)
    return [curve for curve in map(_curve, groups.values()) if len(curve.rho)]


def _curve(rows: list[dict[str, str]]) -> Curve:
    seeds = sorted({row["seed"] for row in rows})
    by_rho: dict[float, dict[str, float]] = {}
    for row in rows:
        by_rho.setdefault(float(row["rho"]), {})[row["seed"]] = float(row["loss"])
    rhos = sorted(rho for rho, losses in by_rho.items() if len(losses) == len(seeds))
    first = max(rows, key=lambda row: float(row["rho"]))
    return Curve(
        corpus=first["corpus"], budget=first["budget"], learning_rate=float(first["learning_rate"]), rho=np.array(rhos),
        loss=np.array([[by_rho[rho][seed] for seed in seeds] for rho in rhos]),
        n_parameters=float(first["n_parameters"]), n_activated_parameters=float(first["n_activated_parameters"]),
        n_tokens=float(first["n_tokens"]), unigram_loss=float(first["unigram_loss"]),
        bigram_loss=float(first["bigram_loss"]),
    )  # fmt: skip


def table(found: list[Curve]) -> str:
    """One block per curve: loss, its difference from rho = 1 (or the highest rho) and the spread of the seeds."""
    blocks = []
    for curve in found:
        low, high = curve.as_good
        blocks.append(
            f"{curve.corpus}, {curve.budget}, rate {curve.learning_rate:g}: "
            f"{curve.n_parameters / 1e6:.1f} M parameters, "
            f"{curve.n_activated_parameters / 1e6:.2f} M activated, {curve.n_tokens / 1e6:.0f} M tokens, "
            f"{curve.loss.shape[1]} seeds\n"
            f"  unigrams {curve.unigram_loss:.3f}, bigrams {curve.bigram_loss:.3f} nats; one seed's standard deviation "
            f"{curve.seed_std:.4f}\n"
            f"  lowest at rho {curve.best:.2f}; within noise of it from {low:.2f} to {high:.2f}\n"
            "     rho     loss   from rho max   lowest to highest seed\n"
            + "\n".join(
                f"  {rho:6.3f} {mean:8.4f} {mean - curve.mean[-1]:+14.4f}   {losses.min():.4f} to {losses.max():.4f}"
                for rho, mean, losses in zip(curve.rho, curve.mean, curve.loss, strict=True)
            )
        )
    return "\n\n".join(blocks)


def as_json(found: list[Curve]) -> list[dict]:
    """The curves as plain values."""
    return [
        {"corpus": curve.corpus, "budget": curve.budget, "learning_rate": curve.learning_rate,
         "n_parameters": curve.n_parameters, "n_activated_parameters": curve.n_activated_parameters,
         "n_tokens": curve.n_tokens,
         "unigram_loss": curve.unigram_loss, "bigram_loss": curve.bigram_loss, "seed_std": curve.seed_std,
         "best_rho": curve.best, "rho_within_noise": list(curve.as_good), "rho": curve.rho.tolist(),
         "loss": curve.loss.tolist()}
        for curve in found
    ]  # fmt: skip


def draw(found: list[Curve], place: Path, name: str = "allocation_curve") -> list[Path]:
    """One panel per curve as png and svg in ``place``: every seed a dot, the mean a line; returns the files."""
    import matplotlib.pyplot as plt

    from sextant.studies.figures import save_figure, styled

    with styled():
        figure, panels = plt.subplots(1, len(found), figsize=(3.6 * len(found) + 0.6, 3.2), layout="constrained")
        for axes, curve in zip(np.atleast_1d(panels), found, strict=True):
            low, high = curve.as_good
            axes.axvspan(low, high, color="#d9a441", alpha=0.15, linewidth=0, label="within two standard errors")
            axes.plot(curve.rho, curve.mean, color="#2f6690", linewidth=1.2, label="mean of seeds")
            for losses in curve.loss.T:
                axes.plot(curve.rho, losses, "o", color="#2f6690", markersize=3, alpha=0.6)
            axes.set_title(
                f"{curve.corpus}, {curve.budget}: {curve.n_parameters / 1e6:.0f} M parameters, "
                f"{curve.n_tokens / 1e6:.0f} M tokens", loc="left", fontsize=8,
            )  # fmt: skip
            axes.set(xlabel="rho, share of sparse parameters in experts", ylabel="held-out loss, nats per token")
        np.atleast_1d(panels)[0].legend(fontsize=7, frameon=False)
        paths = [save_figure(figure, place / f"{name}.{kind}") for kind in ("png", "svg")]
        plt.close(figure)
    return paths
