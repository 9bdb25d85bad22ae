"""Fit training kernels of residual streams: DeepSeek's own, and this package's fused gradients.

Rows of ``validate.stream_training`` give ``mhc_post_training_backward`` by the coefficients of ``rows``, and
``mhc_pre_training`` and ``mhc_pre_training_backward`` by those of ``simulator.kernels.mhc_training``: the column
``kernels`` gives every part its own times. Rows of ``validate.stream_gradients`` give ``mhc_post_backward`` and
``mhc_pre_backward`` in the same way. Errors are those of whole calls of hidden sizes that no fit saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, fit_of, mhc_training
from sextant.simulator.types import Device, KernelFit
from sextant.validate.fit_mhc import fit_unseen, judged
from sextant.validate.prediction import operators
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, errors, solve, with_fit

Chosen = NDArray[np.bool_]

#: L2 was overwritten before every call: all tensors come from HBM, and a floor is all of the latency.
_POST_FIXED = {"write_cost": 1.0, "l2_share": 0.0, "l2_speedup": 1.0, "cold_share": 0.01}
_RELEASED_POST = {
    "cold_s": Bounds(start=4e-6, low=0.0, high=2e-5),
    "row_s": Bounds(start=3e-7, low=0.0, high=3e-6),
    "efficiency": Bounds(start=0.8, low=0.3, high=1.0),
}

_FUSED_POST = {
    "floor_s": Bounds(start=4e-6, low=1e-6, high=2e-5), "efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "value_s": Bounds(start=3e-11, low=0.0, high=1e-9),
}  # fmt: skip

_FLOOR, _EFFICIENCY = Bounds(start=3e-6, low=0.0, high=5e-5), Bounds(start=0.8, low=0.2, high=1.0)
_SMALL = {"small_s": Bounds(start=1e-5, low=1e-6, high=1e-4), "token_s": Bounds(start=1e-7, low=0.0, high=1e-6)}

#: By block and part what is fitted to that part alone.
PARTS: Mapping[str, Mapping[str, Mapping[str, Bounds]]] = {
    "mhc_pre_training": {
        "product": {
            "product_floor_s": _FLOOR, "product_value_s": Bounds(start=4e-9, low=1e-10, high=1e-7),
            "product_efficiency": _EFFICIENCY,
        },
        "apply": {
            "apply_floor_s": _FLOOR, "apply_efficiency": _EFFICIENCY,
            "apply_l2_share": Bounds(start=0.3, low=0.0, high=1.0),
            "apply_l2_speedup": Bounds(start=2.0, low=1.0, high=6.0),
        },
        "sinkhorn": {"sinkhorn_s": _FLOOR, "token_iteration_s": Bounds(start=2e-8, low=1e-9, high=1e-6)},
        "small": _SMALL,
    },
    "mhc_pre_training_backward": {
        "product": {
            "product_token_s": Bounds(start=9e-8, low=0.0, high=1e-6),
            "product_exposed": Bounds(start=0.5, low=0.0, high=2.0),
        },
        "apply": {"apply_floor_s": _FLOOR, "apply_efficiency": _EFFICIENCY},
        "sinkhorn": {"wave_iteration_s": Bounds(start=1e-6, low=1e-8, high=1e-5)},
        "small": _SMALL,
    },
    "mhc_pre_backward": {
        "product": {
            "product_stream_s": _FLOOR, "product_efficiency": _EFFICIENCY,
            "lane_s": Bounds(start=1e-11, low=1e-13, high=1e-9),
        },
        "apply": {
            "apply_floor_s": _FLOOR, "apply_efficiency": _EFFICIENCY,
            "apply_dirty": Bounds(start=0.8, low=0.1, high=1.0), "apply_written": Bounds(start=0.3, low=0.0, high=1.0),
        },
        "sinkhorn": {
            "map_floor_s": Bounds(start=2e-6, low=1e-6, high=1e-5),
            "map_iteration_s": Bounds(start=3e-7, low=0.0, high=5e-6),
            "spilled_iteration_s": Bounds(start=5e-7, low=0.0, high=5e-6),
            "token_s": Bounds(start=1e-7, low=0.0, high=2e-6),
            "token_iteration_s": Bounds(start=5e-9, low=0.0, high=1e-7),
        },
    },
}  # fmt: skip

#: Kernels of a part by their names; the others are small ones.
_KERNELS = {
    "product": re.compile(r"norm_fn_\w+_mul|_product_gradients"), "apply": re.compile("apply_mix|_pre_gradient"),
    "sinkhorn": re.compile("sinkhorn|_mapping_gradients"),
}  # fmt: skip

_COMPUTE = {
    "mhc_pre_training": mhc_training.forward, "mhc_pre_training_backward": mhc_training.backward,
    "mhc_pre_backward": mhc_training.fused_backward,
}  # fmt: skip


def fit_mhc_training(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The three blocks of the released kernels, as far as there are rows; ``device`` holds the block ``memory``.

    InputError if there are no rows, of one hidden size only, or without the times of the kernels.
    """
    asked = {
        ("mhc_post", "backward"): "mhc_post_training_backward", ("mhc_pre", "forward"): "mhc_pre_training",
        ("mhc_pre", "backward"): "mhc_pre_training_backward",
    }  # fmt: skip
    return _fit(asked, rows, device, source)


