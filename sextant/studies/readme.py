"""Regenerate the README's figure and error tables from fresh runs.

python -m sextant.studies.readme README.md docs/figures
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sextant import hwmodels
from sextant.simulator import units
from sextant.studies import (
    answer,
    card_figure,
    figures,
    judged,
    kernel_errors,
    kernel_figure,
    metrics,
    model_card,
    report,
    study,
    whole_table,
)
from sextant.studies.files import folder, replacing
from sextant.workloads import models
from sextant.workloads.transformer import Transformer

#: What of the published figures stands in the README, and what the neighbours say of the same work. Their errors were
#: measured with inputs known beforehand, as ours.
_ROWS = {
    "deepseek_v3_training.mpft.step_time_s": "training step, 2,048 H800; SimuMax +69%, llm-analysis -79 to +46%",
    "deepseek_v3_training.mpft.forward_s": "its forward chunks alone",
    "deepseek_v3_training.mpft.backward_input_s": "its backward chunks alone",
    "deepseek_v3_training.mpft.backward_weight_s": "its weight gradients alone",
    "deepseek_v3_training.mpft.forward_backward_s": "its overlapped pairs",
    "deepseek_v3_training.mpft.bubble_s": "its bubble",
    "deepseek_v3_training.mpft.optimizer_s": "its optimizer",
    "deepseek_v3_training.mpft.mfu_causal": "MFU, causal, BF16 peak",
    "deepseek_v3_training.report.gpu_hours_per_trillion_tokens": "GPU hours per trillion tokens",
    "profile_data.decode.tokens_per_s_per_device": "decode, EP128, per GPU; InferSim +16%, aiconfigurator -11%",
    "profile_data.prefill.tokens_per_s_per_device": "prefill, EP32, per GPU; InferSim +15%, aiconfigurator -51%",
    "megatron.22b_full.step_time_s": "Megatron 22B, 8 A100, full recompute; Calculon's own mean of such steps 3.65%",
    "megatron.22b_selective.step_time_s": "the same, sequence parallel, selective recompute",
    "megatron.175b_full.step_time_s": "Megatron 175B, 64 A100, full recompute",
    "megatron.175b_selective.step_time_s": "the same, sequence parallel, selective recompute",
    "deepep.normal.ep32.ep_dispatch_bytes_per_s": "expert dispatch over 32 H800, per GPU",
    "deepep.normal.ep64.ep_combine_bytes_per_s": "expert combine over 64 H800, per GPU",
    "deepep.low_latency.ep256.ep_dispatch_s": "low-latency dispatch over 256 H800",
    "engram_offload.baseline.tokens_per_s": "4B on nano-vLLM, one H800, backbone assumed Qwen3-4B: tokens/s",
    "engram_offload.host.tokens_per_s": "the same with 100 B parameters of Engram in host memory",
    "engram_offload.host.throughput_loss": "what of the throughput that costs",
    "mhc.training.time_overhead": "step overhead of four residual streams, mHC-27B, layout assumed",
    "engram_loss.engram_27b.saved_loss": "loss that Engram-27B saves against MoE-27B",
    "engram_loss.engram_40b.saved_loss": "loss that Engram-40B saves",
    "training_flops.deepseek_v3_671b.training_flops_per_token": "DeepSeek-V3, FLOPs per trained token",
    "training_flops.deepseek_v2_236b.training_flops_per_token": "DeepSeek-V2, FLOPs per trained token",
    "training_flops.llama_405b.training_flops_per_token": "Llama 405B, FLOPs per trained token",
    "training_flops.qwen_72b.training_flops_per_token": "Qwen 72B, the same (published below 6 per weight)",
    "kv_cache.deepseek_v3.kv_bytes_per_token": "DeepSeek-V3, KV cache per token",
}

#: Small differences of large numbers: a relative error of them says little.
_SHARES = ("throughput_loss", "time_overhead")

#: The model whose card the README shows, and the studies whose figure of that name it shows.
_CARD = "engram-27b"
_STUDIES = {"engram_allocation_9_9b": "allocation", "architecture_27b": "pareto", "mhc_overhead_27b": "overhead"}

#: Fits of the H100 under the names of the H200's table: kernels of other libraries, of which only errors are shipped.
_H100 = {
    "gemm bf16": ("gemm_bf16",), "gemm fp8": ("gemm_fp8",), "gemm fp8_block": ("gemm_fp8_block",),
    "moe": ("moe_bf16", "moe_fp8_block"),
    "attention": ("attention_forward", "attention_encoder", "attention_decode"), "mla": ("mla", "mla_prefill"),
    "mhc_pre": ("mhc_pre",), "mhc_post": ("mhc_post",),
}  # fmt: skip
#: What aiconfigurator errs by on held-out kernels of an H200, by its roofline, the nearest of its measured rows and its
#: measured table.
_NEIGHBOUR = {
    "gemm bf16": "54 / 14 / 14%", "moe": "61 / 33 / 6%", "mla": "decode 81 / 10 / 3%, prefill 89 / 15 / 7%",
    "mhc_pre": "47 / 5 / 3%, both mHC kernels",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the marked blocks of a README and its figure; exit 2 without the two paths."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    readme, place = Path(given[0]), folder(given[1])
    _draw(place)
    text = readme.read_text(encoding="utf-8")
    blocks = {"errors": _errors(), "models": _models(), "kernels": _kernels(), "whole": _whole()}
    for name, lines in blocks.items():
        text = _between(text, name, "\n".join(lines))
    with replacing(readme) as file:
        file.write(text)
    return 0


def _draw(place: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    asked = answer.question("deepseek_v3_h800_training")
    found = report.Answer(question=asked, result=answer.answer(asked))
    with figures.styled():
        figure = figures.step(found)
        for kind in ("png", "svg"):
            figures.save_figure(figure, place / f"deepseek_v3_step.{kind}")
        plt.close(figure)
    for scenario, name in _STUDIES.items():
        _draw_study(scenario, name, place)
    every = kernel_errors.judged()
    kernel_figure.draw(every.only(every.held_out & np.isfinite(every.predicted_s)), "h200", place)
    with tempfile.TemporaryDirectory() as drawn:
        card_figure.draw(model_card.card(_CARD), Path(drawn))
        for kind in ("png", "svg"):
            shutil.copyfile(Path(drawn) / f"model.{kind}", place / f"{_CARD.replace('-', '_')}_card.{kind}")


def _draw_study(scenario: str, name: str, place: Path) -> None:
    """One figure of a shipped scenario's study, by its name."""
    import matplotlib.pyplot as plt

    asked = answer.question(scenario)
    drawn = study.find(asked.study).figures
    assert drawn is not None, f"{scenario} has no figures"
    with figures.styled():
        for kind, figure in drawn(report.Answer(question=asked, result=answer.answer(asked))).items():
            for suffix in ("png", "svg") if kind == name else ():
                figures.save_figure(figure, place / f"{scenario}.{suffix}")
            plt.close(figure)


