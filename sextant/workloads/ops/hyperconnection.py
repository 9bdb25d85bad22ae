"""Manifold-constrained hyper-connections (mHC, arXiv:2512.24880): a residual of n streams around every layer function.

A site is one sublayer: ``pre`` makes the mappings and mixes n streams to the layer's input, ``post`` writes the
layer's output back into the streams. Fused kernels and their bytes are those of deepseek-ai/TileKernels and of s4.3.1;
``tile_kernels`` are the former in training as released and measured, their slow product of the mappings included;
unfused, every operator of the published table is a kernel of its own. ``accesses`` is that table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator.kernels import operator
from sextant.simulator.kernels.mhc_training import n_mappings
from sextant.simulator.types import Num, Op
from sextant.workloads.ops.memory import Place, moved

#: Sites per layer: attention and feed-forward.
SITES_PER_LAYER = 2.0

#: Bytes of an element of the residual, and of a mapping.
_ELEMENT_BYTES, _MAPPING_BYTES = 2.0, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What an operator reads and writes per token: elements of tensors (BF16), and of mappings (FP32)."""

    read: Num = 0.0
    mappings_read: Num = 0.0
    written: Num = 0.0
    mappings_written: Num = 0.0

    @property
    def n_read(self) -> Num:
        """Elements read, of both kinds, as the published table counts them."""
        return self.read + self.mappings_read

    @property
    def n_written(self) -> Num:
        """Elements written, of both kinds."""
        return self.written + self.mappings_written

    @property
    def read_bytes(self) -> Num:
        """Bytes read."""
        return _ELEMENT_BYTES * self.read + _MAPPING_BYTES * self.mappings_read

    @property
    def write_bytes(self) -> Num:
        """Bytes written."""
        return _ELEMENT_BYTES * self.written + _MAPPING_BYTES * self.mappings_written


def accesses(n: Num, width: Num, kernels: str = "fused") -> dict[str, Access]:
    """Reads and writes per token of one site's forward pass, by operator, for ``n`` streams of ``width`` elements.

    ``kernels``: ``plain``, the residual without streams; ``unfused``, Table 2 of the paper; ``fused``, its s4.3.1. The
    layer function's own traffic is left out, its norm too, and so are, as in the paper, the norm of the flattened
    residual and what makes mappings of products (sigmoid, Sinkhorn). TileKernels moves the tensors of ``fused``
    exactly; of mappings more, for its product, its norm and its split hand them over in memory: 3 (n^2 + 2 n) of them
    instead of n^2 + 3 n, 0.1% of the bytes of four streams of 2,560 elements.
    """
    wide = n * width
    if kernels == "plain":
        return {"merge": Access(read=2.0 * width, written=width)}
    make = {
        "mappings": Access(read=wide, mappings_written=n_mappings(n)),
        "apply_pre": Access(read=wide, mappings_read=n, written=width),
    }
    if kernels == "fused":
        return {**make, "apply_post_res": Access(read=wide + width, mappings_read=n * n + n, written=wide)}
    return {
        **make, "apply_post": Access(read=width, mappings_read=n, written=wide),
        "apply_res": Access(read=wide, mappings_read=n * n, written=wide),
        "merge": Access(read=2.0 * wide, written=wide),
    }  # fmt: skip


def gradients(n: Num, width: Num) -> dict[str, Access]:
    """Reads and writes per token of one site's unfused backward pass, beside the two products of the mappings.

    Each applied mapping reads its output's gradient and both of its inputs, and writes their gradients; the merge hands
    its gradient on. The residual's three gradients (of H_res, H_pre and the mappings) are then summed pair by pair.
    """
    wide = n * width
    return {
        "apply_res": Access(read=2.0 * wide, mappings_read=n * n, written=wide, mappings_written=n * n),
        "apply_post": Access(read=wide + width, mappings_read=n, written=width, mappings_written=n),
        "apply_pre": Access(read=wide + width, mappings_read=n, written=wide, mappings_written=n),
        "gradient_sum": Access(read=4.0 * wide, written=2.0 * wide),
    }


def total(rows: Mapping[str, Access]) -> Access:
    """The sum of all operators."""
    names = ("read", "mappings_read", "written", "mappings_written")
    return Access(**{name: sum((getattr(row, name) for row in rows.values()), 0.0) for name in names})


