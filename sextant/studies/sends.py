"""What stages of a pipeline send each other, and who waits for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Num, Scenario
from sextant.studies.stages import ChunkTimes


def send_s(scenario: Scenario) -> Num:
    """Seconds of one micro-batch's activations between two stages, which lie on different nodes.

    mHC sends every stream. Every tensor rank sends its share over its own network card; without sequence parallelism
    the next stage gathers the whole from the shares.
    """
    plan = scenario.plan
    shape = {"n_gpus": 2.0, "n_gpus_per_node": 1.0, "message_bytes": send_bytes(scenario)}
    sent = operator("collective", "pipeline_send", "bf16", shape, variant="send_recv")
    seconds = estimate(sent, scenario.cluster).seconds
    if plan.sequence_parallel:
        return seconds
    node_size = next(iter(scenario.cluster.tiers.values())).n_devices
    shape = {"n_gpus": plan.tensor, "n_gpus_per_node": node_size, "message_bytes": send_bytes(scenario) * plan.tensor}
    gathered = operator("collective", "pipeline_gather", "bf16", shape, variant="all_gather")
    return seconds + estimate(gathered, scenario.cluster).seconds


def send_bytes(scenario: Scenario) -> Num:
    """Bytes of one micro-batch's activations that one device sends to the next stage, in 16 bits."""
    model, plan, load = scenario.model, scenario.plan, scenario.load
    return 2.0 * model.n_streams * model.hidden_size * plan.micro_batch * load.context_tokens / plan.tensor


def waited_s(scenario: Scenario) -> Num:
    """Seconds from the end of a chunk to the earliest start of the next stage's, the sender working on meanwhile."""
    return 0.0 if scenario.plan.blocking_sends else send_s(scenario)


def blocked(scenario: Scenario, chunks: ChunkTimes) -> ChunkTimes:
    """``chunks`` with the sends in which a rank computes nothing: each forward and each backward chunk ends in one.

    A stage sends and receives at once; in the steady state one exchange carries activations on and gradients back, so
    a pair of chunks pays two messages over the rank's network card.
    """
    if not scenario.plan.blocking_sends or not np.any(np.asarray(scenario.plan.pipeline) > 1):
        return chunks
    each = send_s(scenario)
    return replace(
        chunks, forward=[s + each for s in chunks.forward], backward_input=[s + each for s in chunks.backward_input],
        forward_messages=[s + each for s in chunks.forward_messages],
        backward_messages=[s + each for s in chunks.backward_messages],
    )  # fmt: skip
