"""Fit attention and latent-attention kernels. Whole shapes are held out, never random rows of a dense grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import attention, estimate, mla
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.fit_gemm import sourced
from sextant.validate.prediction import operators
from sextant.validate.residuals import Pairs, corrected, crossed, grown, held_out_rows, whole_shapes
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, solve, with_fit

TILED_BOUNDS = {
    "matrix_efficiency": Bounds(start=0.7, low=0.2, high=1.0),
    "exp_per_s_per_sm": Bounds(start=2.0e10, low=5e9, high=3.2e10),
    "overlap_power": Bounds(start=1.6, low=1.0, high=8.0),
    "prologue_tiles": Bounds(start=0.6, low=0.0, high=10.0),
    "wave_share": Bounds(start=0.6, low=0.0, high=1.0),
    "tail": Bounds(start=0.3, low=0.0, high=1.5),
    "passes": Bounds(start=1.4, low=1.0, high=5.0),
    "token_s": Bounds(start=2e-10, low=0.0, high=1e-8),
    "serial_power": Bounds(start=1.2, low=1.0, high=4.0),
    "floor_s": Bounds(start=1.2e-5, low=1e-6, high=4e-5),
}

DECODE_BOUNDS = {
    "efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "l2_share": Bounds(start=0.4, low=0.01, high=1.0),
    "l2_bytes_per_s": Bounds(start=1e13, low=4e12, high=2e13),
    "chunk_tokens": Bounds(start=320.0, low=32.0, high=4096.0),
    "program_bytes_per_s": Bounds(start=5e10, low=1e10, high=1e11),
    "program_s": Bounds(start=4e-6, low=0.0, high=2e-5),
    "light_program_s": Bounds(start=1.2e-6, low=0.0, high=2e-5),
    "row_s": Bounds(start=5e-12, low=0.0, high=1e-10),
    "drain_s": Bounds(start=1.3e-5, low=0.0, high=5e-5),
    "light_drain_s": Bounds(start=4e-6, low=0.0, high=5e-5),
    "overlap_power": Bounds(start=2.0, low=1.0, high=8.0),
    "floor_s": Bounds(start=8e-6, low=1e-6, high=4e-5),
}

#: Decode of a library of which a few rows were measured: what is not fitted has no part in it. Flash attention splits
#: a cache as soon as programs are fewer than SMs.
FEW_BOUNDS = {
    "efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "program_bytes_per_s": Bounds(start=3e10, low=1e10, high=1e11),
    "drain_s": Bounds(start=3e-6, low=0.0, high=5e-5),
    "chunk_tokens": Bounds(start=320.0, low=32.0, high=4096.0),
    "floor_s": Bounds(start=6e-6, low=1e-6, high=4e-5),
}
_FEW_FIXED = {
    "l2_share": 0.01, "l2_bytes_per_s": 1e13, "program_s": 0.0, "light_program_s": 0.0, "row_s": 0.0,
    "light_drain_s": 0.0, "overlap_power": 2.0, "shared_group": 32.0, "split_share": 1.0,
}  # fmt: skip

MLA_BOUNDS = {
    "memory_efficiency": Bounds(start=0.92, low=0.3, high=1.0),
    "matrix_efficiency": Bounds(start=0.68, low=0.2, high=1.0),
    "overlap_power": Bounds(start=6.0, low=1.0, high=10.0),
    "program_s": Bounds(start=3e-6, low=0.0, high=4e-5),
    "row_passes": Bounds(start=1.8, low=1.0, high=6.0),
    "chunk_tokens": Bounds(start=180.0, low=64.0, high=4096.0),
    "program_bytes_per_s": Bounds(start=5e10, low=1e10, high=2e11),
    "split_passes": Bounds(start=1.5, low=0.0, high=10.0),
    "floor_s": Bounds(start=1.1e-5, low=1e-6, high=4e-5),
}

#: This package's split-KV kernel, and products with a softmax between them.
SPLIT_BOUNDS = {
    "floor_s": Bounds(start=4e-6, low=1e-6, high=1.5e-5),
    "step_s": Bounds(start=6e-7, low=2e-8, high=5e-6),
    "tall_step_s": Bounds(start=1e-6, low=5e-8, high=5e-6),
    "prologue_s": Bounds(start=1.5e-6, low=0.0, high=1e-5),
    "slots": Bounds(start=2.0, low=0.5, high=8.0),
    "tall_slots": Bounds(start=1.0, low=0.5, high=4.0),
    "whole_waves": Bounds(start=0.5, low=0.0, high=1.0),
    "join_s": Bounds(start=5e-8, low=0.0, high=1e-6),
    "efficiency": Bounds(start=0.9, low=0.4, high=1.0),
    "reread": Bounds(start=0.3, low=0.0, high=1.0),
    "overlap_power": Bounds(start=3.0, low=1.0, high=8.0),
    "part_efficiency": Bounds(start=0.5, low=0.05, high=2.0),
}
COMPOSED_BOUNDS = {
    "floor_s": Bounds(start=1e-5, low=1e-6, high=4e-5),
    "key_s": Bounds(start=5e-10, low=0.0, high=5e-9),
    "score_passes": Bounds(start=5.0, low=2.0, high=12.0),
    "cache_passes": Bounds(start=2.0, low=1.0, high=4.0),
    "efficiency": Bounds(start=0.8, low=0.2, high=1.0),
    "matrix_efficiency": Bounds(start=0.5, low=0.1, high=1.0),
}

#: Elements of a key tile of a Hopper kernel: 256 keys of 64 values, 128 of 128, 64 of 256.
KV_TILE_ELEMENTS = 16384.0

#: The largest group of query heads that shares one read of the cache in the measured decode kernels.
SHARED_GROUP = 32.0

#: A cache is split among SMs when programs alone would fill less than this share of them.
SPLIT_SHARE = 0.25


#: Libraries with blocks of their own name.
LIBRARIES = ("flash", "cudnn", "bmm")

_TILED_FEATURES = ("log2_programs_per_sm", "log2_keys", "log2_width", "log2_group")
_DECODE_FEATURES = ("log2_caches_per_sm", "log2_keys", "log2_group")
_N_CENTRES = 96
#: Tokens of the sequences for which a law of growth holds.
_LENGTHS = 2.0 ** np.arange(7.0, 15.0)


def attention_op(rows: Sequence[Row], chosen: NDArray[np.bool_] | None = None) -> Op:
    """One array operator for rows of one direction: ``attention``, or ``mla`` prefill with expanded heads."""
    rows = rows if chosen is None else [row for row, keep in zip(rows, chosen, strict=True) if keep]
    directions = {str(row.get("direction") or "forward") for row in rows}
    if len(directions) != 1:
        raise InputError(f"rows of one direction are needed, got {', '.join(sorted(directions)) or 'no rows'}")
    kinds = np.asarray([f"{row['op']}:{row.get('phase') or 'prefill'}" for row in rows])
    shape = {name: np.zeros(len(rows)) for name in operators.ATTENTION}
    for kind in np.unique(kinds).tolist():
        c = columns([row for row, own in zip(rows, kinds, strict=True) if own == kind], kind)
        c = operators.latent_prefill(c) if kind.startswith("mla") else c
        for name, values in shape.items():
            values[kinds == kind] = c[name]
    return operators.attention(shape, direction=directions.pop())


def fit_attention(name: str, rows: Sequence[Row], device: Device, source: str = "") -> Fitted:
    """The block ``name`` (``regime``) from BF16 rows of that regime; whole configurations of heads and whole (batch,
    kv_len) pairs are held out.

    The caller sends the rows of the regime: those of the other direction raise InputError.
    """
    wanted = "backward" if "backward" in name else "forward"
    if any(str(row.get("direction") or "forward") != wanted for row in rows):
        raise InputError(f"{name} is fitted to {wanted} rows only; filter on the column 'direction'")
    measured_s, test = column(rows, "us") * 1e-6, held_out_rows(rows)
    decode = name.startswith("attention_decode")
    fixed = {"shared_group": SHARED_GROUP, "split_share": SPLIT_SHARE} if decode else {}
    fixed = fixed or {"kv_tile_elements": KV_TILE_ELEMENTS}
    few = decode and bool(_library_of(name))
    bounds = FEW_BOUNDS if few else DECODE_BOUNDS if decode else TILED_BOUNDS
    whole = attention_op(rows)
    predict = _predictor(name, whole, device)
    fitted = solve(name, bounds, predict, measured_s, test, source, _FEW_FIXED if few else fixed)
    names = _DECODE_FEATURES if decode else _TILED_FEATURES

    def features(op: Op) -> dict[str, Array]:
        known = attention.features(op, device)
        return {name: np.asarray(known[name], dtype=np.float64) for name in names}

    size = {name: float(np.median(whole.shape[name])) for name in ("head_dim", "v_head_dim", "causal")}
    lower = crossed(batch=2.0 ** np.arange(9.0), kv_heads=2.0 ** np.arange(7.0), group=(1, 4, 8), kv_len=_LENGTHS)
    lower = {**lower, "heads": lower["kv_heads"] * lower.pop("group"), **_filled(size, lower["batch"])}
    lower["q_len"] = np.ones_like(lower["kv_len"]) if decode else lower["kv_len"]
    growing = ("kv_len",) if decode else ("kv_len", "q_len")
    uppers = [{**lower, **{name: 2.0 * lower[name] for name in more}} for more in (("batch",), growing)]
    pairs = _growths(fitted.fit, name, replace(whole, variant=_variant(name, whole)), device, lower, uppers, features)
    return _corrected(fitted, predict, features(whole), measured_s, test, rows, pairs)


def _filled(values: Mapping[str, float], like: Array) -> dict[str, Array]:
    return {name: np.full_like(like, value) for name, value in values.items()}


def _growths(
    fit: KernelFit, name: str, op: Op, device: Device, lower: Mapping[str, Array],
    uppers: Sequence[Mapping[str, Array]], features: Callable[[Op], Mapping[str, Array]],
) -> Pairs:  # fmt: skip
    """Twice the sequences, or twice the tokens: neither may take less time."""
    cluster = alone(with_fit(_bare(device), name, fit))

    def seconds(shape: Mapping[str, Array]) -> Array:
        return np.asarray(estimate(replace(op, shape=shape), cluster).seconds)

    return grown(lower, uppers, seconds, lambda shape: features(replace(op, shape=shape)))


def _predictor(name: str, whole: Op, device: Device) -> Callable[[KernelFit, NDArray[np.bool_]], Array]:
    """Seconds of chosen rows of one array operator by the block ``name``, whichever library the device prefers."""
    variant, bare = _variant(name, whole), _bare(device)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in whole.shape.items()}
        op = replace(whole, shape=part, variant=variant)
        return np.asarray(estimate(op, alone(with_fit(bare, name, fit))).seconds)

    return predict


def _variant(name: str, op: Op) -> str:
    """The variant of ``op`` that takes the block ``name``."""
    library = _library_of(name)
    return f"{op.variant}_{library}" if library else op.variant


def _bare(device: Device) -> Device:
    """``device`` without any block of attention: no other library may stand in for the one that is fitted."""
    others = {block: fit for block, fit in device.kernels.items() if not block.startswith(("attention", "mla"))}
    return replace(device, kernels=others)


def _library_of(name: str) -> str:
    last = name.rpartition("_")[2]
    return last if last in LIBRARIES else ""


def _corrected(
    fitted: Fitted,
    predict: Callable[[KernelFit, NDArray[np.bool_]], Array],
    known: Mapping[str, Array],
    measured_s: Array,
    test: NDArray[np.bool_],
    rows: Sequence[Row],
    pairs: Pairs,
) -> Fitted:
    varied = {feature: values for feature, values in known.items() if np.ptp(values) > 0.0}
    kept = Pairs(
        lower={name: pairs.lower[name] for name in varied}, upper={name: pairs.upper[name] for name in varied},
        growth=pairs.growth,
    )  # fmt: skip
    found = corrected(fitted, predict, varied, measured_s, test, whole_shapes(rows), pairs=kept, n_centres=_N_CENTRES)
    unseen = "configurations of heads and (batch, kv_len) pairs"
    return replace(found, fit=sourced(found.fit, unseen, found.held_out))


def regime(row: Row) -> str:
    """The block that a row of attention belongs to. Of the libraries measured on one GPU the fastest has none of its
    own name: cuDNN, and for one token per sequence the package's split-KV kernels."""
    variant = str(row.get("variant", ""))
    decode = row.get("phase") == "decode"
    library = "" if variant in ("", "splitkv" if decode else "cudnn") else f"_{variant}"
    if row["op"] == "mla" and decode:
        return f"mla{library}"
    backward = row.get("direction") == "backward"
    if decode:
        return f"attention_decode{library}"
    latent = row["op"] == "mla" or (row.get("v_head_dim") or row["head_dim"]) != row["head_dim"]
    if latent:
        return f"mla_prefill{'_backward' if backward else ''}{library}"
    if row.get("phase") == "encoder":
        return f"attention_encoder{'_backward' if backward else ''}{library}"
    return f"attention_{'backward' if backward else 'forward'}{library}"