def _errors() -> list[str]:
    rows = {row["id"]: row for row in judged.published_errors()}
    lines = ["| figure | predicted | 90% interval | published | error |", "|---|--:|--:|--:|--:|"]
    for id, label in _ROWS.items():
        row = rows[id]
        name = id.rpartition(".")[2]
        between = "exact" if row["inside"] is None else f"{_shown(name, row['low'])} to {_shown(name, row['high'])}"
        values = f"{_shown(name, row['predicted'])} | {between} | {_shown(name, row['published'])}"
        error = f"{100 * row['error']:+.1f}%"
        if name in _SHARES:
            error = f"{100 * (row['predicted'] - row['published']):+.1f} points"
        lines.append(f"| {label} | {values} | {error} |")
    return lines


def _models() -> list[str]:
    """A row per model: what its dimensions imply, beside what its publishers say."""
    lines = [
        "| model | parameters | published | activated | published | checkpoint | published |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for model in sorted(models.catalogue().values(), key=lambda m: (m.system, m.name)):
        found = judged.sizes(model)
        language = "n_language_parameters" in model.official
        total = "n_language_parameters" if language else "n_parameters"
        active = "n_activated_language_parameters" if language else "n_activated_parameters"
        checkpoint = metrics.shown("checkpoint_bytes", float(found["checkpoint_bytes"]))
        size = model.official.get("checkpoint_bytes")
        cells = [
            f"{model.name}, language model" if language else model.name,
            metrics.count(float(found[total])), _official(model, total, float(found[total])),
            metrics.count(float(found[active])), _official(model, active, float(found[active])),
            checkpoint if size else "", _official(model, "checkpoint_bytes", float(found["checkpoint_bytes"])),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _official(model: Transformer, name: str, ours: float) -> str:
    value = model.official.get(name)
    if value is None:
        return ""
    return f"{metrics.shown(name, float(value))} ({100 * (ours / float(value) - 1):+.1f}%)"


def _kernels() -> list[str]:
    """A row per kind of kernel: errors on what no fit has seen, of the H200 and of the H100."""
    every = kernel_errors.judged()
    fits = hwmodels.own_fits("h100")
    lines = [
        "| kernel | H200 rows | mean error | 95% below | inside | H100 rows | mean error | aiconfigurator, H200 |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in kernel_errors.errors(every.only(every.held_out)):
        held = [fits[name].held_out for name in _H100.get(row.kind, ())]
        n_rows = sum(each["n_rows"] for each in held)
        h100 = f"{n_rows:,.0f} | {_percent(sum(e['n_rows'] * e['mape'] for e in held) / n_rows)}" if held else " | "
        shares = f"{_percent(row.mape)} | {_percent(row.p95)} | {row.inside:.0%}"
        lines.append(f"| {row.kind} | {row.n_rows:,} | {shares} | {h100} | {_NEIGHBOUR.get(row.kind, '')} |")
    return lines


def _whole() -> list[str]:
    """A row per whole model that was run on the H200."""
    found = whole_table.judged("h200")
    lines = ["| pass | measured | predicted | 90% interval | error |", "|---|--:|--:|--:|--:|"]
    for row in found.rows:
        times = [units.show(value, "s", 4) for value in (row.measured_s, row.predicted_s, row.low_s, row.high_s)]
        error = f"{100 * row.error:+.1f}%"
        lines.append(f"| {row.case} | {times[0]} | {times[1]} | {times[2]} to {times[3]} | {error} |")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _shown(name: str, value: Any) -> str:
    return metrics.shown(name, float(value))


def _between(text: str, name: str, block: str) -> str:
    """``text`` with what stands between the markers of ``name`` replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not rest or end not in rest:
        raise SystemExit(f"the README lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{block}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