def pre(name: str, place: Place, m: Num, model) -> list[Op]:
    """From the (m, n, C) residual to the normalised (m, C) input of the layer function: ``<name>_pre, <name>_norm``.

    The fused backward kernel of the mappings makes the gradients of the residual and of the weights in one pass, so
    both count as input gradients. Under ``recompute`` ``mhc`` the layer's input and its norm are made again (``norm``:
    only the norm).
    """
    size = 2.0 * m * model.hidden_size
    ops = [*_make(name, place, m, model), moved(f"{name}_norm", place, size, size)]
    if not place.training:
        return ops
    if "mhc" in place.recompute:
        ops.append(_pre_again(name, place, m, model))
    if "mhc" in place.recompute or "norm" in place.recompute:
        ops.append(moved(f"{name}_norm_recompute", place, size, size, "backward_input"))
    ops.append(moved(f"{name}_norm_backward", place, 2.0 * size, size, "backward_input", variant="norm_backward"))
    return ops + _make_backward(name, place, m, model)


def post(name: str, place: Place, m: Num, model) -> list[Op]:
    """From the (m, C) output of the layer function back to the (m, n, C) residual; ``<name>_post``.

    Under ``recompute`` ``mhc`` the residual behind the site is made again from the kept output of the layer function
    and the residual before it, which the fused recomputing kernel still holds on chip (TileKernels
    multilayer_recompute).
    """
    if place.streams == "unfused":
        return _unfused_post(name, place, m, model)
    ops = [_kernel("mhc_post", f"{name}_post", place, m, model)]
    if not place.training:
        return ops
    if "mhc" in place.recompute:
        size, n = 2.0 * m * model.hidden_size, model.n_streams
        read = size + 4.0 * m * n * (n + 1.0)
        ops.append(moved(f"{name}_post_recompute", place, read, size * n, "backward_input"))
    ops.append(_kernel("mhc_post", f"{name}_post_backward", place, m, model, _backward(place)))
    return ops


def _make(name: str, place: Place, m: Num, model) -> list[Op]:
    """The mappings of a site, and the layer's input from them."""
    if place.streams != "unfused":
        released = place.training and place.streams == "tile_kernels"
        return [_kernel("mhc_pre", f"{name}_pre", place, m, model, "training" if released else "")]
    rows = accesses(model.n_streams, model.hidden_size, "unfused")
    return [
        _product(f"{name}_mappings", place, m, model), _kernel("sinkhorn", f"{name}_sinkhorn", place, m, model),
        _apply(f"{name}_pre", place, m, rows["apply_pre"]),
    ]  # fmt: skip


def _make_backward(name: str, place: Place, m: Num, model) -> list[Op]:
    if place.streams != "unfused":
        return [_kernel("mhc_pre", f"{name}_pre_backward", place, m, model, _backward(place))]
    rows = gradients(model.n_streams, model.hidden_size)
    return [
        _apply(f"{name}_pre_backward", place, m, rows["apply_pre"], "backward_input"),
        _kernel("sinkhorn", f"{name}_sinkhorn_backward", place, m, model, "backward"),
        _product(f"{name}_mappings_dgrad", place, m, model, "backward_input"),
        _product(f"{name}_mappings_wgrad", place, m, model, "backward_weight"),
        _apply(f"{name}_gradient_sum", place, m, rows["gradient_sum"], "backward_input"),
    ]


def _backward(place: Place) -> str:
    """The variant of the kernels that run backward."""
    return "training_backward" if place.streams == "tile_kernels" else "backward"


def _pre_again(name: str, place: Place, m: Num, model) -> Op:
    """The layer's input made again. Mappings were kept; a fused block's residual is read once for all its sites."""
    n, size = model.n_streams, 2.0 * m * model.hidden_size
    if place.streams == "unfused":
        row = accesses(n, model.hidden_size, "unfused")["apply_pre"]
        return _apply(f"{name}_pre_recompute", place, m, row, "backward_input")
    read = size * n * blocks(model, place.n_stages) / stage_sites(model, place.n_stages) + 4.0 * m * n
    return moved(f"{name}_pre_recompute", place, read, size, "backward_input")


def _unfused_post(name: str, place: Place, m: Num, model) -> list[Op]:
    rows = accesses(model.n_streams, model.hidden_size, "unfused")
    steps = {"post": rows["apply_post"], "res": rows["apply_res"], "merge": rows["merge"]}
    ops = [_apply(f"{name}_{step}", place, m, row) for step, row in steps.items()]
    if not place.training:
        return ops
    if "mhc" in place.recompute:
        ops += [_apply(f"{name}_{step}_recompute", place, m, row, "backward_input") for step, row in steps.items()]
    back = gradients(model.n_streams, model.hidden_size)
    return [
        *ops, _apply(f"{name}_res_backward", place, m, back["apply_res"], "backward_input"),
        _apply(f"{name}_post_backward", place, m, back["apply_post"], "backward_input"),
    ]  # fmt: skip


def is_remade(name: str) -> bool:
    """Whether an operator of that name makes streams again, the layer's input and its norm with them."""
    return "_streams_" in name and name.endswith("_recompute")


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


