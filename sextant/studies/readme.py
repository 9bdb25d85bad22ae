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

from sextant import hwmodels
from sextant.studies import answer, card_figure, figures, judged, metrics, model_card, report
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
    "training_flops.deepseek_v3_671b.training_flops_per_token": "DeepSeek-V3, FLOPs per trained token",
    "training_flops.deepseek_v2_236b.training_flops_per_token": "DeepSeek-V2, FLOPs per trained token",
    "training_flops.llama_405b.training_flops_per_token": "Llama 405B, FLOPs per trained token",
    "training_flops.qwen_72b.training_flops_per_token": "Qwen 72B, the same (published below 6 per weight)",
    "kv_cache.deepseek_v3.kv_bytes_per_token": "DeepSeek-V3, KV cache per token",
}

#: The model whose card the README shows.
_CARD = "engram-27b"

#: Kernel fits that the README lists, by the GPU whose kernels they were fitted to.
_FITS = ("h100", "h200")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the marked blocks of a README and its figure; exit 2 without the two paths."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    readme, place = Path(given[0]), folder(given[1])
    _draw(place)
    text = readme.read_text(encoding="utf-8")
    for name, lines in (("errors", _errors()), ("models", _models()), ("kernels", _kernels())):
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
    with tempfile.TemporaryDirectory() as drawn:
        card_figure.draw(model_card.card(_CARD), Path(drawn))
        for kind in ("png", "svg"):
            shutil.copyfile(Path(drawn) / f"model.{kind}", place / f"{_CARD.replace('-', '_')}_card.{kind}")


def _errors() -> list[str]:
    rows = {row["id"]: row for row in judged.published_errors()}
    lines = ["| figure | predicted | 90% interval | published | error |", "|---|--:|--:|--:|--:|"]
    for id, label in _ROWS.items():
        row = rows[id]
        name = id.rpartition(".")[2]
        between = "exact" if row["inside"] is None else f"{_shown(name, row['low'])} to {_shown(name, row['high'])}"
        values = f"{_shown(name, row['predicted'])} | {between} | {_shown(name, row['published'])}"
        lines.append(f"| {label} | {values} | {100 * row['error']:+.1f}% |")
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
    lines = ["| kernel | fitted on | 5% to 95% of held-out measured / predicted |", "|---|---|--:|"]
    for gpu in _FITS:
        for name, fit in sorted(hwmodels.own_fits(gpu).items()):
            lines.append(f"| {name} | {gpu} | {fit.low:.2f} to {fit.high:.2f} |")
    return lines


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
