"""Manifold-constrained hyper-connections (mHC, arXiv:2512.24880): a residual of n streams around every layer function.

A site is one sublayer: ``pre`` makes the mappings and mixes n streams to the layer's input, ``post`` writes the
layer's output back into the streams. Kernels and their bytes are those of deepseek-ai/TileKernels and of s4.3.1.
"""

from __future__ import annotations

import numpy as np

from sextant.simulator.kernels import operator
from sextant.simulator.kernels.mhc_pre import n_mappings
from sextant.simulator.types import Num, Op
from sextant.workloads.ops.memory import Place, moved

#: Sites per layer: attention and feed-forward.
SITES_PER_LAYER = 2.0


def pre(name: str, place: Place, m: Num, model) -> list[Op]:
    """From the (m, n, C) residual to the normalised (m, C) input of the layer function: ``<name>_pre, <name>_norm``.

    The backward kernel of the mappings makes the gradients of the residual and of the weights in one pass, so both
    count as input gradients. Under ``recompute`` ``mhc`` the layer's input and its norm are made again (``norm``: only
    the norm).
    """
    size = 2.0 * m * model.hidden_size
    ops = [_kernel("mhc_pre", f"{name}_pre", place, m, model), moved(f"{name}_norm", place, size, size)]
    if not place.training:
        return ops
    if "mhc" in place.recompute:
        # The block's residual is read once for all its sites; mappings were kept.
        read = size * model.n_streams / block_sites(model) + 4.0 * m * model.n_streams
        ops.append(moved(f"{name}_pre_recompute", place, read, size, "backward_input"))
    if "mhc" in place.recompute or "norm" in place.recompute:
        ops.append(moved(f"{name}_norm_recompute", place, size, size, "backward_input"))
    ops.append(moved(f"{name}_norm_backward", place, 2.0 * size, size, "backward_input", variant="norm_backward"))
    ops.append(_kernel("mhc_pre", f"{name}_pre_backward", place, m, model, "backward"))
    return ops


def post(name: str, place: Place, m: Num, model) -> list[Op]:
    """From the (m, C) output of the layer function back to the (m, n, C) residual; ``<name>_post``.

    Under ``recompute`` ``mhc`` the residual behind the site is made again from the kept output of the layer function
    and the residual before it, which the recomputing kernel still holds on chip (TileKernels multilayer_recompute).
    """
    ops = [_kernel("mhc_post", f"{name}_post", place, m, model)]
    if not place.training:
        return ops
    if "mhc" in place.recompute:
        size, n = 2.0 * m * model.hidden_size, model.n_streams
        read = size + 4.0 * m * n * (n + 1.0)
        ops.append(moved(f"{name}_post_recompute", place, read, size * n, "backward_input"))
    ops.append(_kernel("mhc_post", f"{name}_post_backward", place, m, model, "backward"))
    return ops


def expand(place: Place, m: Num, model) -> list[Op]:
    """The embedding copied into every stream; backward adds the streams' gradients."""
    return _copies("streams_expand", place, m, model, 1.0, model.n_streams)


def merge(place: Place, m: Num, model) -> list[Op]:
    """The sum of the streams before the final norm, without weights; backward copies its gradient into every stream."""
    return _copies("streams_merge", place, m, model, model.n_streams, 1.0)


def _copies(name: str, place: Place, m: Num, model, read: Num, written: Num) -> list[Op]:
    size = 2.0 * m * model.hidden_size
    ops = [moved(name, place, read * size, written * size)]
    if place.training:
        ops.append(moved(f"{name}_backward", place, written * size, read * size, "backward_input"))
    return ops


def _kernel(kind: str, name: str, place: Place, m: Num, model, variant: str = "") -> Op:
    shape = {
        "n_tokens": m, "hidden": model.hidden_size, "n_streams": model.n_streams,
        "sinkhorn_iters": model.sinkhorn_iters,
    }  # fmt: skip
    return operator(
        kind, name, "bf16", shape, variant=variant, part=place.part, block=place.block, count=place.count,
        phase="backward_input" if variant else "forward", shards={"tensor": ("n_tokens",)},
    )  # fmt: skip


def parameters(model) -> Num:
    """Parameters of one site: (n C) x (n^2 + 2 n) weights, as many biases as mappings, three scales (eq. 10 to 15).

    The RMSNorm of the flattened residual in front of the mappings has no weight of its own: one is absorbed by theirs.
    """
    maps = n_mappings(model.n_streams)
    return model.n_streams * model.hidden_size * maps + maps + 3.0


def block_sites(model) -> Num:
    """Sites whose residual is made again together from one kept residual: the integer next to sqrt(n L / (n + 2)) that
    keeps least (eq. 20), L being the model's sites. Not aligned with pipeline stages."""
    n, sites = np.asarray(model.n_streams), SITES_PER_LAYER * np.asarray(model.num_hidden_layers)
    best = np.sqrt(n * sites / (n + 2.0))
    lower, upper = np.maximum(np.floor(best), 1.0), np.maximum(np.ceil(best), 1.0)

    def kept(length):
        return n * np.ceil(sites / length) + (n + 2.0) * length

    return np.where(kept(lower) <= kept(upper), lower, upper)[()]


def kept_bytes(model, recompute: tuple[str, ...]) -> Num:
    """Bytes per token and site that training keeps for the backward pass of the site itself.

    The residual (n C), the layer function's input before its norm and its output (C each) in BF16, and the mappings
    before and after sigmoid and Sinkhorn with the mean square in FP32. The normalised input is the layer's own.
    Under ``recompute`` ``mhc`` (Table 3, eq. 20): the output, the residual once per block of ``block_sites``, and
    spread over all sites the (n + 2) C of one block that is being made again; a pipeline stage with few sites has more
    of that per site than stands here.
    """
    n, width = model.n_streams, model.hidden_size
    mappings = 4.0 * (2.0 * n_mappings(n) + 1.0)
    if "mhc" not in recompute:
        return 2.0 * (n + 2.0) * width + mappings
    length, sites = block_sites(model), SITES_PER_LAYER * model.num_hidden_layers
    blocks = np.ceil(sites / length) / sites
    return 2.0 * width * (1.0 + n * blocks + (n + 2.0) * length / sites) + mappings
