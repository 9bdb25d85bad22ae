"""Buffers of communication libraries: their published sizes, and nothing where there is nobody to talk to."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import buffers
from sextant.workloads.models import model

V3 = model("deepseek-v3")
PLAN = Plan(data=128.0, expert=64.0, pipeline=16.0, n_comm_sms=20.0, schedule="dualpipe")
LOAD = Load(phase="training", batch=15360.0, context_tokens=4096.0)


def queues(channels, ranks, near_tokens, hidden):
    """The sum that DeepEP's size hints make, term by term in integers (csrc/config.hpp)."""
    peers, nodes = min(ranks, 8), max(ranks // 8, 1)
    per_token = 2 * hidden + 8 + 128 * 8 + 128 * 4 + 128 * 4
    near = channels * peers * ((2 * nodes + 3) * 4 + near_tokens * per_token)
    far = channels * nodes * 2 * ((8 * 2 + 2) * 4 + 128 * (per_token + 16)) + 2**20 if nodes > 1 else 0
    return near + far


@pytest.mark.parametrize(("ranks", "tokens"), [(8, 256), (16, 288), (64, 288), (128, 560), (144, 720)])
def test_the_exchange_has_the_size_its_library_asks_for(ranks, tokens):
    """Queues over NVLink and, beyond a node, over RDMA; ten channels on twenty SMs."""
    found = buffers.exchange_bytes(V3, replace(PLAN, expert=float(ranks)))
    assert found == queues(10, ranks, tokens, 7168)


def test_nobody_to_talk_to_needs_no_buffer():
    """One device has none; a dense model no exchange; degrees may be arrays."""
    assert buffers.exchange_bytes(V3, replace(PLAN, expert=1.0)) == 0
    assert buffers.exchange_bytes(model("llama-3.1-405b"), PLAN) == 0
    assert buffers.collective_bytes(model("llama-3.1-405b"), Plan()) == 0
    both = buffers.exchange_bytes(V3, replace(PLAN, expert=np.array([1.0, 64.0])))
    assert both[0] == 0 and both[1] == buffers.exchange_bytes(V3, PLAN)


def test_every_group_has_a_communicator():
    """Dense and expert replicas and the pipeline; a tensor group is one more, of two ranks a smaller one."""
    assert buffers.collective_bytes(V3, PLAN) == 3 * buffers.COMMUNICATOR_BYTES
    two = buffers.collective_bytes(V3, replace(PLAN, tensor=2.0))
    assert two == 3 * buffers.COMMUNICATOR_BYTES + buffers.COMMUNICATOR_OF_TWO_BYTES


def test_messages_of_a_pipeline_cross_its_boundaries():
    """An activation and a gradient at each: a stage inside has two boundaries, the first and the last have one."""
    size = 2.0 * 7168 * 4096
    assert buffers.pipeline_bytes(V3, PLAN, LOAD, (0, 15), 16) == 2 * 2 * size
    assert buffers.pipeline_bytes(V3, PLAN, LOAD, (3, 12), 16) == 2 * 4 * size
    assert buffers.pipeline_bytes(V3, PLAN, LOAD, (0,), 1) == 0
    streams = replace(V3, n_streams=4.0)
    assert buffers.pipeline_bytes(streams, PLAN, LOAD, (3,), 16) == 2 * 2 * 4 * size
