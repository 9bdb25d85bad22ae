"""Published figures that Sextant predicts, beside their predictions: sizes of models, networks, scenarios, kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Num
from sextant.studies import answer as answering
from sextant.studies import catalogue, judged_kernels, report, study, topology_card
from sextant.validate import published
from sextant.workloads import models, parameters
from sextant.workloads.transformer import Transformer

#: What the predictions of a group rest on, and to what it was fitted.
_SIZES = "none"
_TIMES = (
    "kernel efficiencies and the exchange of experts, to H100 and H200 kernels; the copying of its first version, "
    "where a plan names it, to rates that DeepEP published of it"
)
_A100_TIMES = "kernel efficiencies, to A100 products and collectives and H100 and H200 kernels"
_KERNELS = "kernel efficiencies, to H100 and H200 kernels"

#: The sequence length of the published FLOPs per token.
_CONTEXT_TOKENS = 4096.0

#: Groups of published figures that a model's dimensions answer.
_MODEL_GROUPS = {
    "deepseek-v3": (
        "deepseek_v3", "deepseek_v3.report", "deepseek_v3.recount", "kv_cache.deepseek_v3",
        "training_flops.deepseek_v3_671b",
    ),
    "deepseek-v2": ("deepseek_v2", "deepseek_v2.recount", "training_flops.deepseek_v2_236b"),
    "qwen-2.5-72b": ("kv_cache.qwen_2_5_72b", "training_flops.qwen_72b"),
    "llama-3.1-405b": ("kv_cache.llama_3_1_405b", "training_flops.llama_405b"),
    "deepseek-coder-v2-lite": ("deepseek_v2_lite", "deepseek_v2_lite.recount"),
    "deepseek-coder-1.3b": ("deepseek_coder_1_3b.recount",),
    "deepseek-coder-6.7b": ("deepseek_coder_6_7b.recount",),
    "deepseek-coder-33b": ("deepseek_coder_33b.recount",),
    "deepseek-vl2-tiny": ("deepseek_vl2_tiny", "deepseek_vl2_tiny.recount", "deepseek_vl2_tiny.with_vision"),
    "deepseek-vl2-small": ("deepseek_vl2_small", "deepseek_vl2_small.recount", "deepseek_vl2_small.with_vision"),
    "deepseek-vl2": ("deepseek_vl2", "deepseek_vl2.recount", "deepseek_vl2.with_vision"),
    "deepseek-vl-1.3b": ("deepseek_vl_1_3b.checkpoint",),
    "janus-pro-1b": ("janus_pro_1b.recount",),
    "janus-pro-7b": ("janus_pro_7b.recount", "janus_pro_7b.checkpoint"),
    "janus-1.3b": ("janus_1_3b.checkpoint",),
    "janusflow-1.3b": ("janusflow_1_3b.checkpoint",),
    "dense-4b": ("engram.dense_4b",),
    "moe-27b": ("engram.moe_27b",),
    "engram-27b": ("engram.engram_27b",),
    "engram-40b": ("engram.engram_40b",),
    "mhc-3b": ("mhc.3b",),
    "mhc-9b": ("mhc.9b",),
    "mhc-27b": ("mhc.27b",),
}  # fmt: skip


def published_errors(prefix: str = "") -> list[dict[str, Any]]:
    """Rows {id, predicted, low, high, published, error, inside, fitted, source} of figures under ``prefix``.

    ``inside`` says whether the figure lies in the prediction's 90% interval, None where the prediction is exact.
    Unconfirmed figures are left out. InputError if nothing is under ``prefix``.
    """
    asked = [name for name in catalogue.scenario_names() if _may_predict(name, prefix)]
    rows = {
        row["id"]: row
        for row in (*_sizes(), *_networks(), *(r for name in asked for r in _scenario(name)), *_kernels())
    }
    chosen = [row for id, row in rows.items() if id.startswith(prefix)]
    if not chosen:
        groups = {id.rpartition(".")[0] for id in rows}.union(
            *(_published(name) for name in catalogue.scenario_names())
        )
        raise InputError(f"no predicted figure begins with {prefix!r}; {nearest(prefix, groups)}")
    return [dict(row) for row in chosen]


@cache
def _published(name: str) -> tuple[str, ...]:
    """The groups of figures that a shipped scenario is judged by."""
    return answering.question(name).published


def _may_predict(name: str, prefix: str) -> bool:
    """Whether a figure that begins with ``prefix`` may be among those of a shipped scenario."""
    return any(group.startswith(prefix) or prefix.startswith(group) for group in _published(name))


def _sizes() -> list[dict[str, Any]]:
    rows = []
    known = {figure.id.rpartition(".")[0] for figure in published.figures()}
    for name, groups in _MODEL_GROUPS.items():
        predicted = sizes(models.model(name))
        for group in (each for each in groups if each in known):
            rows += [_row(group, pair, _SIZES, exact=True) for pair in published.compare(predicted, group)]
    return rows


def sizes(model: Transformer) -> dict[str, Num]:
    """What a model's dimensions say, under the names of published figures."""
    pieces = parameters.by_piece(model)
    return {
        "n_parameters": parameters.n_parameters(model), "mtp_parameters": parameters.mtp_parameters(model),
        "n_activated_parameters": parameters.activated_parameters(model),
        "n_language_parameters": parameters.language_parameters(model),
        "n_activated_language_parameters": parameters.language_activated_parameters(model),
        "engram_parameters": pieces.get("engram_tables", 0.0),
        "checkpoint_bytes": parameters.checkpoint_bytes(model),
        "kv_bytes_per_token": parameters.kv_bytes_per_token(model),
        "training_flops_per_token": parameters.training_flops_per_token(model, _CONTEXT_TOKENS),
    }  # fmt: skip


