"""Kernels that are measured, on the CPU: each right on small shapes, each noticing a wrong result, each told misuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the kernels need the torch extra")

from sextant.validate import kernels, measure, timer  # noqa: E402
from sextant.validate.cases import Case  # noqa: E402
from sextant.validate.kernels import conv2d, gather, mla, moe, streams  # noqa: E402

TARGET = measure.find_target("cpu")
SETTINGS = measure.Settings(budget_us=1.0, min_repeats=2, max_repeats=2)
_ROW: Case = {"format": "bf16", "direction": "forward"}
_HEADS: Case = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "v_head_dim": 64} | _ROW
_LATENT: Case = {"kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 16} | _ROW
_EXPERTS: Case = {"hidden": 64, "expert_ffn": 128, "top_k": 2, "n_experts": 8, "tensor_parallel": 1} | _ROW
_IMAGE: Case = {"batch": 2, "in_channels": 16, "out_channels": 8, "height": 12, "width": 10, "groups": 1} | _ROW

CASES: list[Case] = [
    *(
        {"op": "attention", "phase": "decode", "variant": v, "q_len": 1, "kv_len": 70, "causal": 1} | _HEADS
        for v in ("flash", "cudnn", "splitkv")
    ),
    *(
        {"op": "attention", "phase": "encoder", "variant": "flash", "q_len": 33, "kv_len": 33, "causal": 0}
        | _HEADS
        | {"direction": d, "head_dim": 72, "v_head_dim": 72}
        for d in ("forward", "backward")
    ),
    *(
        {"op": "mla", "phase": "decode", "variant": v, "batch": 3, "heads": 4, "q_len": 1, "kv_len": 50} | _LATENT
        for v in ("splitkv", "bmm")
    ),
    *(
        {"op": "mla", "phase": "prefill", "variant": "cudnn", "batch": 1, "heads": 2, "q_len": 80, "kv_len": 80}
        | _LATENT
        | {"direction": d}
        for d in ("forward", "backward")
    ),
    *(
        {"op": op, "n_tokens": 5, "hidden": 48, "n_streams": n, "sinkhorn_iters": 20} | _ROW
        for op, n in itertools.product(("mhc_pre", "mhc_post", "sinkhorn", "engram_gate"), (2, 4, 8))
    ),
    {"op": "layernorm", "n_tokens": 3, "hidden": 96} | _ROW,
    {"op": "gelu", "n_tokens": 3, "hidden": 96} | _ROW,
    {"op": "add", "n_tokens": 3, "hidden": 96} | _ROW,
    *(
        {"op": "gather", "format": "bf16", "tier": t, "rows": 100, "dim": 80, "lookups": 37} | v
        for t, v in (("hbm", {}), ("host", {}), ("host", {"variant": "cpu_copy"}))
    ),
    *({"op": "conv2d", "kernel_size": k, "stride": s} | _IMAGE for k, s in ((3, 1), (3, 2), (1, 1))),
    {"op": "conv2d", "kernel_size": 7, "stride": 1} | _IMAGE | {"groups": 16, "out_channels": 16},
    *(
        {"op": "moe", "n_tokens": t, "expert_parallel": e, "routing": r} | _EXPERTS
        for t, e, r in ((8, 1, "balanced"), (1, 1, "balanced"), (16, 4, "power_law_1.2"))
    ),
    {"op": "moe", "n_tokens": 8, "expert_parallel": 1, "routing": "balanced", "variant": "layer"} | _EXPERTS,
]


def _name(case: Case) -> str:
    named = ("op", "phase", "variant", "direction", "tier", "n_streams", "kernel_size", "stride", "n_tokens")
    return "-".join(str(case[column]) for column in named if case.get(column))


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_a_small_case_is_right_and_is_timed(case: Case):
    row = measure.measure_case(case, TARGET, SETTINGS)
    assert 0.0 <= float(row["relative_error"]) < 2e-2
    assert float(row["us"]) > 0 and float(row["read_bytes"]) > 0 and float(row["write_bytes"]) > 0


MISUSE: list[tuple[Case, str]] = [
    ({"op": "attention", "phase": "decode", "variant": "triton", "q_len": 1, "kv_len": 70} | _HEADS, "variant"),
    (
        {"op": "attention", "phase": "prefill", "variant": "flash", "q_len": 3, "kv_len": 70, "causal": 1} | _HEADS,
        "q_len",
    ),
    ({"op": "mla", "phase": "encoder"} | _LATENT, "phase"),
    (
        {"op": "mla", "phase": "decode", "variant": "flash", "batch": 1, "heads": 1, "q_len": 1, "kv_len": 5} | _LATENT,
        "mla",
    ),
    ({"op": "mhc_post", "n_tokens": 5, "hidden": 48, "n_streams": 4, "variant": "tile_kernels"} | _ROW, "needs a GPU"),
    ({"op": "sinkhorn", "n_tokens": 5, "n_streams": 4, "sinkhorn_iters": 0}, "sinkhorn_iters"),
    ({"op": "gather", "tier": "nvme", "rows": 10, "dim": 8, "lookups": 4}, "tier"),
    ({"op": "gather", "tier": "hbm", "rows": 10, "dim": 8, "lookups": 4, "variant": "cpu_copy"}, "variant"),
    ({"op": "gather", "tier": "hbm", "rows": 10**9, "dim": 80, "lookups": 4}, "rows"),
    ({"op": "conv2d", "kernel_size": 4, "stride": 1} | _IMAGE, "kernel_size"),
    ({"op": "moe", "n_tokens": 8, "expert_parallel": 3, "routing": "balanced"} | _EXPERTS, "expert_parallel"),
    ({"op": "moe", "n_tokens": 8, "expert_parallel": 1, "routing": "random"} | _EXPERTS, "routing"),
    ({"op": "all_reduce", "format": "bf16", "n_gpus": 2, "message_elements": 8}, "--ranks 2"),
]


@pytest.mark.parametrize(("case", "said"), MISUSE, ids=lambda value: _name(value) if isinstance(value, dict) else value)
def test_misuse_is_named(case: Case, said: str):
    with pytest.raises(ValueError, match=said):
        kernels.prepare(case, TARGET)


def test_sinkhorn_makes_doubly_stochastic_matrices():
    m = streams.projected(torch.randn(7, 4, 4, dtype=torch.float64), 100)
    assert torch.allclose(m.sum(1), torch.ones(7, 4, dtype=m.dtype), atol=1e-4)
    assert torch.allclose(m.sum(2), torch.ones(7, 4, dtype=m.dtype), atol=1e-4)


def test_one_stream_is_a_plain_residual():
    """With one stream H_res is 1: post gives post f + x, and pre the sigmoid's share of x."""
    x, f = torch.randn(5, 1, 16).double(), torch.randn(5, 16).double()
    ones = torch.ones(5, 1, 1, dtype=torch.float64)
    (y,) = streams.mixed_out(f, x, 0.5 * ones[:, 0], ones)
    assert torch.allclose(y[:, 0], 0.5 * f + x[:, 0])
    weights, zeros = torch.zeros(3, 16), torch.zeros(3)
    layer_input, post, res = streams.mixed_in(x, weights, torch.ones(3), zeros, n_iterations=20)
    assert torch.allclose(layer_input, 0.5 * x[:, 0], atol=1e-5)
    assert torch.allclose(post, torch.ones(5, 1, dtype=x.dtype)) and torch.allclose(res, ones, atol=1e-4)