def mla_op(rows: Sequence[Row], chosen: NDArray[np.bool_] | None = None) -> Op:
    """One array operator of the absorbed kernel for ``mla`` decode rows."""
    rows = rows if chosen is None else [row for row, keep in zip(rows, chosen, strict=True) if keep]
    return operators.latent_decode(columns(rows, "mla:decode"))


def fit_mla(rows: Sequence[Row], device: Device, source: str = "", name: str = "mla") -> Fitted:
    """The block ``name`` from BF16 decode rows; whole numbers of heads and whole (batch, kv_len) pairs are held out."""
    measured_s, test, whole = column(rows, "us") * 1e-6, held_out_rows(rows), mla_op(rows)
    predict = _predictor(name, whole, device)
    own = {row.get("library", "") for row in rows}
    bounds = SPLIT_BOUNDS if own == {"triton_splitkv"} else COMPOSED_BOUNDS if own == {"cublas_bmm"} else MLA_BOUNDS
    fitted = solve(name, bounds, predict, measured_s, test, source)

    def features(op: Op) -> dict[str, Array]:
        return {name: np.asarray(values, dtype=np.float64) for name, values in mla.features(op, device).items()}

    lower = crossed(batch=2.0 ** np.arange(9.0), heads=2.0 ** np.arange(3.0, 8.0), kv_len=_LENGTHS)
    size = {name: float(np.median(whole.shape[name])) for name in ("q_len", "kv_lora_rank", "qk_rope_head_dim")}
    lower |= _filled(size, lower["batch"])
    uppers = [{**lower, more: 2.0 * lower[more]} for more in ("batch", "kv_len")]
    pairs = _growths(fitted.fit, name, replace(whole, variant=_variant(name, whole)), device, lower, uppers, features)
    return _corrected(fitted, predict, features(whole), measured_s, test, rows, pairs)
