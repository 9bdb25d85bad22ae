"""The metrics an answer may hold: one name everywhere, with the unit, what it means and how a table calls it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sextant.simulator.units import show


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """``unit`` is a dimension of ``simulator.units`` or ""; ``headline`` ones stand in the short table.

    ``digits`` are shown; a metric that is known exactly shows more of them. ``unless`` names metrics that say the same:
    the short table leaves this one out where it has one of those.
    """

    name: str
    label: str
    unit: str = ""
    headline: bool = True
    percent: bool = False
    digits: int = 4
    unless: tuple[str, ...] = ()


_TRAINING = (
    Metric(name="step_time_s", label="step", unit="s", unless=("tpot_s", "ttft_s", "image_time_s")),
    Metric(name="forward_s", label="1F: forward alone", unit="s"),
    Metric(name="backward_input_s", label="1B: backward alone", unit="s"),
    Metric(name="backward_weight_s", label="1W: weight gradients alone", unit="s"),
    Metric(name="forward_backward_s", label="1F1B: overlapped pairs", unit="s"),
    Metric(name="bubble_s", label="bubble", unit="s"),
    Metric(name="jitter_s", label="jitter and stragglers", unit="s"),
    Metric(name="optimizer_s", label="optimizer", unit="s"),
    Metric(name="exposed_comm_s", label="exposed communication", unit="s"),
    Metric(name="mfu_causal", label="MFU, causal, BF16 peak", percent=True),
    Metric(name="mfu_noncausal", label="MFU, non-causal, BF16 peak", percent=True),
    Metric(name="tokens_per_day", label="tokens per day"),
    Metric(name="gpu_hours_per_trillion_tokens", label="GPU hours per trillion tokens"),
    Metric(name="usd_per_trillion_tokens", label="USD per trillion tokens", unit="usd"),
    Metric(name="mtbf_s", label="time between failures", unit="s"),
    Metric(name="checkpoint_bytes", label="checkpoint, all GPUs", unit="bytes"),
    Metric(name="checkpoint_s", label="standing still to save it", unit="s"),
    Metric(name="checkpoint_interval_s", label="work between checkpoints", unit="s"),
    Metric(name="goodput", label="goodput: time that is lasting work", percent=True),
    Metric(name="effective_gpu_hours_per_trillion_tokens", label="GPU hours per trillion tokens, with failures"),
    Metric(name="effective_usd_per_trillion_tokens", label="USD per trillion tokens, with failures", unit="usd"),
)
_SERVING = (
    Metric(name="tpot_s", label="time per output token", unit="s"),
    Metric(name="ttft_s", label="time to first token", unit="s"),
    Metric(name="tokens_per_s_per_device", label="tokens/s per GPU", unless=("tokens_per_day",)),
    Metric(name="tokens_per_s", label="tokens/s", unless=("tokens_per_day",)),
    Metric(name="compute_s", label="compute", unit="s"),
    Metric(name="communication_s", label="communication", unit="s"),
    Metric(
        name="usd_per_million_tokens", label="USD per million tokens", unit="usd", unless=("usd_per_trillion_tokens",)
    ),
    Metric(name="fetch_s", label="rows fetched from host", unit="s"),
    Metric(name="exposed_fetch_s", label="of that exposed", unit="s"),
    Metric(name="distinct_rows_share", label="different rows among those looked up", percent=True),
    Metric(name="cache_hit_rate", label="lookups that the cache answers", percent=True),
    Metric(name="host_cache_hit_rate", label="that the host's cache answers", percent=True, headline=False),
    Metric(name="waited_fetch_s", label="waiting for rows", unit="s", headline=False),
    Metric(name="hidden_bandwidth_bytes_per_s", label="bandwidth that hides it", unit="bytes_per_s", headline=False),
    Metric(name="hidden_from_layer", label="layer that hides it", headline=False),
    Metric(name="hidden_rows_per_token", label="rows per token hidden", headline=False),
    Metric(name="hidden_table_bytes", label="tables hidden", unit="bytes", headline=False),
    Metric(name="first_free_batch", label="free from batch", headline=False),
    Metric(name="last_free_batch", label="to batch", headline=False),
    Metric(name="touched_rows_share", label="rows that a step touches", percent=True, headline=False),
    Metric(name="row_exchange_s", label="rows and gradients exchanged", unit="s", headline=False),
    Metric(name="table_update_s", label="update of tables", unit="s", headline=False),
    Metric(name="dense_table_update_s", label="of all their rows", unit="s", headline=False),
    Metric(name="throughput_loss", label="tokens/s lost", percent=True),
    Metric(name="prefill_s", label="all prefills", unit="s"),
    Metric(name="decode_s", label="all decode steps", unit="s"),
    Metric(name="host_s", label="host between steps", unit="s"),
    Metric(name="image_tokens", label="visual tokens per image"),
    Metric(name="vision_s", label="image encoder and projector", unit="s"),
    Metric(name="image_time_s", label="time per image, the batch together", unit="s"),
    Metric(name="prompt_s", label="prompt", unit="s"),
    Metric(name="sampling_s", label="all sampling steps", unit="s"),
    Metric(name="sampling_step_s", label="one sampling step", unit="s"),
    Metric(name="pixels_s", label="decoding to pixels", unit="s"),
    Metric(name="images_per_s", label="images/s"),
    Metric(name="images_per_s_per_device", label="images per GPU-second"),
    Metric(name="usd_per_thousand_images", label="USD per thousand images", unit="usd"),
    Metric(name="kv_bytes_per_token", label="KV cache per token", unit="bytes", digits=6),
)  # fmt: skip
_MEMORY = (
    Metric(name="hbm_bytes", label="HBM used", unit="bytes", headline=False),
    Metric(name="hbm_free_bytes", label="HBM free", unit="bytes", headline=False),
    Metric(name="host_bytes", label="host memory used", unit="bytes", headline=False),
)
#: The allocation study: the model, its loss, and what each phase says under its name.
_ALLOCATION = (
    Metric(name="rho", label="rho", percent=True, headline=False),
    Metric(name="n_routed_experts", label="experts", headline=False),
    Metric(name="engram_rows", label="rows of the smallest table", headline=False),
    Metric(name="leftover_parameters", label="parameters not used", headline=False),
    Metric(name="activated_backbone_parameters", label="activated, without vocabulary", headline=False),
    Metric(name="loss_change", label="loss against rho = 1", headline=False),
    Metric(name="loss_change_low", label="loss against rho = 1, low", headline=False),
    Metric(name="loss_change_high", label="loss against rho = 1, high", headline=False),
    *(
        Metric(name=f"{phase}_{name}", label=f"{phase}: {label}", unit=unit, headline=False)
        for phase, (own, money, tokens) in {
            "training": (("step_time_s", "step"), "usd_per_trillion_tokens", "trillion"),
            "decode": (("tpot_s", "time per output token"), "usd_per_million_tokens", "million"),
            "prefill": (("ttft_s", "time to first token"), "usd_per_million_tokens", "million"),
        }.items()
        for name, label, unit in (
            (*own, "s"), (money, f"USD per {tokens} tokens", "usd"),
            ("tokens_per_s_per_device", "tokens/s per GPU", ""),
            ("hbm_bytes", "HBM", "bytes"), ("host_bytes", "host memory", "bytes"), ("optimizer_s", "optimizer", "s"),
            ("exposed_comm_s", "exposed communication", "s"), ("exposed_fetch_s", "exposed fetches", "s"),
            ("expert_rows", "rows to and from experts, per token", ""),
            ("expert_exchange_bytes", "bytes to and from experts, per token", "bytes"),
            ("engram_rows_sent", "table rows sent, per token", ""),
            ("engram_exchange_bytes", "bytes of table rows, per token", "bytes"),
        )
    ),
)  # fmt: skip
#: What tells the points of a sweep apart, where the scenario has no objectives.
_COMPARED = (
    "step_time_s", "tpot_s", "ttft_s", "image_time_s", "image_tokens", "images_per_s_per_device", "mfu_causal",
    "tokens_per_day", "tokens_per_s_per_device", "usd_per_trillion_tokens", "usd_per_million_tokens",
    "usd_per_thousand_images", "hbm_bytes",
)  # fmt: skip
_STREAMS = (
    Metric(name="time_overhead", label="overhead", percent=True),
    Metric(name="time_overhead_low", label="overhead, low end", percent=True, headline=False),
    Metric(name="time_overhead_high", label="overhead, high end", percent=True, headline=False),
    Metric(name="plain_step_time_s", label="step, plain residual", unit="s", headline=False),
    Metric(name="streams_s", label="stream kernels", unit="s"),
    Metric(name="remade_s", label="made again", unit="s"),
    Metric(name="streams_bytes", label="their HBM bytes", unit="bytes"),
    Metric(name="pipeline_bytes", label="sent per GPU", unit="bytes"),
    Metric(name="exposed_pipeline_s", label="sends exposed", unit="s"),
)
METRICS = {m.name: m for m in (*_TRAINING, *_SERVING, *_MEMORY, *_ALLOCATION, *_STREAMS)}


#: From ten hours on, hours say more than seconds.
_LONG_S = 36_000.0
#: Units that the end of a name tells, the longest first.
_SUFFIXES = ("flops_per_s", "bytes_per_s", "per_s", "bytes", "s")


def names() -> tuple[str, ...]:
    """Every metric that constraints and objectives may use."""
    extra = ("tokens_per_s", "step_time_low_s", "step_time_high_s", "n_parameters")
    return tuple(dict.fromkeys((*METRICS, *extra)))


def more_is_better(name: str) -> bool:
    """Whether a larger value of a metric is the better one: rates, shares of the time or of the peak, what is free."""
    return name.startswith(("tokens_per", "images_per", "mfu", "goodput")) or name.endswith("_free_bytes")


def headline(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that the short table shows, in its order."""
    have = set(names)
    return [m.name for m in METRICS.values() if m.headline and m.name in have and not have.intersection(m.unless)]


