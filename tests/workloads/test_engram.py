"""Engram as operators: published counts, table sizes, bytes per token, exchanges of training, tiers of serving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sextant.simulator.errors import InputError
from sextant.simulator.types import Op
from sextant.workloads import parameters
from sextant.workloads.formats import recipe
from sextant.workloads.models import model
from sextant.workloads.ops import engram
from sextant.workloads.ops.memory import Place

E27, E40 = model("engram-27b"), model("engram-40b")
FAMILY = ("engram-27b", "engram-40b", "moe-27b", "dense-4b")


def operators(found=E27, m=4096.0, phase="training", tier="hbm", n_devices=64.0, **rest) -> dict[str, Op]:
    place = Place(part="engram", block="engram", training=phase == "training")
    ops = engram.operators(place, found, m, phase, tier, n_devices, **rest)
    assert len({op.name for op in ops}) == len(ops)
    return {op.name: op for op in ops}


@pytest.mark.parametrize("name", FAMILY)
def test_published_parameter_counts(name: str) -> None:
    """Engram Table 1 prints one decimal of a billion."""
    found = model(name)
    assert abs(parameters.n_parameters(found) - found.official["n_parameters"]) < 0.05e9
    assert abs(parameters.activated_parameters(found) - found.official["n_activated_parameters"]) < 0.05e9


def test_table_parameters_are_the_published_rows() -> None:
    """Table 5: 2 layers x 2 orders x 8 heads x 2,262,400 (7,239,680) rows x 80."""
    assert 2 * engram.table_parameters(E27) == 2 * 2 * 8 * 2262400 * 80 == 5_791_744_000
    assert 2 * engram.table_parameters(E40) == 2 * 2 * 8 * 7239680 * 80 == 18_533_580_800
    assert int(2 * engram.table_parameters(E27) / 1e8) / 10 == E27.official["engram_table_parameters"] / 1e9
    assert int(2 * engram.table_parameters(E40) / 1e8) / 10 == E40.official["engram_table_parameters"] / 1e9


@pytest.mark.parametrize("found", [E27, E40, replace(E27, engram_rows=129280.0 * 5)], ids=["27b", "40b", "demo"])
def test_real_tables_are_the_first_distinct_primes(found) -> None:
    sizes, start = engram.prime_rows(found), int(found.engram_rows)
    sieve = np.ones(start + 2000, dtype=bool)
    for divisor in range(2, int((start + 2000) ** 0.5) + 1):
        sieve[2 * divisor :: divisor] = False
    assert sizes == tuple(start + np.flatnonzero(sieve[start:])[:32])
    # What the round number leaves out.
    assert 0 < sum(sizes) / (32 * start) - 1 < 1e-3


def test_primes_of_a_sweep_are_refused() -> None:
    with pytest.raises(InputError, match="engram_rows"):
        engram.prime_rows(replace(E27, engram_rows=np.asarray([1e6, 2e6])))


def test_gate_parameters_are_those_of_modules_of_the_published_shapes() -> None:
    """engram_demo_v1.py: a value and four key projections with bias, three norms per stream, a depthwise convolution
    of kernel 4 without bias; the paper's 16.4 M are the projections."""
    n, width, memory = 4, 2560, 1280
    with torch.device("meta"):
        modules = [torch.nn.Linear(memory, width) for _ in range(1 + n)]
        modules += [torch.nn.RMSNorm(width) for _ in range(3 * n)]
        modules += [torch.nn.Conv1d(n * width, n * width, 4, groups=n * width, bias=False)]
    assert engram.gate_parameters(E27) == sum(weight.numel() for m in modules for weight in m.parameters())
    assert engram.projection_parameters(E27) == pytest.approx(16.4e6, rel=1e-3)


def test_a_token_fetches_sixteen_rows_of_160_bytes() -> None:
    assert engram.row_bytes_per_token(E27) == 2560.0
    gather = operators(m=100.0)["engram_gather"]
    assert (gather.shape["lookups"], gather.shape["row_bytes"]) == (1600.0, 160.0)
    assert gather.shape["table_bytes"] == 2 * 2895872000 / 64


def test_serving_reads_the_whole_table_from_its_tier() -> None:
    host, hbm = (operators(m=128.0, phase="decode", tier=tier) for tier in ("host", "hbm"))
    assert host["engram_gather"].shape["table_bytes"] == 2 * 2895872000.0
    assert (host["engram_gather"].stream, hbm["engram_gather"].stream) == ("host", "compute")
    assert host["engram_gather"].traffic_bytes["host"] == 128 * 16 * 192.0
    assert set(host) == set(hbm) == {
        "engram_hash", "engram_gather", "engram_projections", "engram_gate", "engram_conv",
    }  # fmt: skip
    assert all(op.phase == "forward" for op in host.values())