def test_the_gate_of_orthogonal_keys_is_a_half():
    x, k = torch.zeros(3, 2, 8).double(), torch.zeros(3, 2, 8).double()
    x[..., 0], k[..., 1] = 1.0, 1.0
    v = torch.randn(3, 8).double()
    (y,) = streams.gated(x, k, v, torch.ones(2, 8))
    assert torch.allclose(y, x + 0.5 * v.unsqueeze(1))


def test_absorbed_attention_equals_the_expanded_one():
    """q absorbed by the key's projection against latent rows, against keys and values expanded from them."""
    torch.manual_seed(0)
    batch, heads, length, rank, nope, rope, v_dim = 2, 3, 11, 16, 6, 4, 5
    q = torch.randn(batch, heads, nope + rope).double()
    cache = torch.randn(batch, length, rank + rope).double()
    to_key, to_value = torch.randn(heads, rank, nope).double(), torch.randn(heads, rank, v_dim).double()
    latent, shared = cache[..., :rank], cache[..., rank:]
    keys = torch.cat(
        (torch.einsum("blr,hrn->bhln", latent, to_key), shared.unsqueeze(1).expand(-1, heads, -1, -1)), dim=-1
    )
    values = torch.einsum("blr,hrv->bhlv", latent, to_value)
    expected = torch.nn.functional.scaled_dot_product_attention(q.unsqueeze(2), keys, values).squeeze(2)
    absorbed = torch.cat((torch.einsum("bhn,hrn->bhr", q[..., :nope], to_key), q[..., nope:]), dim=-1)
    (out,) = mla.composed(absorbed, cache, rank=rank, scale=(nope + rope) ** -0.5)
    assert torch.allclose(torch.einsum("bhr,hrv->bhv", out, to_value), expected)