def compared(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that tell the points of a sweep apart."""
    have = set(names)
    return [n for n in _COMPARED if n in have and not have.intersection(METRICS[n].unless)]


def shown(name: str, value: float) -> str:
    """``value`` for a person, with its unit; counts of 100,000 and more with K, M, B (1e9) or T (1e12)."""
    metric = METRICS.get(name)
    if metric is not None and metric.percent:
        return f"{100 * value:.2f}%"
    unit = metric.unit if metric else next((unit for unit in _SUFFIXES if name.endswith(f"_{unit}")), "")
    if unit == "s" and value >= _LONG_S:
        return f"{value / 3600:.1f} h"
    if unit == "s" and value >= 1:
        return f"{value:.3f} s"
    if unit in ("", "per_s", "usd"):
        return f"{count(value)} {'USD' if unit == 'usd' else ''}".strip()
    return show(value, unit, metric.digits if metric else 4)


def count(value: float) -> str:
    """A number without unit in four digits: 1697 -> "1,697", 2.728e11 -> "272.8 B"."""
    size = abs(value)
    if not math.isfinite(value) or size < 1e3:
        return f"{value:.4g}"
    if size < 99_995:
        return f"{value:,.0f}"
    # What rounds up to 1,000 takes the larger letter.
    power = min(4, int(math.log10(size / 0.99995) / 3))
    scaled = value / 1e3**power
    digits = max(0, 3 - int(math.log10(abs(scaled) / 0.99995)))
    return f"{scaled:,.{digits}f} {' KMBT'[power]}"
