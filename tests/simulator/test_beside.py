"""Messages that run beside a product: what they add, by formula and in a step."""

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator.evaluate import time_ops
from sextant.simulator.kernels import batched_gemm, estimate, operator
from sextant.simulator.kernels.collective import N_CHANNELS
from sextant.simulator.overlap import exposed_s
from sextant.simulator.types import Step

SELENE = hwmodels.cluster("selene")


@pytest.mark.parametrize(("message", "compute"), [(1.0, 5.0), (4.0, 4.0), (5.0, 1.0), (0.0, 3.0)])
def test_what_a_message_adds_is_what_two_phases_add_up_to(message, compute):
    """While the message runs the product does 1 - share of its work per second, then all of it."""
    share = 0.25
    left = max(compute - (1.0 - share) * message, 0.0)
    end = message + left
    assert exposed_s(message, compute, share) == pytest.approx(end - compute)


def test_a_message_beside_a_product_costs_less_than_in_line_and_not_nothing():
    shape = {"m": 8192.0, "n": 2304.0, "k": 6144.0}
    product = operator("gemm", "wgrad", "fp16", shape, part="layer", phase="backward_weight")
    sent = {"n_gpus": 8.0, "n_gpus_per_node": 8.0, "message_bytes": np.array([1e6, 1e8, 1e9])}
    times = []
    for beside in ("", "wgrad"):
        message = operator("collective", "sum", "bf16", sent, variant="all_reduce", part="layer", beside=beside)
        timed = time_ops(Step(phase="training", ops=(product, message), n_tokens=1.0), SELENE)
        times.append((timed.ops[0].seconds, timed.ops[1].time))
    (gemm_s, in_line), (_, hidden) = times
    assert np.all(hidden.seconds < in_line.seconds) and np.all(hidden.seconds > 0)
    share = N_CHANNELS / 108.0
    assert hidden.seconds == pytest.approx(np.maximum(in_line.seconds - gemm_s, share * in_line.seconds))
    assert hidden.low / hidden.seconds == pytest.approx(in_line.low / in_line.seconds)


def test_batched_products_are_one_product_of_all_groups():
    """A group of one is the dense product; FLOPs and bytes grow with the groups, time no faster."""
    shape = {"m": 2048.0, "n": 2048.0, "k": 128.0}
    dense = operator("gemm", "x", "bf16", shape)
    one = operator("batched_gemm", "x", "bf16", {"groups": 1.0, **shape})
    many = operator("batched_gemm", "x", "bf16", {"groups": 32.0, **shape})
    assert estimate(one, SELENE).seconds == pytest.approx(estimate(dense, SELENE).seconds, rel=1e-12)
    assert many.flops == 32.0 * one.flops and many.traffic_bytes["hbm"] == 32.0 * one.traffic_bytes["hbm"]
    ratio = estimate(many, SELENE).seconds / estimate(one, SELENE).seconds
    assert 8.0 < ratio <= 32.5
    assert batched_gemm.work(many.shape, "bf16", "").flops == 2.0 * 32.0 * 2048.0**2 * 128.0