@cache
def _scenario(name: str) -> tuple[dict[str, Any], ...]:
    """The figures that a shipped scenario is judged by; none of a sweep without a study. It is answered once."""
    asked = answering.question(name)
    if asked.scenario.axes and not asked.study:
        return ()
    found = report.Answer(question=asked, result=answering.answer(asked))
    if asked.study:
        return tuple(_study(found, study.find(asked.study)))
    fitted = _A100_TIMES if asked.scenario.cluster.device.name.startswith("a100") else _TIMES
    return tuple(
        _row(group, pair, fitted, exact=metric == "kv_bytes_per_token")
        for group in asked.published
        for metric, pair in report.comparisons(found, groups=(group,)).items()
    )


def _study(found: report.Answer, asked: study.Study) -> list[dict[str, Any]]:
    """The figures that a study's answer is judged by, of the groups that its scenario lists."""
    rows = []
    for group, metrics in (asked.judged(found) if asked.judged else {}).items():
        value, low, high = ({name: ends[i] for name, ends in metrics.items()} for i in range(3))
        if group in found.question.published:
            rows += [
                _row(group, p, asked.fitted, exact=False) for p in published.compare(value, group, low=low, high=high)
            ]
    return rows


def _networks() -> list[dict[str, Any]]:
    return [
        _row(id.removesuffix(f".{pair.metric}"), pair, fitted, exact=fitted != topology_card.LATENCY)
        for id, pair, fitted in topology_card.comparisons()
    ]


def _kernels() -> list[dict[str, Any]]:
    return [
        _row(id.removesuffix(f".{pair.metric}"), pair, _KERNELS, exact=False)
        for id, pair in judged_kernels.kernel_comparisons().items()
    ]


def _row(group: str, pair: published.Comparison, fitted: str, *, exact: bool) -> dict[str, Any]:
    return {
        "id": f"{group}.{pair.metric}", "predicted": float(pair.predicted), "low": float(pair.low),
        "high": float(pair.high), "published": pair.published, "error": float(pair.error),
        "inside": None if exact else bool(pair.inside), "fitted": fitted, "source": pair.source,
    }  # fmt: skip
