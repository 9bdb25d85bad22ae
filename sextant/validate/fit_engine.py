"""Fit what an inference engine does beside its layers, from rows of ``engine_loop``: seconds of the host per iteration
and per sequence or token (``engine_decode``, ``engine_prefill``, ``engine_hash``), per layer that is enqueued without a
graph (``engine_layer``), per text and its tokens (``engine_text``, rows of ``engine_text``), and the sampler over the
vocabulary (``memory_sampler``).

The rows are of one machine, run twice: the second run is held out. Another host is another speed; who uses these rates
for one says how far to trust them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.serving import host_work_s
from sextant.simulator.types import Device, KernelFit
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, solve, with_fit

#: Blocks of the host's work: the rows they are of.
HOST = {
    "engine_decode": "decode_loop", "engine_prefill": "prefill_loop", "engine_hash": "ngram_hash_cpu",
    "engine_layer": "layer_enqueued", "engine_text": "detokenise",
}  # fmt: skip
SAMPLER = "sampler_compiled"
#: Logits per sequence in those rows, as in ``engine_loop``, which cannot be imported without torch.
VOCABULARY = 151_936.0
#: Fewer sequences than this are sampled faster than the host enqueues the kernels: their rows time the host.
_FEWEST_SAMPLED = 128.0

_LINE = {"step_s": Bounds(start=3e-4, low=1e-6, high=1e-2), "unit_s": Bounds(start=3e-6, low=1e-9, high=1e-4)}
#: What takes nothing beside its units: layers, and tokens of a text.
_PER_UNIT = {
    "engine_layer": {"unit_s": Bounds(start=5e-4, low=1e-6, high=1e-2)},
    "engine_text": {"unit_s": Bounds(start=1e-6, low=1e-9, high=1e-4)},
}  # fmt: skip
_SAMPLER = {"efficiency": Bounds(start=0.07, low=0.01, high=1.0), "floor_s": Bounds(start=4e-5, low=1e-6, high=1e-3)}


def fit_engine(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """All blocks that the rows show. InputError where there are none, or where nothing was measured twice."""
    found = []
    for name, work in HOST.items():
        if mine := [row for row in rows if row.get("work") == work]:
            bounds = _PER_UNIT.get(name, _LINE)
            n = np.ones(len(mine)) if name == "engine_layer" else column(mine, "n")
            found.append(_host(name, n, column(mine, "us") * 1e-6, bounds, source))
    sampled = [row for row in rows if row.get("work") == SAMPLER and float(row["n"]) >= _FEWEST_SAMPLED]
    if sampled:
        found.append(_sampled(sampled, device, source))
    if not found:
        raise InputError("no rows of an engine; column 'work' says decode_loop, prefill_loop ...")
    return found


def _host(name: str, n: Array, measured_s: Array, bounds: dict[str, Bounds], source: str) -> Fitted:
    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        return np.asarray(host_work_s(fit, n[chosen]), dtype=np.float64)

    fixed = {} if "step_s" in bounds else {"step_s": 0.0}
    return solve(name, bounds, predict, measured_s, _again(n), source, fixed)


def _sampled(rows: Sequence[Row], device: Device, source: str) -> Fitted:
    n = column(rows, "n")

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        shape = {"read_bytes": 2.0 * n[chosen] * VOCABULARY, "write_bytes": 8.0 * n[chosen]}
        op = operator("memory", "sampler", "bf16", shape, variant="sampler")
        return np.asarray(estimate(op, alone(with_fit(device, "memory_sampler", fit))).seconds)

    return solve("memory_sampler", _SAMPLER, predict, column(rows, "us") * 1e-6, _again(n), source, {"write_cost": 1.0})


def _again(n: Array) -> NDArray[np.bool_]:
    """Which rows repeat an earlier one."""
    return np.asarray([value in n[:i] for i, value in enumerate(n)], dtype=bool)
