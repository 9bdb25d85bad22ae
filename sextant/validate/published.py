"""Figures that others published, and what a prediction looks like beside them.

``data/published/*.yaml`` holds groups; a figure's id is its group and its metric, as in
``deepseek_v3_training.mpft.mfu_causal``. Times and throughputs of whole systems are what the simulator is judged by,
so nothing is fitted to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sextant.simulator.errors import InputError, Problem, nearest
from sextant.simulator.types import Num
from sextant.simulator.units import parse

FOLDER = Path(__file__).parent / "data" / "published"

#: published: copied from the source. computed: arithmetic on published figures. unconfirmed: not found in a source.
CONFIDENCES = ("published", "computed", "unconfirmed")

#: Every metric a figure may have, and its dimension; "" is a count, a fraction or a rate of counts.
METRICS: Mapping[str, str] = {
    **dict.fromkeys(
        ("step_time_s", "forward_s", "bubble_s", "backward_input_s", "backward_weight_s", "forward_backward_s",
         "optimizer_s", "exposed_comm_s", "chunk_pair_s", "compute_busy_s", "comm_busy_s", "overlap_s", "idle_s",
         "kernel_s", "tpot_s", "all_to_all_s", "ep_dispatch_s", "ep_combine_s", "same_leaf_latency_s",
         "cross_leaf_latency_s"), "s"),
    **dict.fromkeys(("achieved_causal_flops_per_s", "achieved_noncausal_flops_per_s", "achieved_flops_per_s",
                     "peak_flops_per_s"), "flops_per_s"),
    **dict.fromkeys(("achieved_bytes_per_s", "ep_dispatch_bytes_per_s", "ep_combine_bytes_per_s"), "bytes_per_s"),
    **dict.fromkeys(("cost_usd",), "usd"),
    **dict.fromkeys(("checkpoint_bytes",), "bytes"),
    **dict.fromkeys(
        ("n_parameters", "n_activated_parameters", "mtp_parameters", "mtp_activated_parameters", "engram_parameters",
         "n_language_parameters", "n_activated_language_parameters",
         "n_tokens", "n_kv_tokens", "n_input_tokens", "n_cached_input_tokens", "n_output_tokens", "n_nodes",
         "n_endpoints", "n_switches", "n_links", "usd_per_endpoint", "gpu_hours", "gpu_hours_per_trillion_tokens",
         "training_flops_per_token", "kv_bytes_per_token", "tokens_per_day", "tokens_per_s", "tokens_per_s_per_node",
         "tokens_per_s_per_device", "tokens_per_s_per_user", "mfu_causal", "mfu_noncausal", "time_overhead",
         "throughput_loss", "validation_loss", "saved_loss", "mtp_acceptance", "mtp_speedup"), ""),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure in SI units. ``low`` and ``high`` differ from ``value`` only where the source states a range."""

    id: str
    system: str
    metric: str
    value: float
    low: float
    high: float
    setting: str
    source: str
    confidence: str
    kernel: Kernel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel that a figure is of: a row of a kernel-case file, and on how many SMs it ran under lasting load (None:
    alone, on all)."""

    case: Mapping[str, str | float]
    n_sms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """A published formula, as text, in the symbols that ``setting`` explains."""

    id: str
    system: str
    text: str
    setting: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A prediction beside a figure. ``error`` is predicted over published, less one; ``inside`` whether the figure
    (or some part of its stated range) lies in the prediction's interval. Shapes () or (n_points,)."""

    metric: str
    predicted: Num
    low: Num
    high: Num
    published: float
    error: Num
    inside: Any
    source: str
    confidence: str


def figures(prefix: str = "") -> tuple[Figure, ...]:
    """All figures whose id is ``prefix`` or lies under it, in file order; all of them for ""."""
    return tuple(figure for figure in _load()[0] if _under(figure.id, prefix))


def formulas(prefix: str = "") -> tuple[Formula, ...]:
    """All formulas whose id is ``prefix`` or lies under it, in file order."""
    return tuple(formula for formula in _load()[1] if _under(formula.id, prefix))


def groups() -> tuple[str, ...]:
    """The groups that ``compare`` takes, in file order."""
    return tuple(dict.fromkeys(f.id.removesuffix(f".{f.metric}") for f in _load()[0]))


