"""Published kernels of an H800, beside their predictions: DeepGEMM, FlashMLA, DeepEP and the kernels of the DualPipe
trace.

No coefficient was fitted to any of them. A kernel of the trace ran on the SMs that communication left, at the clock
that lasting load leaves; the others ran alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sextant import hwmodels
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import with_sms
from sextant.simulator.types import Cluster
from sextant.validate import prediction, published
from sextant.validate.exchange_rates import logical_bytes
from sextant.validate.published import Comparison, Figure, Kernel

#: The GPU of all published kernels.
_GPU = "h800"

_EXCHANGES = ("ep_dispatch", "ep_combine")

#: Width of a row of DeepSeek-V3's latent cache, and of its part with positions.
_LATENT, _ROPE = 512.0, 64.0


def kernel_comparisons() -> dict[str, Comparison]:
    """The figures that name a kernel, by id, each beside its prediction. A rate in bytes that says no more than another
    figure of its group is left out: a product's beside its FLOPs, a low-latency exchange's beside its seconds.
    InputError for a case that cannot be predicted."""
    return {f.id: _comparison(f, f.kernel) for f in published.figures() if f.kernel and _telling(f, f.kernel)}


def _telling(figure: Figure, kernel: Kernel) -> bool:
    case = kernel.case
    if "bytes" not in figure.metric or case["op"] == "mla":
        return True
    return case["op"] in _EXCHANGES and case.get("mode") == "normal"


def _comparison(figure: Figure, kernel: Kernel) -> Comparison:
    found = prediction.predict({name: [str(cell)] for name, cell in kernel.case.items()}, 1, _cluster(kernel))
    if found.error[0]:
        raise InputError(f"{figure.id}: {found.error[0]}")
    work = _WORK.get(figure.metric)
    seconds = 1e-6 * np.array([found.us[0], found.low_us[0], found.high_us[0]])
    # A rate is high where the time is low.
    values = seconds if work is None else work(kernel.case) / seconds[[0, 2, 1]]
    return published.beside(figure, *(float(value) for value in values))


def _cluster(kernel: Kernel) -> Cluster:
    if kernel.n_sms is None:
        return prediction.single_kernel_cluster(_GPU)
    lasting = hwmodels.cluster(f"hgx-{_GPU}")
    return replace(lasting, device=with_sms(lasting.device, float(kernel.n_sms)))


def flops(case: Mapping[str, Any]) -> float:
    """FLOPs of one call of a product, or of latent decoding, whose keys are latent and position, values latent."""
    if case["op"] == "gemm":
        return 2.0 * case["m"] * case["n"] * case["k"]
    if case["op"] == "grouped_gemm":
        return 2.0 * case["groups"] * case["tokens_per_group"] * case["n"] * case["k"]
    return 2.0 * case["batch"] * case["heads"] * case["q_len"] * case["kv_len"] * (2.0 * _LATENT + _ROPE)


def moved_bytes(case: Mapping[str, Any]) -> float:
    """Bytes of one call of latent decoding: the cache, queries and outputs, in BF16."""
    rows = case["batch"] * case["kv_len"] * (_LATENT + _ROPE)
    return 2.0 * (rows + case["batch"] * case["heads"] * case["q_len"] * (2.0 * _LATENT + _ROPE))


#: What a published rate counts, by metric.
_WORK = {
    "achieved_flops_per_s": flops, "achieved_bytes_per_s": moved_bytes, "ep_dispatch_bytes_per_s": logical_bytes,
    "ep_combine_bytes_per_s": logical_bytes,
}  # fmt: skip