def fit_mhc_backward(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The two blocks of this package's fused gradients; errors as those of ``fit_mhc_training``."""
    asked = {("mhc_post", "backward"): "mhc_post_backward", ("mhc_pre", "backward"): "mhc_pre_backward"}
    return _fit(asked, rows, device, source)


def _fit(asked: Mapping[tuple[str, str], str], rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    found: list[Fitted] = []
    for (op, direction), name in asked.items():
        part = [row for row in rows if row["op"] == op and row.get("direction") == direction]
        if part:
            found.append((_fit_post if op == "mhc_post" else _fit_pre)(name, part, device, source))
    if not found:
        raise InputError("no rows of mhc_pre and mhc_post with a direction; check columns 'op' and 'direction'")
    return found


def part_s(row: Row) -> dict[str, float]:
    """Seconds by part of one call; small is what the other parts leave of its time. InputError without a part's."""
    seconds = dict.fromkeys(_KERNELS, 0.0)
    for kernel in str(row.get("kernels", "")).split(" + "):
        name, _, us = kernel.rpartition(" ")
        for part, told in _KERNELS.items():
            if told.search(name):
                seconds[part] += 1e-6 * float(us)
    absent = [part for part, value in seconds.items() if value <= 0.0]
    if absent:
        raise InputError(f"mhc_pre: column 'kernels' has no time of {absent[0]}; measure it with stream_training")
    return {**seconds, "small": 1e-6 * float(row["us"]) - sum(seconds.values())}


def _fit_post(name: str, rows: Sequence[Row], device: Device, source: str) -> Fitted:
    bounds: Mapping[str, Bounds] = _FUSED_POST
    fixed: dict[str, float] = {}
    if name == "mhc_post_training_backward":
        bounds = _RELEASED_POST
        fixed = {**_POST_FIXED, "floor_s": float(fit_of(device, "memory").coefficients["floor_s"])}

    def predict(fit: KernelFit, chosen: Chosen) -> Array:
        shape = {key: np.asarray(values)[chosen] for key, values in columns(rows, "mhc_post").items()}
        op = replace(operators.streams("mhc_post", shape), variant=name.removeprefix("mhc_post_"))
        return np.asarray(estimate(op, alone(with_fit(device, name, fit))).seconds)

    fitted = fit_unseen(name, bounds, fixed, predict, column(rows, "us") * 1e-6, column(rows, "hidden"), "hidden sizes")
    return replace(fitted, fit=replace(fitted.fit, source=f"{source}; {fitted.fit.source}"))


def _fit_pre(name: str, rows: Sequence[Row], device: Device, source: str) -> Fitted:
    compute = _COMPUTE[name]
    shape, seconds = columns(rows, "mhc_pre"), [part_s(row) for row in rows]
    whole_s, hidden = column(rows, "us") * 1e-6, column(rows, "hidden")
    if len(np.unique(hidden)) < 2:
        raise InputError(f"{name}: all rows have the same hidden sizes; a fit needs a second one to be judged by")
    every = {key: 1.0 for bounds in PARTS[name].values() for key in bounds}

    def parts(fit: KernelFit, chosen: Chosen) -> mhc_training.Parts:
        sides = {key: np.asarray(values)[chosen] for key, values in shape.items()}
        return compute(sides, {**every, **fit.coefficients}, device)

    def fitted(train: Chosen) -> KernelFit:
        coefficients: dict[str, float] = {}
        for part, bounds in PARTS[name].items():
            measured_s = np.array([each[part] for each in seconds])
            found = solve(
                name, bounds, lambda fit, chosen, part=part: np.asarray(getattr(parts(fit, chosen), part)), measured_s,
                ~train, source, left_out=~train,
            )  # fmt: skip
            coefficients.update({key: float(value) for key, value in found.fit.coefficients.items()})
        return KernelFit(coefficients=coefficients, low=1.0, high=1.0, provenance="fitted", source=source)

    unseen_s = np.empty_like(whole_s)
    for value in np.unique(hidden):
        unseen_s[hidden == value] = parts(fitted(hidden != value), hidden == value).total
    everything = np.ones(len(rows), dtype=bool)
    kept = fitted(everything)
    training = errors(np.asarray(parts(kept, everything).total), whole_s)
    return judged(name, kept, training, errors(unseen_s, whole_s), "hidden sizes")
