"""Engram (arXiv:2601.07372): rows of hashed n-grams looked up in tables, gated by the residual, added to it.

One layer: numbers of rows hashed from token ids; one row per order and head fetched; one product to n keys and a value;
the gate; a depthwise causal convolution with norm, SiLU and residual. Training shards the tables over all devices, so
rows travel in an all-to-all, gradients back in another one (s2.5).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import RECIPES, Recipe
from sextant.workloads.ops.linear import linear
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.ops.table_rows import EVERY, Access, distinct_share, moved_rows

#: Bytes of a row number, and of a token id.
INDEX_BYTES, TOKEN_BYTES = 8.0, 4.0

#: Passes of a sort that makes row numbers unique.
_SORT_PASSES = 4.0

#: Norms of an Engram layer over each stream: of the keys, of the residual, before the convolution.
_NORMS = 3.0


def operators(
    place: Place, model, m: Num, phase: str, tier: str, n_devices: Num, recipe: Recipe = RECIPES["bf16"],
    access: Access = EVERY,
) -> list[Op]:  # fmt: skip
    """Operators of one Engram layer for ``m`` tokens of one data-parallel rank, ``phase`` as in ``Load``.

    ``tier`` (``hbm``, ``host``, ``nvme``) is where the tables lie; a fetch from elsewhere than HBM is on the stream
    ``host``. Rows that are fetched once for many tokens, or lie in a cache (``access``), are then spread in HBM. In
    training ``n_devices`` share the tables, each fetching what all ask of its rows, evenly. Which device lies where is
    the cluster's: exchanges have n_gpus_per_node = n_devices until ``reshape`` says how many a node holds.
    """
    ids = n_rows(model) * INDEX_BYTES * m
    if place.training:
        access = replace(access, cache_bytes=0.0, host_cache_bytes=0.0)
    rows = moved_rows(model, access, m, tier)
    asked = sum(rows.fetched.values(), 0.0)
    ops = [moved("engram_hash", place, max(model.engram_orders) * TOKEN_BYTES * m, ids)]
    spread = _spread(place, model, m, access) if tier != "hbm" or place.training else []
    ops += spread[:1]
    if place.training:
        ops.append(_exchange("engram_index_exchange", place, ids * asked, n_devices, "forward"))
    for where, share in rows.fetched.items():
        gather = _gather(place, model, m * share, where, n_devices if place.training else 1.0)
        # Where a cache has all rows nothing is launched.
        some = np.where(np.asarray(share) > 0, 1.0, 0.0)[()]
        ops.append(gather if np.all(some == 1.0) else replace(gather, count=gather.count * some))
    sent = m * row_bytes_per_token(model) * asked
    if place.training:
        ops.append(_exchange("engram_row_exchange", place, sent, n_devices, "forward"))
    ops += spread[1:]
    ops += _projections(place, model, m, recipe)
    ops.append(_gate("engram_gate", place, model, m))
    ops.append(_convolution(place, model, m, phase))
    return ops + (_backward(place, model, m, sent, n_devices, once=access.deduplicate) if place.training else [])


def _spread(place: Place, model, m: Num, access: Access) -> list[Op]:
    """Row numbers made unique and looked up in the cache, and rows spread to the tokens that asked, where that is so.

    Unique numbers take a radix sort: four passes over 8-byte numbers, each read and written (assumed). Fetched rows
    take their places in the cache, or in a buffer where there is none.
    """
    if access.plain:
        return []
    on = 1.0 if access.deduplicate else np.where(np.asarray(access.cache_bytes) > 0, 1.0, 0.0)[()]
    n, each = n_rows(model), row_bytes_per_token(model)
    different = m * distinct_share(model, access.exponent, m)
    held = np.maximum(access.cache_bytes / len(model.engram_layers), different * each)
    shape = {"lookups": m * n, "row_bytes": each / n, "table_bytes": held}
    spread = operator(
        "gather", "engram_spread", "bf16", shape, variant="hbm", part=place.part, block=place.block,
        count=place.count * on, shards={"tensor": ("lookups",)},
    )  # fmt: skip
    passes = _SORT_PASSES * n * INDEX_BYTES * m
    unique = moved("engram_unique", place, passes, passes)
    return [replace(unique, count=unique.count * on), spread]


def _backward(place: Place, model, m: Num, rows: Num, n_devices: Num, *, once: bool) -> list[Op]:
    """Gradients of convolution, gate and rows; those of the projections stand with them.

    The convolution reads its gradient and its input, and writes one; ``rows`` bytes return to their devices in BF16 and
    are added to FP32 rows of the gradient, each of which is read and written. Rows that were asked for ``once`` by many
    tokens have their gradients summed before that.
    """
    wide = 2.0 * m * model.n_streams * model.hidden_size
    every = m * row_bytes_per_token(model)
    summed = [moved("engram_row_sum", place, every, rows, "backward_input", variant="permute")] if once else []
    return [
        moved("engram_conv_backward", place, 2.0 * wide, wide, "backward_input", variant="norm_backward"),
        _gate("engram_gate_backward", place, model, m, "backward"),
        *summed,
        _exchange("engram_gradient_exchange", place, rows, n_devices, "backward_input"),
        moved("engram_scatter", place, rows + 2.0 * rows, 2.0 * rows, "backward_weight", variant="permute"),
    ]


def _gather(place: Place, model, m: Num, tier: str, n_devices: Num) -> Op:
    n = n_rows(model)
    shape = {
        "lookups": m * n, "row_bytes": row_bytes_per_token(model) / n,
        "table_bytes": BYTES["bf16"] * table_parameters(model) / n_devices,
    }  # fmt: skip
    return operator(
        "gather", "engram_gather", "bf16", shape, variant=tier, stream="compute" if tier == "hbm" else "host",
        part=place.part, block=place.block, count=place.count, shards={"tensor": ("lookups",)},
    )  # fmt: skip


def _exchange(name: str, place: Place, size: Num, n_devices: Num, phase: str) -> Op:
    """An all-to-all in which each device sends ``size`` bytes, spread evenly over ``n_devices``."""
    shape = {"n_gpus": n_devices, "n_gpus_per_node": n_devices, "message_bytes": size}
    return operator(
        "collective", name, "bf16", shape, variant="all_to_all", part=place.part, block=place.block, phase=phase,
        count=place.count, group="engram", shards={"tensor": ("message_bytes",)},
    )  # fmt: skip


def _projections(place: Place, model, m: Num, recipe: Recipe) -> list[Op]:
    """Value and n keys in one product with whole weights on every device; tensor parallelism divides its tokens."""
    width = (1.0 + model.n_streams) * model.hidden_size
    ops = linear("engram_projections", place, m, width, model.engram_dim, recipe, split="m")
    sizes = ("read_bytes", "write_bytes")
    return [replace(op, shards={"tensor": sizes}) if op.kind == "memory" else op for op in ops]


def _gate(name: str, place: Place, model, m: Num, variant: str = "") -> Op:
    shape = {"n_tokens": m, "hidden": model.hidden_size, "n_streams": model.n_streams}
    return operator(
        "engram_gate", name, "bf16", shape, variant=variant, part=place.part, block=place.block, count=place.count,
        phase="backward_input" if variant else "forward", shards={"tensor": ("n_tokens",)},
    )  # fmt: skip


def _convolution(place: Place, model, m: Num, phase: str) -> Op:
    """Norm, depthwise convolution, SiLU and both additions in one kernel: gated values and residual in, residual out.

    A decode step also reads the earlier tokens that the kernel reaches.
    """
    wide = 2.0 * m * model.n_streams * model.hidden_size
    earlier = model.engram_conv_kernel - 1.0 if phase == "decode" else 0.0
    return moved("engram_conv", place, (2.0 + earlier) * wide, wide)


def n_rows(model) -> Num:
    """Rows that one token looks up in one Engram layer: one per order and head."""
    return model.engram_heads * len(model.engram_orders)


def row_bytes_per_token(model) -> Num:
    """Bytes of table rows that one token fetches per Engram layer: ``engram_dim`` BF16 elements over all rows."""
    return BYTES["bf16"] * model.engram_dim


def table_parameters(model) -> Num:
    """Elements of the tables of one Engram layer with ``engram_rows`` rows each, the round number that the paper's
    parameter counts are made of; real tables have ``prime_rows``, up to 2e-4 more.

    A row of each of the orders x heads tables has engram_dim / (orders x heads) elements.
    """
    return model.engram_rows * model.engram_dim


def prime_rows(model) -> tuple[int, ...]:
    """Rows of all tables of a model, by layer, order and head: distinct primes from ``engram_rows`` upwards, so that no
    two tables share their collisions (deepseek-ai/Engram engram_demo_v1.py). InputError where ``engram_rows`` is an
    array: the search is for one model."""
    if np.ndim(model.engram_rows) or np.ndim(model.engram_heads):
        raise InputError("model.engram_rows: prime sizes are for one model; give one number, not an axis")
    wanted = len(model.engram_layers) * int(n_rows(model))
    return tuple(first_primes(int(model.engram_rows), wanted).tolist())


def first_primes(start: int, n: int) -> NDArray[np.int64]:
    """The first ``n`` primes from ``start`` upwards, shape (n,)."""
    # Primes near x lie log(x) apart on average.
    reach = int(2 * n * np.log(start + 10.0) + 100)
    while len(found := primes(start, start + reach)) < n:
        reach *= 2
    return found[:n]


def primes(low: int, high: int) -> NDArray[np.int64]:
    """The primes from ``low`` to ``high`` (not included), in order."""
    low = max(low, 2)
    left = np.ones(max(high - low, 0), dtype=bool)
    for divisor in _small_primes(isqrt(max(high, 4)) + 1):
        left[max(divisor * divisor, -(-low // divisor) * divisor) - low :: divisor] = False
    return low + np.flatnonzero(left)


@lru_cache
def _small_primes(end: int) -> tuple[int, ...]:
    left = np.ones(end, dtype=bool)
    left[:2] = False
    for divisor in range(2, isqrt(end) + 1):
        left[divisor * divisor :: divisor] = False
    return tuple(np.flatnonzero(left).tolist())


def projection_parameters(model) -> Num:
    """Weights of one value and n key projections, without biases: 16.4 M in the paper (s2.4)."""
    return (1.0 + model.n_streams) * model.engram_dim * model.hidden_size


def gate_parameters(model) -> Num:
    """Parameters of one Engram layer beside its tables: ``projection_parameters``, their biases, three norms over each
    stream and the depthwise convolution without bias.

    The paper does not mention biases; they are counted as in the published module (engram_demo_v1.py), and leave its
    16.4 M as they are.
    """
    wide = model.n_streams * model.hidden_size
    biases = (1.0 + model.n_streams) * model.hidden_size
    return projection_parameters(model) + biases + (_NORMS + model.engram_conv_kernel) * wide


def kept_bytes(model) -> Num:
    """Bytes per token and layer that training keeps for the backward pass, in BF16: the fetched rows, keys and value,
    the residual, the gated values; row numbers and one FP32 gate per stream."""
    elements = model.engram_dim + (1.0 + 3.0 * model.n_streams) * model.hidden_size
    return BYTES["bf16"] * elements + INDEX_BYTES * n_rows(model) + 4.0 * model.n_streams


def convolution_bytes_per_sequence(model) -> Num:
    """Bytes of gated values that serving keeps per sequence and Engram layer: what the dilated convolution still
    reaches, (kernel - 1) x dilation tokens; the dilation is the largest order."""
    reach = (model.engram_conv_kernel - 1.0) * max(model.engram_orders)
    return BYTES["bf16"] * reach * model.n_streams * model.hidden_size
