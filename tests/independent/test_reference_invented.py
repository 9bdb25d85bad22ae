"""Architectures that nobody published: fields of a record combine freely, and modules agree to the last digit."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from references import flops, language, streams

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters
from sextant.workloads.models import model
from sextant.workloads.transformer import Transformer

BATCH, TOKENS = 3, 96

_DENSE = replace(model("deepseek-coder-33b"), num_hidden_layers=4.0, vocab_size=1000.0)
_SPARSE = replace(
    model("deepseek-coder-v2-lite"), num_hidden_layers=4.0, n_routed_experts=24.0, vocab_size=1000.0, v_head_dim=96.0
)
_MEMORY = {"engram_layers": (1.0, 3.0), "engram_rows": 5003.0, "engram_dim": 480.0, "engram_orders": (2.0, 3.0, 4.0)}

INVENTED = {
    "dense, norms of queries and keys": replace(_DENSE, qk_norm=True, head_dim=64.0),
    "dense, heads wider than hidden / heads": replace(_DENSE, head_dim=192.0, num_key_value_heads=2.0),
    "dense, biases, one vocabulary matrix": replace(_DENSE, attention_bias=True, tie_word_embeddings=True),
    "dense with latent attention": replace(_SPARSE, n_routed_experts=0.0, q_lora_rank=300.0),
    "experts with grouped queries": replace(
        _SPARSE, attention="gqa", num_key_value_heads=4.0, head_dim=160.0, qk_norm=True
    ),
    "correction bias, three shared experts": replace(
        _SPARSE, topk_method="noaux_tc", n_shared_experts=3.0, n_group=4.0, topk_group=2.0, first_k_dense_replace=2.0
    ),
    "two streams, grouped queries": replace(_DENSE, n_streams=2.0),
    "eight streams, experts with grouped queries": replace(_SPARSE, attention="gqa", head_dim=128.0, n_streams=8.0),
    "memory without streams": replace(_DENSE, **_MEMORY),
    "memory, streams, latent attention, correction bias": replace(
        _SPARSE, n_streams=3.0, topk_method="noaux_tc", n_group=2.0, topk_group=1.0, **_MEMORY
    ),
}


def module_of(found: Transformer) -> torch.nn.Module:
    return streams.StreamedModel(found) if streams.needs_streams(found) else language.language_model(found)


@pytest.mark.parametrize("name", INVENTED)
def test_parameters(name):
    """All of them, and those that a token uses."""
    found = INVENTED[name]
    module = module_of(found)
    assert int(parameters.n_parameters(found)) == language.n_parameters(found, module)
    unread = streams.table_parameters(module) - len(found.engram_layers) * int(found.engram_dim)
    used = language.n_activated(found, module) - (unread if found.engram_layers else 0)
    assert parameters.activated_parameters(found) == used


@pytest.mark.parametrize("name", INVENTED)
def test_flops_of_a_prompt(name):
    """Products of a forward pass, logits of the last token, full attention square."""
    found = INVENTED[name]
    module = module_of(found)

    def run() -> None:
        if isinstance(module, streams.StreamedModel):
            module(torch.zeros(BATCH, TOKENS, dtype=torch.long, device="meta"))
        else:
            language.prefill(module, BATCH, TOKENS)

    step = found.step(Load(phase="prefill", batch=float(BATCH), context_tokens=float(TOKENS)), Plan())
    expected = flops.counted(run, without=("short_conv",))
    assert flops.step_flops(step, without=("engram_gate",)) == pytest.approx(expected, rel=1e-12)