def test_rows_of_a_table_are_new_for_every_sample():
    case: Case = {"op": "gather", "format": "bf16", "tier": "hbm", "rows": 5000, "dim": 8, "lookups": 64}
    prepared = gather.build_gather(case, TARGET)
    assert prepared.before is not None
    seen = []
    for _ in range(4):
        prepared.before()
        seen.append(np.asarray(prepared.calls[0]()[0].float()).tobytes())
    assert len(set(seen)) == 4


def test_a_sampler_draws_outside_the_clock():
    now, order = [0.0], []

    def spend(what: str, us: float):
        def call() -> None:
            order.append(what)
            now[0] += us * 1e-6

        return call

    sampler = timer.HostSampler(calls=[spend("call", 3.0)], clock=lambda: now[0], before=spend("draw", 100.0))
    assert sampler(3) == pytest.approx([3.0] * 3)
    assert order == ["draw", "call"] * 3


@pytest.mark.parametrize(
    ("op", "module", "name"),
    [("mhc_post", streams, "mixed_out"), ("engram_gate", streams, "gated"), ("mhc_pre", streams, "mixed_in")],
)
def test_a_wrong_kernel_fails_its_check(op: str, module, name: str, monkeypatch):
    """The tested kernel keeps the true function, the reference is moved by a tenth: the check notices."""
    case: Case = {"op": op, "n_tokens": 5, "hidden": 48, "n_streams": 4, "sinkhorn_iters": 20} | _ROW
    prepared = kernels.prepare(case, TARGET)
    assert prepared.check() < 1e-2
    original = streams._in_bf16
    monkeypatch.setattr(
        streams, "_in_bf16", lambda reference: lambda *t: [1.1 * out for out in original(reference)(*t)]
    )
    with pytest.raises(ValueError, match="check: output 0 is off by"):
        kernels.prepare(case, TARGET).check()


def test_a_wrong_convolution_fails_its_check(monkeypatch):
    case: Case = {"op": "conv2d", "kernel_size": 3, "stride": 1} | _IMAGE
    prepared = conv2d.build_conv2d(case, TARGET)
    assert prepared.check() < 1e-2
    monkeypatch.setattr(conv2d, "_patch", lambda *a, **k: torch.zeros(1, 8, 6, 6, dtype=torch.float64) + 1.0)
    with pytest.raises(ValueError, match="a patch is off by"):
        prepared.check()


def test_balanced_experts_get_equally_many_pairs_and_a_power_law_does_not():
    balanced = moe.local_experts(32, 8, 8, 2, "balanced", TARGET)
    assert balanced.bincount().tolist() == [8] * 8
    shared = moe.local_experts(32, 8, 2, 2, "balanced", TARGET)
    assert shared.bincount().tolist() == [8, 8]
    torch.manual_seed(0)
    skewed = moe.local_experts(4096, 8, 8, 2, "power_law_1.2", TARGET).bincount(minlength=8)
    assert skewed.sum() == 8192 and skewed[0] > 3 * skewed[7]