def _apply(name: str, place: Place, m: Num, row: Access, phase: str = "forward") -> Op:
    return moved(name, place, m * row.read_bytes, m * row.write_bytes, phase)


def _product(name: str, place: Place, m: Num, model, phase: str = "forward") -> Op:
    """The unfused product of the mappings, (m, n C) with (n C, n^2 + 2 n), as a library has it: in BF16."""
    maps, wide = n_mappings(model.n_streams), model.n_streams * model.hidden_size
    shape, variant, divided = {
        "forward": ({"m": m, "n": maps, "k": wide}, "", "m"),
        "backward_input": ({"m": m, "n": wide, "k": maps}, "", "m"),
        "backward_weight": ({"m": maps, "n": wide, "k": m}, "wgrad", "k"),
    }[phase]
    return operator(
        "gemm", name, "bf16", shape, variant=variant, part=place.part, block=place.block, count=place.count,
        phase=phase, shards={"tensor": (divided,)},
    )  # fmt: skip


def _kernel(kind: str, name: str, place: Place, m: Num, model, variant: str = "") -> Op:
    shape = {
        "n_tokens": m, "hidden": model.hidden_size, "n_streams": model.n_streams,
        "sinkhorn_iters": model.sinkhorn_iters,
    }  # fmt: skip
    return operator(
        kind, name, "bf16", shape, variant=variant, part=place.part, block=place.block, count=place.count,
        phase="backward_input" if variant.endswith("backward") else "forward", shards={"tensor": ("n_tokens",)},
    )  # fmt: skip


def parameters(model) -> Num:
    """Parameters of one site: (n C) x (n^2 + 2 n) weights, as many biases as mappings, three scales (eq. 10 to 15).

    The RMSNorm of the flattened residual in front of the mappings has no weight of its own: one is absorbed by theirs.
    """
    maps = n_mappings(model.n_streams)
    return model.n_streams * model.hidden_size * maps + maps + 3.0


def stage_sites(model, n_stages: Num = 1.0) -> Num:
    """Sites of a mean pipeline stage."""
    return SITES_PER_LAYER * model.num_hidden_layers / n_stages


def blocks(model, n_stages: Num = 1.0) -> Num:
    """Recompute blocks of a pipeline stage of mean length; a block ends with its stage at the latest (s4.3.2).

    Whole blocks, as many as keep least by eq. 20, n C per block and (n + 2) C per site of the block in work, L being
    the model's sites: about sqrt((n + 2) L / n) in all, and at least one per stage. With as many micro-batches under
    way as there are stages that is also the least that one stage can keep.
    """
    n, sites = np.asarray(model.n_streams), np.asarray(stage_sites(model, n_stages))
    best = np.sqrt((n + 2.0) * sites / (n * n_stages))
    fewer, more = np.maximum(np.floor(best), 1.0), np.maximum(np.ceil(best), 1.0)

    def kept(count):
        return n * n_stages * count + (n + 2.0) * np.ceil(sites / count)

    return np.where(kept(fewer) <= kept(more), fewer, more)[()]


def block_sites(model, n_stages: Num = 1.0) -> Num:
    """Sites whose residual is made again together from one kept residual, next to sqrt(n L / (n + 2)) where stages are
    longer than that (eq. 20): the longest block of a mean stage."""
    return np.ceil(stage_sites(model, n_stages) / blocks(model, n_stages))


def kept_bytes(model, recompute: tuple[str, ...], n_stages: Num = 1.0) -> Num:
    """Bytes per token and site that training keeps for the backward pass of the site itself.

    The residual (n C), the layer function's input before its norm and its output (C each) in BF16, and the mappings
    before and after sigmoid and Sinkhorn with the mean square in FP32. The normalised input is the layer's own.
    Under ``recompute`` ``mhc`` (Table 3): the output, and the residual once per block; ``block_bytes`` come once per
    rank.
    """
    n, width = model.n_streams, model.hidden_size
    mappings = 4.0 * (2.0 * n_mappings(n) + 1.0)
    if "mhc" not in recompute:
        return 2.0 * (n + 2.0) * width + mappings
    shared = n * blocks(model, n_stages) / stage_sites(model, n_stages)
    return 2.0 * width * (1.0 + shared) + mappings


def block_bytes(model, n_stages: Num = 1.0) -> Num:
    """Bytes per token of the block that is being made again, (n + 2) C per site (Table 3, eq. 20), beside those of the
    layer that runs backward."""
    further = np.maximum(block_sites(model, n_stages) - SITES_PER_LAYER, 0.0)
    return 2.0 * (model.n_streams + 2.0) * model.hidden_size * further
