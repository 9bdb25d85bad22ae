"""Qwen3's dense models: sizes as on their cards, norms of the heads before the rotation."""

import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import models, parameters


@pytest.mark.parametrize(("name", "without_embeddings"), [("qwen3-4b", 3.6e9), ("qwen3-8b", 6.95e9)])
def test_sizes_are_those_of_the_cards(name, without_embeddings):
    model = models.model(name)
    n = parameters.n_parameters(model)
    assert n == pytest.approx(model.official["n_parameters"], rel=0.01)
    vocabulary = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    assert n - vocabulary == pytest.approx(without_embeddings, rel=0.01)
    assert parameters.kv_bytes_per_token(model) == 2 * 2 * 36 * 8 * 128


def test_queries_and_keys_are_normalised_head_by_head():
    step = models.model("qwen3-4b").step(Load(phase="decode", batch=16.0, context_tokens=100.0), Plan())
    moved = {op.name: op.traffic_bytes["hbm"] for op in step.ops if op.name in ("q_norm", "k_norm")}
    assert moved == {"q_norm": 2 * 2 * 16 * 32 * 128, "k_norm": 2 * 2 * 16 * 8 * 128}
    plain = models.model("llama-3.1-405b").step(Load(phase="decode", batch=16.0, context_tokens=100.0), Plan())
    assert not any(op.name == "q_norm" for op in plain.ops)
