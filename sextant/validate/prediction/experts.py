"""The routed experts of one device as a case ``moe`` has them: permutation, both grouped products, SwiGLU, sum.

Time is two grouped products plus an explicit overhead, the block ``moe_<format>`` (see ``validate.fit_grouped``).

Under ``routing`` power_law_A an expert's share is drawn with density x^-A between one token and 0.8 of all of them (or
0.01 and 2 where pairs are no more than experts): the sampler of aiconfigurator's collector (power_law_logits_v3); the
device that counts is the one with most pairs. Its load is the mean plus what the largest of ``expert_parallel`` sums
of normal spread exceeds it by; experts whose share rounds to no token are not read. No skewed row took part in any fit:
the estimate counts as assumed, its interval is wider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from sextant.simulator.kernels import estimate, fit_of, operator, peak
from sextant.simulator.kernels.correction import correction
from sextant.simulator.kernels.tiles import BORROWED, LENDERS
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Factors on the interval of skewed routing: assumed.
SKEWED_LOW, SKEWED_HIGH = 0.7, 1.5

#: The quantile that the largest of n normal draws has on average (Blom 1958).
_BLOM = 0.375


def expert_layers(c: Mapping[str, Num], gates: float = 2.0) -> dict[str, Num]:
    """What one device computes, shapes (n_rows,): groups, tokens_per_group, pairs, n_tokens, hidden, width (of one
    expert on one device) and ``gates`` (2 columns of the up product per width element, 1 where experts have no gate).
    """
    hidden, ffn, ranks = c["hidden"], c["expert_ffn"], c["expert_parallel"]
    groups, pairs = c["n_experts"] / ranks, c["n_tokens"] * c["top_k"] / ranks
    return {
        "groups": groups, "tokens_per_group": pairs / groups, "pairs": pairs, "n_tokens": c["n_tokens"],
        "hidden": hidden, "width": ffn / c["tensor_parallel"], "gates": np.full(np.shape(hidden), gates),
    }  # fmt: skip


def most_loaded(layers: Mapping[str, Num], exponent: float) -> dict[str, Num]:
    """``layers`` of the device with most pairs when shares follow a power law: its pairs, and as groups the experts
    that get any token, each as many."""
    experts_here, tokens = np.asarray(layers["groups"]), np.asarray(layers["n_tokens"])
    n_ranks = np.maximum(tokens * 0.0 + layers["ranks"], 1.0)
    n_experts, all_pairs = experts_here * n_ranks, layers["pairs"] * n_ranks
    many = all_pairs > n_experts
    low, high = np.where(many, 1.0, 0.01), np.where(many, np.maximum(0.8 * tokens, 1.001), 2.0)
    mass, mean, square = (_moment(low, high, power - exponent) for power in (0.0, 1.0, 2.0))
    mean, square = mean / mass, square / mass
    spread = np.sqrt(np.maximum(square - mean**2, 0.0))
    drawn = experts_here * mean + _largest(n_ranks) * spread * np.sqrt(experts_here)
    drawn = np.where(n_ranks > 1.0, np.minimum(drawn, experts_here * high), experts_here * mean)
    per_unit = all_pairs / (n_experts * mean)
    # No expert gets a token twice, no device more pairs than there are.
    pairs = np.minimum(np.minimum(drawn * per_unit, all_pairs), experts_here * tokens)
    half = np.clip(0.5 / per_unit, low, high)
    hit = np.clip(experts_here * _moment(half, high, -exponent) / mass, 1.0, experts_here)
    hit = np.maximum(np.minimum(hit, np.maximum(pairs, 1.0)), pairs / tokens)
    return {**layers, "pairs": pairs, "groups": hit, "tokens_per_group": pairs / hit}


def _moment(low: Num, high: Num, power: float) -> Num:
    """The integral of x^power between two bounds."""
    if abs(power + 1.0) < 1e-9:
        return np.log(high / low)
    return (high ** (power + 1.0) - low ** (power + 1.0)) / (power + 1.0)


def _largest(n: Num) -> Num:
    """Standard deviations by which the largest of n normal draws exceeds their mean, on average."""
    values, inverse = np.unique(np.asarray(n), return_inverse=True)
    normal = NormalDist()
    quantiles = [normal.inv_cdf((v - _BLOM) / (v + 1.0 - 2.0 * _BLOM)) if v > 1 else 0.0 for v in values]
    return np.asarray(quantiles)[inverse].reshape(np.shape(n))


def products(layers: Mapping[str, Num], format: str, routing: str) -> tuple[Op, Op]:
    """The up product (gate beside it) and the down product of all groups."""
    shape = {name: layers[name] for name in ("groups", "tokens_per_group")}
    hidden, width = layers["hidden"], layers["width"]
    up = {**shape, "n": layers["gates"] * width, "k": hidden}
    down = {**shape, "n": hidden, "k": width}
    first = operator("grouped_gemm", "up", format, up, variant=routing)
    return first, operator("grouped_gemm", "down", format, down, variant=routing)


def overhead_parts(layers: Mapping[str, Num], fit: KernelFit, cluster: Cluster) -> tuple[Num, Num]:
    """Seconds of launches, and of the bytes moved outside the products."""
    c = fit.coefficients
    moved = layers["pairs"] * (c["hidden_passes"] * layers["hidden"] + c["ffn_passes"] * layers["width"])
    moved = 2.0 * (moved + layers["n_tokens"] * c["token_passes"] * layers["hidden"])
    return c["overhead_s"], moved / cluster.device.memories["hbm"].bandwidth_bytes_per_s


def features(layers: Mapping[str, Num]) -> dict[str, Num]:
    """What a correction of whole layers may depend on, as logarithms to base 2."""
    names = ("tokens_per_group", "groups", "hidden", "width")
    return {f"log2_{name}": np.log2(np.maximum(layers[name], 1e-6)) for name in names}


def moe_seconds(layers: Mapping[str, Num], format: str, cluster: Cluster, *, routing: str = "") -> Num:
    """Seconds of the routed experts of one device with blocks ``moe_<format>`` and ``grouped_gemm_<format>``.

    ``routing`` is the variant of ``grouped_gemm``: "" random, ``exact`` the same number of tokens for every expert.
    """
    up, down = products(layers, format, routing)
    fit = cluster.device.kernels[f"moe_{format}"]
    fixed, moving = overhead_parts(layers, fit, cluster)
    seconds = estimate(up, cluster).seconds + estimate(down, cluster).seconds + fixed + moving
    return np.maximum(seconds * correction(fit, features(layers)), least_seconds((up, down), cluster.device))


def least_seconds(ops: tuple[Op, ...], device: Device) -> Num:
    """What the products take one after the other at the peaks of FLOPs and of bandwidth."""
    total: Num = 0.0
    for op in ops:
        bytes_s = op.traffic_bytes["hbm"] / device.memories["hbm"].bandwidth_bytes_per_s
        total = total + np.maximum(op.flops / peak(device, op.format), bytes_s)
    return total


def layer_fit(device: Device, format: str) -> KernelFit:
    """The block ``moe_<format>``, else a related format's, which counts as assumed and widens the interval."""
    for lender in (format, *LENDERS.get(format, ("bf16",))):
        if f"moe_{lender}" in device.kernels:
            fit = device.kernels[f"moe_{lender}"]
            if lender == format or (lender, format) == ("bf16", "fp16"):
                return fit
            return replace(fit, low=fit.low * BORROWED[0], high=fit.high * BORROWED[1], provenance="assumed")
    return fit_of(device, f"moe_{format}")