def test_decode_also_reads_the_tokens_before() -> None:
    step, prompt = (operators(m=64.0, phase=phase)["engram_conv"].shape for phase in ("decode", "prefill"))
    wide = 2.0 * 64 * 4 * 2560
    assert step["read_bytes"] - prompt["read_bytes"] == 3 * wide
    assert engram.convolution_bytes_per_sequence(E27) == 3 * 3 * 2 * 4 * 2560


def test_the_hash_moves_the_published_integers() -> None:
    """TileKernels engram_hash: 3 int32 read, 2 x 16 int32 written per token."""
    assert operators(m=1.0)["engram_hash"].shape == {"read_bytes": 12.0, "write_bytes": 128.0}


def test_projections_cost_two_flops_per_weight_forward_and_four_backward() -> None:
    ops = [op for op in operators(m=1000.0).values() if op.kind == "gemm"]
    assert [op.flops for op in ops] == 3 * [2 * 1000 * 16_384_000]
    assert sorted(op.phase for op in ops) == ["backward_input", "backward_weight", "forward"]
    assert [op.shards["tensor"] for op in ops] == [("m",), ("m",), ("k",)]


def test_the_fp8_recipe_casts_the_rows() -> None:
    ops = operators(m=1000.0, recipe=recipe("fp8"))
    assert ops["engram_projections"].format == "fp8_block"
    assert ops["engram_projections_cast"].shards == {"tensor": ("read_bytes", "write_bytes")}


def test_training_sends_rows_there_and_gradients_back() -> None:
    ops = operators(m=4096.0, n_devices=64.0)
    sent = {name: op for name, op in ops.items() if op.kind == "collective"}
    assert {name: op.shape["message_bytes"] for name, op in sent.items()} == {
        "engram_index_exchange": 4096 * 16 * 8.0,
        "engram_row_exchange": 4096 * 2560.0,
        "engram_gradient_exchange": 4096 * 2560.0,
    }
    assert all(op.variant == "all_to_all" and op.shape["n_gpus"] == 64.0 for op in sent.values())
    # 63 of 64 rows lie on another device.
    assert ops["engram_row_exchange"].message_bytes == pytest.approx(4096 * 2560.0 * 63 / 64)
    assert operators(n_devices=1.0)["engram_row_exchange"].message_bytes == 0.0
    scatter = ops["engram_scatter"]
    assert (scatter.phase, scatter.variant) == ("backward_weight", "permute")
    # BF16 gradients read, FP32 rows read and written.
    assert scatter.shape == {"read_bytes": 3 * 4096 * 2560.0, "write_bytes": 2 * 4096 * 2560.0}


def test_every_operator_divides_its_tokens_over_tensor_ranks() -> None:
    """Whole weights, split tokens: each operator halves at degree two, the weight gradient along its reduction."""
    for op in operators().values():
        assert op.shards["tensor"], op.name


def test_what_training_keeps_is_what_the_backward_pass_reads() -> None:
    """Rows, keys, value, residual, gated values in BF16; row numbers; a gate per stream in FP32."""
    tensors = [1280, 4 * 2560, 2560, 4 * 2560, 4 * 2560]
    assert engram.kept_bytes(E27) == 2 * sum(tensors) + 16 * 8 + 4 * 4


def test_a_single_stream_has_one_key() -> None:
    one = replace(E27, n_streams=1.0)
    assert engram.projection_parameters(one) == 2 * 1280 * 2560
    assert operators(one, m=1.0)["engram_projections"].shape["n"] == 2 * 2560


def test_arrays_are_their_scalars() -> None:
    dims, rows = np.asarray([640.0, 1280.0, 2560.0]), np.asarray([1e6, 2e6, 4e6])
    whole = operators(replace(E27, engram_dim=dims, engram_rows=rows))
    for i in range(3):
        one = operators(replace(E27, engram_dim=dims[i], engram_rows=rows[i]))
        for name, op in one.items():
            assert np.broadcast_to(whole[name].flops, 3)[i] == op.flops
            for tier, moved in op.traffic_bytes.items():
                assert np.broadcast_to(whole[name].traffic_bytes[tier], 3)[i] == moved
