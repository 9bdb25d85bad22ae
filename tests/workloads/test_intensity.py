"""Costs of a step by block: against the model's dimensions, and under every way of asking for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator.types import Load, Plan
from sextant.workloads import models, parameters
from sextant.workloads.intensity import Costs, ridge_flops_per_byte, step_costs, total
from sextant.workloads.shard import shard

LLAMA, V3 = models.model("llama-3.1-405b"), models.model("deepseek-v3")


def costs(model, phase: str, batch=1.0, context: float = 4096.0, plan: Plan | None = None):
    return step_costs(model.step(Load(phase=phase, batch=batch, context_tokens=context), plan or Plan()))


def test_a_dense_forward_pass_is_two_flops_per_weight_and_the_causal_half_of_attention() -> None:
    found = total(costs(LLAMA, "training"), lambda key: key[2] == "forward")
    pieces = parameters.by_piece(LLAMA)
    weights = sum(n for piece, n in pieces.items() if piece not in ("norm", "embedding"))
    pairs = 4096 * 4097 / 2
    attention = 126 * 128 * pairs * 2 * (128 + 128)
    assert found.flops == 4096 * 2 * weights + attention


def test_backward_products_are_twice_the_forward_ones() -> None:
    found = costs(LLAMA, "training")
    phases = {
        phase: found["dense_layer", "mlp", phase].flops for phase in ("forward", "backward_input", "backward_weight")
    }
    assert phases["backward_input"] == phases["backward_weight"] == phases["forward"]


def test_one_token_reads_every_weight_of_a_dense_layer_once() -> None:
    found = costs(LLAMA, "decode")["dense_layer", "mlp", "forward"]
    weights_bytes = 2.0 * parameters.by_piece(LLAMA)["mlp"]
    assert weights_bytes < found.hbm_bytes < 1.001 * weights_bytes
    assert found.flops == weights_bytes
    assert found.intensity == pytest.approx(1.0, rel=1e-3)


def test_parts_count_as_often_as_they_occur() -> None:
    more = costs(replace(V3, num_hidden_layers=62.0), "prefill")
    less = costs(V3, "prefill")
    for key in less:
        factor = 59 / 58 if key[0] == "moe_layer" else 1.0
        assert more[key].flops == pytest.approx(factor * less[key].flops, rel=1e-12)
        assert more[key].hbm_bytes == pytest.approx(factor * less[key].hbm_bytes, rel=1e-12)


def test_arrays_say_what_their_points_say() -> None:
    batches = (1.0, 16.0, 128.0)
    swept = costs(V3, "decode", np.array(batches))
    for i, batch in enumerate(batches):
        for key, cost in costs(V3, "decode", batch).items():
            for name in ("flops", "hbm_bytes", "host_bytes", "message_bytes", "intensity"):
                value = np.broadcast_to(getattr(swept[key], name), (3,))[i]
                assert value == pytest.approx(getattr(cost, name), rel=1e-12)


def test_a_divided_step_sends_messages_and_keeps_the_flops() -> None:
    plan = Plan(expert=8.0, data=8.0)
    step = V3.step(Load(phase="prefill", batch=1.0, context_tokens=4096.0), plan)
    whole, divided = step_costs(step), step_costs(shard(step, V3, plan, 8.0))
    assert total(divided).flops == pytest.approx(total(whole).flops, rel=1e-12)
    assert total(whole).message_bytes == 0
    # NVLink alone: a token goes to each of the other devices that hold one of its experts, there and back.
    sent = divided["moe_layer", "dispatch", "forward"].message_bytes
    assert 58 * 4096 * 7168 * 2 < sent < 58 * 4096 * 7168 * 2 * 7


def test_costs_add_scale_and_never_divide_by_nothing() -> None:
    one = Costs(flops=6.0, hbm_bytes=2.0, host_bytes=1.0, message_bytes=3.0)
    assert one + one == one * 2.0
    assert one.intensity == 3.0 and Costs(flops=1.0).intensity == 0.0
    mixed = Costs(flops=np.array([4.0, 4.0]), hbm_bytes=np.array([2.0, 0.0]))
    assert mixed.intensity.tolist() == [2.0, 0.0]
    assert total({}) == Costs()


def test_the_ridge_is_peak_over_bandwidth() -> None:
    h800 = hwmodels.device("h800")
    assert ridge_flops_per_byte(h800) == pytest.approx(989e12 / 3.35e12)
    assert ridge_flops_per_byte(h800, "fp8") == pytest.approx(1979e12 / 3.35e12)
