"""Times of kernel cases of one operator, format and kind, as arrays, through the simulator's own estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.hwmodels import cluster as cluster_named
from sextant.hwmodels import device as device_named
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import PEAK, estimate
from sextant.simulator.kernels.attention import DECODE_ROWS
from sextant.simulator.types import PROVENANCES, Cluster, Estimate
from sextant.validate.prediction import operators
from sextant.validate.prediction.experts import moe_estimate
from sextant.validate.prediction.vocabulary import CaseKind

Columns = Mapping[str, NDArray[np.float64]]
Text = Mapping[str, str]

#: Operators whose format is that of tensor cores.
PRODUCTS = ("gemm", "grouped_gemm", "moe", "attention", "mla", "conv2d")


def single_kernel_cluster(device: str) -> Cluster:
    """One node of the GPU called ``device``, at the clock that kernels of milliseconds reach; InputError offers the
    nearest names."""
    device_named(device)
    found = cluster_named(f"hgx-{device}")
    return replace(found, device=replace(found.device, clock_under_load=1.0))


def format_of(text: Text, kind: CaseKind) -> str:
    """The format of a case, or the default of its operator; that of an exchange depends on its direction."""
    if text["format"] or text["op"].startswith("ep_"):
        return text["format"]
    return kind.formats[0] if kind.formats else ""


def regimes(text: Text, c: Columns) -> NDArray[np.int64] | None:
    """What tells rows of one kind apart although their text is the same, (n_rows,); None where nothing does.

    Each regime is estimated alone: the provenance of an estimate is one word, that of its least trusted row.
    """
    op = text["op"]
    if op == "attention" or (op == "mla" and text["phase"] != "decode"):
        latent = c["head_dim"] != c["v_head_dim"] if op == "attention" else np.ones(len(c["q_len"]), dtype=bool)
        decode = (c["q_len"] <= DECODE_ROWS) & (c["kv_len"] > c["q_len"])
        return decode * 4 + latent * 2 + (c["causal"] == 0)
    if op == "grouped_gemm":
        return (c["tokens_per_group"] % 1.0 > 0).astype(np.int64)
    if op == "conv2d":
        return (c["groups"] > 1).astype(np.int64)
    if "message_elements" in c:
        return (c["n_gpus"] > c["n_gpus_per_node"]).astype(np.int64)
    return None


def timed(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    """The estimate of rows of one kind and regime; columns (n_rows,). ValueError says why there is none."""
    op, direction = text["op"], text["direction"] or "forward"
    if op in PRODUCTS:
        _check_format(format, cluster)
    if op in _SPECIAL:
        return _SPECIAL[op](text, format, c, cluster)
    if op.startswith("ep_"):
        return estimate(operators.exchange(op, c, text["mode"], format), cluster)
    if "message_elements" in c:
        return estimate(operators.collective(op, c, operators.message_bytes(format), format), cluster)
    if "n_streams" in c:
        return estimate(operators.streams(op, c, direction), cluster)
    return estimate(operators.moved(op, c, format, text["variant"]), cluster)


def _check_format(format: str, cluster: Cluster) -> None:
    """InputError where the GPU has no tensor cores for ``format``: a step of a model may fall back to BF16, but a case
    asks for this very kernel."""
    device = cluster.device
    if PEAK.get(format, format) not in device.peak_flops_per_s:
        raise InputError(f"format: {device.name} has no tensor cores for {format}; give bf16 or fp16")


def _gemm(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    return estimate(operators.gemm(c, format, text["variant"], text["library"]), cluster)


def _grouped(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    # A fraction of a token is an average over random routing.
    average = not text["variant"] and bool(np.any(c["tokens_per_group"] % 1.0 > 0))
    return estimate(operators.grouped_gemm(c, format, "random" if average else text["variant"]), cluster)


def _attention(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    return estimate(operators.attention(c, format, text["direction"] or "forward", text["variant"]), cluster)


def _latent(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    if text["phase"] == "decode":
        return estimate(operators.latent_decode(c, format, text["variant"]), cluster)
    return _attention(text, format, operators.latent_prefill(c), cluster)


def _experts(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    gates = 1.0 if text["variant"] == "ungated" else 2.0
    found = moe_estimate(c, format, text["routing"], cluster, gates=gates)
    if text["variant"] != "layer":
        return found
    # The whole layer: scores of all experts, and their selection, before the experts.
    router = {"m": c["n_tokens"], "n": c["n_experts"], "k": c["hidden"]}
    chosen = {"n_tokens": c["n_tokens"], "groups": c["n_experts"], "top_k": c["top_k"]}
    for op in (operators.gemm(router, "bf16"), operators.moved("routing", chosen, "fp32", "topk")):
        found = _added(found, estimate(op, cluster))
    return found


def _added(a: Estimate, b: Estimate) -> Estimate:
    """Two estimates one after the other."""
    return Estimate(
        seconds=a.seconds + b.seconds, low=a.low + b.low, high=a.high + b.high,
        limits={name: a.limits.get(name, 0.0) + b.limits.get(name, 0.0) for name in {**a.limits, **b.limits}},
        provenance=max(a.provenance, b.provenance, key=PROVENANCES.index),
    )  # fmt: skip


def _gather(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    return estimate(operators.gather(c, text["tier"] or "hbm", format, text["variant"]), cluster)


def _host_copy(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    return estimate(operators.host_copy(text["op"], c), cluster)


def _convolution(text: Text, format: str, c: Columns, cluster: Cluster) -> Estimate:
    gradient = "dgrad" if text["direction"] == "backward" else ""
    return estimate(operators.convolution(c, format, text["variant"] or gradient), cluster)


_SPECIAL: Mapping[str, Callable[[Text, str, Columns, Cluster], Estimate]] = {
    "gemm": _gemm, "grouped_gemm": _grouped, "attention": _attention, "mla": _latent, "moe": _experts,
    "gather": _gather, "h2d": _host_copy, "d2h": _host_copy, "conv2d": _convolution,
}  # fmt: skip


def relations(c: Columns) -> list[tuple[NDArray[np.bool_], str]]:
    """Rows whose columns contradict each other, (n_rows,), and why."""
    found: list[tuple[NDArray[np.bool_], str]] = []
    for smaller, larger in (("kv_heads", "heads"), ("top_k", "n_experts"), ("expert_parallel", "n_experts")):
        if smaller in c and larger in c:
            found.append((c[smaller] > c[larger], f"{smaller}: larger than {larger}; lower it"))
    if "causal" in c:
        found.append((c["causal"] > 1, "causal: neither 0 nor 1"))
    if "n_nodes" in c:
        crowded = (c["n_nodes"] > 0) & (c["n_gpus"] > c["n_nodes"] * operators.PER_NODE)
        found.append((crowded, "n_nodes: a node has 8 GPUs; give more nodes, or leave it empty"))
        found.append((c["n_nodes"] > c["n_gpus"], "n_nodes: more nodes than GPUs"))
    if "kernel_size" in c:
        deep = c["groups"] > 1
        odd = deep & ((c["groups"] != c["in_channels"]) | (c["out_channels"] != c["in_channels"]))
        found.append((odd, "groups: 1 group, or as many as in_channels and out_channels, are modelled"))
    return found
