"""What communication libraries hold of a device's memory: the expert exchange, NCCL, and a pipeline's messages."""

from __future__ import annotations

import numpy as np

from sextant.simulator.types import Load, Num, Plan
from sextant.workloads.parameters import has_experts, layer_counts
from sextant.workloads.residency import replicas

_MIB = 2.0**20

#: NCCL's memory per communicator, of 2 ranks and of more: 544 and 688 MB beside an all-reduce of 4 MB on A100s with
#: NVLink (NVIDIA/nccl issue 964). It grows with the number of channels and hardly with that of ranks (issue 986).
COMMUNICATOR_OF_TWO_BYTES, COMMUNICATOR_BYTES = 544 * _MIB, 688 * _MIB

#: DeepEP's library: tokens that a channel's queue holds over RDMA and, by the ranks of the exchange, over NVLink (256
#: in one node, 288 up to 64 ranks, 560 up to 128, 720 beyond); places for up to 128 experts and 128 scales per token,
#: 8 bytes of where it came from. A queue over RDMA is there twice, for what is sent and for what is received.
_RDMA_TOKENS, _PEERS, _PLACES, _SOURCE_BYTES, _CONTROL_BYTES = 128.0, 8.0, 128.0, 8.0, 16.0
_NVLINK_TOKENS = ((8.0, 256.0), (64.0, 288.0), (128.0, 560.0), (np.inf, 720.0))


def exchange_bytes(model, plan: Plan) -> Num:
    """Queues of the expert exchange in normal mode, for tokens of ``hidden_size`` in BF16 (the combine's).

    The sizes that DeepEP asks for with its recommended configurations (csrc/config.hpp, deep_ep/buffer.py): per channel
    (two SMs) and peer a queue of tokens with their experts, weights and scales.
    """
    ranks = np.asarray(plan.expert, dtype=float)
    if not has_experts(model):
        return 0.0 * ranks[()]
    channels = np.where(np.asarray(plan.n_comm_sms) > 0, plan.n_comm_sms, 20.0) / 2.0
    token = 2.0 * model.hidden_size + _SOURCE_BYTES + _PLACES * (8.0 + 4.0 + 4.0)
    nodes = np.maximum(ranks / _PEERS, 1.0)
    tokens = np.select([ranks <= most for most, _ in _NVLINK_TOKENS], [n for _, n in _NVLINK_TOKENS])
    near = channels * np.minimum(ranks, _PEERS) * (tokens * token + 4.0 * (2.0 * nodes + 3.0))
    queue = _RDMA_TOKENS * (token + _CONTROL_BYTES) + 4.0 * (2.0 * _PEERS + 2.0)
    far = np.where(nodes > 1, 2.0 * channels * nodes * queue + _MIB, 0.0)
    return np.where(ranks > 1, near + far, 0.0)[()]


def collective_bytes(model, plan: Plan) -> Num:
    """NCCL communicators of the groups that the plan has: tensor, replicas of dense and of expert weights, pipeline."""
    copies = replicas(plan)
    groups = [plan.tensor, copies["dense"], plan.pipeline]
    if "moe_layer" in layer_counts(model):
        groups.append(copies["expert"])
    total: Num = 0.0
    for size in groups:
        ranks = np.asarray(size, dtype=float)
        total = total + np.where(ranks > 2, COMMUNICATOR_BYTES, np.where(ranks > 1, COMMUNICATOR_OF_TWO_BYTES, 0.0))[()]
    return total


def message_bytes(model, plan: Plan, load: Load) -> Num:
    """Activations of one micro-batch between two stages in BF16; mHC sends every stream."""
    tokens = plan.micro_batch * load.context_tokens / plan.tensor / plan.context
    return 2.0 * model.n_streams * model.hidden_size * tokens


def pipeline_bytes(model, plan: Plan, load: Load, stages: tuple[int, ...], n_stages: int) -> Num:
    """Messages of a rank that holds ``stages``: at each boundary to another rank one activation and one gradient, each
    being sent or received while its tensor on the other side of the chunk is in use."""
    boundaries = sum((stage > 0) + (stage < n_stages - 1) for stage in stages)
    return 2.0 * boundaries * message_bytes(model, plan, load)
