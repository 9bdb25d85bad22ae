"""Engram, mHC, MLA, MoE and MTP on any backbone: what is built agrees with what is counted."""

from dataclasses import replace
from itertools import product

import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters
from sextant.workloads.models import model
from sextant.workloads.ops import engram

CODER = model("deepseek-coder-33b")
V3 = model("deepseek-v3")
MLA = {
    "attention": "mla",
    "kv_lora_rank": 512.0,
    "qk_nope_head_dim": 128.0,
    "qk_rope_head_dim": 64.0,
    "v_head_dim": 128.0,
}
EXPERTS = {
    "n_routed_experts": 64.0,
    "n_shared_experts": 2.0,
    "num_experts_per_tok": 6.0,
    "moe_intermediate_size": 1408.0,
}
ADDITIONS = {
    "mla": MLA, "experts": EXPERTS, "streams": {"n_streams": 4.0}, "memory": {"engram_layers": (2.0, 15.0)},
    "mtp": {"num_nextn_predict_layers": 1.0}, "tied": {"tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
@pytest.mark.parametrize("chosen", [*product([False, True], repeat=5)])
def test_every_combination_runs_the_weights_that_it_counts(phase, chosen):
    """Each weight matrix is an operand of one forward product, whatever is put together."""
    changes = {}
    for name, wanted in zip(ADDITIONS, chosen, strict=False):
        changes |= ADDITIONS[name] if wanted else {}
    found = replace(CODER, **changes)
    step = found.step(Load(phase=phase, batch=2.0, context_tokens=64.0), Plan())
    weights: dict[str, float] = {}
    for op in step.ops:
        absorbed = op.name in ("q_absorb", "v_up")
        if op.phase == "forward" and (op.kind == "gemm" or (op.kind == "grouped_gemm" and not absorbed)):
            size = float(op.shape["n"] * op.shape["k"] * op.shape.get("groups", 1.0))
            weights[op.part] = weights.get(op.part, 0.0) + size
        elif absorbed:
            weights[op.part] += float(op.shape["groups"] * op.shape["n"] * op.shape["k"])
    sizes = parameters.layer_parameters(found)
    for part in step.layers:
        products = [n for piece, n in sizes[part].items() if piece not in ("norm", "hyper_connection", "engram_tables")]
        if part == "engram":
            assert weights[part] == engram.projection_parameters(found)
        if part in ("dense_layer", "moe_layer") or (part == "head" and not found.tie_word_embeddings):
            # What is not a product: norms of latents.
            assert weights[part] == pytest.approx(float(sum(products)), rel=1e-3), part


def test_streams_add_their_mappings_and_nothing_else():
    """Two sites per layer, each n C (n^2 + 2n) weights, n^2 + 2n biases and three scales."""
    n, width = 4, 7168
    site = n * width * (n * n + 2 * n) + n * n + 2 * n + 3
    added = parameters.n_parameters(replace(V3, n_streams=4.0)) - parameters.n_parameters(V3)
    assert added == 61 * 2 * site


def test_tables_add_rows_and_gates():
    """Engram-27B's tables, 2 x 2 x 8 of 2,262,400 rows of 80: 5.792 B, on any backbone."""
    found = replace(CODER, engram_layers=(2.0, 15.0))
    tables = parameters.by_piece(found)["engram_tables"]
    assert tables == 2 * 2 * 8 * 2_262_400 * 80
    assert parameters.activated_parameters(found) < parameters.n_parameters(CODER) + 1e8


def test_an_engram_module_stands_in_front_of_its_layer():
    """Layers count from 1; the units are what a pipeline may cut between."""
    units = parameters.units(replace(V3, engram_layers=(2.0, 15.0)))
    assert len(units) == 62
    assert units[0] == ("embedding", "dense_layer")
    assert units[1] == ("engram", "dense_layer")
    assert units[14] == ("engram", "moe_layer")
    assert units[-1] == ("mtp", "head")
    assert sum("engram" in unit for unit in units) == 2


def test_a_dense_model_predicts_further_tokens_with_dense_layers():
    """The module repeats the layers of its model: what is counted is what runs."""
    found = replace(CODER, num_nextn_predict_layers=1.0)
    assert "mlp" in parameters.layer_parameters(found)["mtp"]
    step = found.step(Load(phase="training", batch=1.0, context_tokens=64.0), Plan())
    assert {op.kind for op in step.ops if op.part == "mtp"}.isdisjoint({"grouped_gemm", "expert_exchange"})
    all_dense = replace(V3, first_k_dense_replace=61.0)
    assert "routed_experts" in parameters.layer_parameters(all_dense)["mtp"]
