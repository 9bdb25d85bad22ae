"""The metrics an answer may hold: one name everywhere, with the unit, what it means and how a table calls it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """``unit`` is a dimension of ``simulator.units`` or ""; ``headline`` ones stand in the short table."""

    name: str
    label: str
    unit: str = ""
    headline: bool = True
    percent: bool = False


_TRAINING = (
    Metric(name="step_time_s", label="step", unit="s"),
    Metric(name="forward_s", label="1F: forward alone", unit="s"),
    Metric(name="backward_input_s", label="1B: backward alone", unit="s"),
    Metric(name="backward_weight_s", label="1W: weight gradients alone", unit="s"),
    Metric(name="forward_backward_s", label="1F1B: overlapped pairs", unit="s"),
    Metric(name="bubble_s", label="bubble", unit="s"),
    Metric(name="optimizer_s", label="optimizer", unit="s"),
    Metric(name="exposed_comm_s", label="exposed communication", unit="s"),
    Metric(name="mfu_causal", label="MFU, causal, BF16 peak", percent=True),
    Metric(name="mfu_noncausal", label="MFU, non-causal, BF16 peak", percent=True),
    Metric(name="tokens_per_day", label="tokens per day"),
    Metric(name="gpu_hours_per_trillion_tokens", label="GPU hours per trillion tokens"),
    Metric(name="usd_per_trillion_tokens", label="USD per trillion tokens", unit="usd"),
)
_SERVING = (
    Metric(name="tpot_s", label="time per output token", unit="s"),
    Metric(name="ttft_s", label="time to first token", unit="s"),
    Metric(name="tokens_per_s_per_device", label="tokens/s per GPU"),
    Metric(name="tokens_per_s", label="tokens/s"),
    Metric(name="compute_s", label="compute, both halves", unit="s"),
    Metric(name="communication_s", label="communication, both halves", unit="s"),
    Metric(name="usd_per_million_tokens", label="USD per million tokens", unit="usd"),
    Metric(name="kv_bytes_per_token", label="KV cache per token", unit="bytes"),
)
_MEMORY = (
    Metric(name="hbm_bytes", label="HBM used", unit="bytes"),
    Metric(name="hbm_free_bytes", label="HBM free", unit="bytes", headline=False),
)
METRICS = {m.name: m for m in (*_TRAINING, *_SERVING, *_MEMORY)}


def names() -> tuple[str, ...]:
    """Every metric that constraints and objectives may use."""
    extra = ("tokens_per_s", "step_time_low_s", "step_time_high_s", "host_bytes", "n_parameters")
    return tuple(dict.fromkeys((*METRICS, *extra)))


def shown(name: str, value: float) -> str:
    """``value`` for a person, with its unit."""
    from sextant.simulator.units import show

    metric = METRICS.get(name)
    if metric is not None and metric.percent:
        return f"{100 * value:.2f}%"
    unit = metric.unit if metric else ("bytes" if name.endswith("_bytes") else "s" if name.endswith("_s") else "")
    if unit == "s" and value >= 1:
        return f"{value:.3f} s"
    return show(value, unit)