def moe_estimate(c: Mapping[str, Num], format: str, routing: str, cluster: Cluster, *, gates: float = 2.0) -> Estimate:
    """The experts of a case under ``routing``: ``balanced``, ``random`` or ``power_law_A``; ValueError otherwise.

    The interval is that of whole measured layers.
    """
    layers, exponent = expert_layers(c, gates), _exponent(routing)
    fit = layer_fit(cluster.device, format)
    if exponent is not None:
        layers = most_loaded({**layers, "ranks": c["expert_parallel"]}, exponent)
    both = products(layers, format, "" if routing == "random" else "exact")
    parts = [estimate(op, cluster) for op in both]
    fixed, moving = overhead_parts(layers, fit, cluster)
    limits = {name: parts[0].limits[name] + parts[1].limits[name] for name in parts[0].limits}
    limits = {**limits, "memory": limits["memory"] + moving, "launch": limits["launch"] + fixed}
    seconds = (parts[0].seconds + parts[1].seconds + fixed + moving) * correction(fit, features(layers))
    seconds = np.maximum(seconds, least_seconds(both, cluster.device))
    low, high = (1.0, 1.0) if exponent is None else (SKEWED_LOW, SKEWED_HIGH)
    return Estimate(
        seconds=seconds, low=seconds * fit.low * low, high=seconds * fit.high * high, limits=limits,
        provenance=fit.provenance if exponent is None else "assumed",
    )  # fmt: skip


def _exponent(routing: str) -> float | None:
    """The exponent of ``power_law_A``, None where routing is even."""
    if routing in ("", "balanced", "random"):
        return None
    name, _, value = routing.rpartition("_")
    try:
        exponent = float(value)
    except ValueError:
        exponent = float("nan")
    if name != "power_law" or not 0.0 <= exponent < 10.0:
        raise ValueError(f"routing: unknown {routing!r}; choose balanced, random or power_law_A, e.g. power_law_1.2")
    return exponent