def figure(id: str) -> Figure:
    """The figure called ``id``; InputError offers the nearest ids."""
    known = {f.id: f for f in _load()[0]}
    if id not in known:
        raise InputError(f"unknown figure {id!r}; {nearest(id, known)}")
    return known[id]


def compare(
    predicted: Mapping[str, Num],
    setting_prefix: str,
    *,
    low: Mapping[str, Num] | None = None,
    high: Mapping[str, Num] | None = None,
    unconfirmed: bool = False,
) -> list[Comparison]:
    """Each figure directly in group ``setting_prefix`` beside the prediction of its metric, where there is one.

    ``predicted``, ``low`` and ``high`` map metrics to SI numbers or arrays of shape (n_points,); without an interval
    the prediction is its own. Unconfirmed figures are left out unless asked for. InputError if no such group exists.
    """
    group = [f for f in figures(setting_prefix) if f.id == f"{setting_prefix}.{f.metric}"]
    if not group:
        raise InputError(f"no published figures under {setting_prefix!r}; {nearest(setting_prefix, groups())}")
    return [
        beside(f, predicted[f.metric], (low or {}).get(f.metric), (high or {}).get(f.metric))
        for f in group
        if f.metric in predicted and (unconfirmed or f.confidence != "unconfirmed")
    ]


def beside(figure: Figure, predicted: Num, low: Num | None = None, high: Num | None = None) -> Comparison:
    """A figure beside the prediction of it; without an interval the prediction is its own."""
    low, high = (predicted if low is None else low), (predicted if high is None else high)
    return Comparison(
        metric=figure.metric, predicted=predicted, low=low, high=high, published=figure.value,
        error=predicted / figure.value - 1.0,
        inside=np.less_equal(low, figure.high) & np.greater_equal(high, figure.low),
        source=figure.source, confidence=figure.confidence,
    )  # fmt: skip


def _under(id: str, prefix: str) -> bool:
    return not prefix or id == prefix or id.startswith(prefix + ".")


@cache
def _load() -> tuple[tuple[Figure, ...], tuple[Formula, ...]]:
    found: list[Figure] = []
    laws: list[Formula] = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for name, group in yaml.load(path.read_text(encoding="utf-8"), _Unique).items():
            found += _figures(path, name, group)
            laws += _formulas(name, group)
    return tuple(found), tuple(laws)


def _figures(path: Path, name: str, group: Mapping[str, Any]) -> Iterator[Figure]:
    for metric, given in group.get("figures", {}).items():
        id = f"{name}.{metric}"
        if metric not in METRICS:
            raise InputError(Problem(path=str(path), key=id, message=f"unknown metric; {nearest(metric, METRICS)}"))
        entry = {**group, **(given if isinstance(given, Mapping) else {"value": given})}
        confidence = entry.get("confidence", CONFIDENCES[0])
        if confidence not in CONFIDENCES:
            known = nearest(confidence, CONFIDENCES)
            raise InputError(Problem(path=str(path), key=id, message=f"unknown confidence {confidence!r}; {known}"))
        value, low, high = (_si(entry.get(key, entry["value"]), metric) for key in ("value", "low", "high"))
        yield Figure(
            id=id, system=entry["system"], metric=metric, value=value, low=low, high=high, setting=entry["setting"],
            source=entry["source"], confidence=confidence, kernel=_kernel(entry),
        )  # fmt: skip


def _kernel(entry: Mapping[str, Any]) -> Kernel | None:
    return Kernel(case=entry["case"], n_sms=entry.get("n_sms")) if "case" in entry else None


def _formulas(name: str, group: Mapping[str, Any]) -> Iterator[Formula]:
    for key, text in group.get("formulas", {}).items():
        yield Formula(
            id=f"{name}.{key}", system=group["system"], text=text, setting=group["setting"], source=group["source"]
        )


def _si(given: float | str, metric: str) -> float:
    """A bare number is SI already; a percentage is a fraction."""
    return parse(str(given), METRICS[metric])


class _Unique(yaml.SafeLoader):
    """Refuses a key given twice, which YAML would otherwise lose without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            mark = node.start_mark
            raise InputError(
                Problem(path=str(mark.name), line=mark.line + 1, key=str(min(twice)), message="given twice")
            )
        return super().construct_mapping(node, deep=deep)
