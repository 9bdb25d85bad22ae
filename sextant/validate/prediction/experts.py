"""The routed experts of one device as a case ``moe`` has them: permutation, both grouped products, SwiGLU, sum.

Time is two grouped products plus an explicit overhead, the block ``moe_<format>`` (see ``validate.fit_grouped``).

Under ``routing`` power_law_A the device that counts is the one with most pairs (``simulator.kernels.imbalance``);
experts whose share rounds to no token are not read. No skewed row took part in any fit: the estimate counts as assumed,
its interval is wider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import estimate, fit_of, operator, peak
from sextant.simulator.kernels.correction import correction
from sextant.simulator.kernels.imbalance import exponent, power_law
from sextant.simulator.kernels.tiles import BORROWED, LENDERS
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Factors on the interval of skewed routing: assumed.
SKEWED_LOW, SKEWED_HIGH = 0.7, 1.5


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


def most_loaded(layers: Mapping[str, Num], power: float) -> dict[str, Num]:
    """``layers`` of the device with most pairs when shares follow a power law: its pairs, and as groups the experts
    that get any token, each as many."""
    n_tokens = np.asarray(layers["n_tokens"])
    n_ranks = np.maximum(n_tokens * 0.0 + layers["ranks"], 1.0)
    pairs, hit = power_law(power, layers["groups"] * n_ranks, n_ranks, n_tokens, layers["pairs"] * n_ranks)
    return {**layers, "pairs": pairs, "groups": hit, "tokens_per_group": pairs / hit}


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
    layers, power = expert_layers(c, gates), exponent(routing)
    fit = layer_fit(cluster.device, format)
    if power is not None:
        layers = most_loaded({**layers, "ranks": c["expert_parallel"]}, power)
    both = products(layers, format, "" if routing == "random" else "exact")
    parts = [estimate(op, cluster) for op in both]
    fixed, moving = overhead_parts(layers, fit, cluster)
    limits = {name: parts[0].limits[name] + parts[1].limits[name] for name in parts[0].limits}
    limits = {**limits, "memory": limits["memory"] + moving, "launch": limits["launch"] + fixed}
    seconds = (parts[0].seconds + parts[1].seconds + fixed + moving) * correction(fit, features(layers))
    seconds = np.maximum(seconds, least_seconds(both, cluster.device))
    low, high = (1.0, 1.0) if power is None else (SKEWED_LOW, SKEWED_HIGH)
    return Estimate(
        seconds=seconds, low=seconds * fit.low * low, high=seconds * fit.high * high, limits=limits,
        provenance=fit.provenance if power is None else "assumed",
    )  # fmt: skip
