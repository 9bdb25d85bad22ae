"""Cases of one Engram block: what the layers in front of it hide, over batches, lengths and its place in the model.

The model is Engram-27B cut behind the block; all dimensions stay. Ways of fetching are those of ``whole.memory`` with
the table in pinned host memory; ``hbm`` is ``inline`` with the table in the GPU's own.
"""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.types import Plan
from sextant.validate.whole.cases import Difference, WholeCase
from sextant.workloads.models import model as model_of

WAYS = ("none", "hbm", "inline", "few", "bounded", "full", "copy")
#: What a scenario calls each way of fetching; ``bounded`` and ``few`` differ in the rows of a program's tile alone.
PREFETCHES = ("none", "none", "none", "few_sms", "few_sms", "full_grid", "copy_engine")
#: The plan that each way stands for: where the table is, how rows are fetched.
PLANS = {
    way: Plan(placement={"engram": "hbm" if way == "hbm" else "host"}, prefetch=prefetch)
    for way, prefetch in zip(WAYS, PREFETCHES, strict=True)
}
BATCHES = (1, 8, 32, 64, 128, 256)
LENGTHS = (512, 1024, 2048, 4096, 8192)
CONTEXT = 4096
#: Places of the block other than in front of the second layer: (phase, batch or length, layer).
OTHERS = (
    ("decode", 64, 1), ("decode", 64, 4), ("decode", 256, 4),
    ("prefill", 1024, 1), ("prefill", 1024, 4), ("prefill", 4096, 4),
)  # fmt: skip


def cases() -> tuple[WholeCase, ...]:
    """Every case, named by phase, batch or length, and the layer in front of which the block stands."""
    found = [_case("decode", batch, 2) for batch in BATCHES] + [_case("prefill", length, 2) for length in LENGTHS]
    return (*found, *(_case(*other) for other in OTHERS))


def planned(case: WholeCase, way: str) -> WholeCase:
    """The case with the plan that a way stands for."""
    return replace(case, plan=PLANS[way])


def _case(phase: str, size: int, layer: int) -> WholeCase:
    batch, context = (size, CONTEXT) if phase == "decode" else (1, size)
    tokens = size
    model = model_of("engram-27b")
    layers = max(2.0, float(layer))
    model = replace(model, num_hidden_layers=layers, engram_layers=(float(layer),))
    differs = (
        Difference(what="one GPU holds all experts, nothing is exchanged", instead_of=("dispatch", "combine")),
        Difference(
            what="routed and shared experts are added by a kernel of their own",
            case={"op": "add", "format": "bf16", "n_tokens": tokens, "hidden": int(model.hidden_size)},
            count=int(layers) - int(model.first_k_dense_replace),
        ),
    )
    if phase == "prefill":
        norms = {"op": "rmsnorm", "format": "bf16", "n_tokens": int(tokens * model.n_streams),
                 "hidden": int(model.hidden_size)}  # fmt: skip
        what = "the norms of the convolution are a kernel of their own, which reads two rows and writes a number"
        differs = (*differs, Difference(what=what, case=norms, count=1))
    return WholeCase(
        name=f"{phase}-{'b' if phase == 'decode' else ''}{size}-layer-{layer}", model=model, phase=phase, batch=batch,
        context_tokens=context, plan=PLANS["few"], differs=differs,
    )  # fmt: skip
