"""What makes a plan impossible, as booleans per point: degrees that do not divide, devices that are not there."""

from __future__ import annotations

import numpy as np

from sextant.simulator.schedule import n_stages
from sextant.simulator.types import Flag, Num, Scenario
from sextant.workloads.parameters import layer_counts


def plan_limits(scenario: Scenario) -> dict[str, Flag]:
    """Reason to where it holds, for the divisibility and the size of a plan; texts begin with the kind of limit."""
    model, plan, cluster = scenario.model, scenario.plan, scenario.cluster
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    group = plan.data * plan.tensor
    slots = model.n_routed_experts + plan.redundant_experts
    return {
        "devices: tensor x context x pipeline x data exceeds the cluster": used > cluster.n_devices,
        "divisibility: heads by tensor": _rest(model.num_attention_heads, plan.tensor),
        "divisibility: routed and redundant experts by expert": _rest(slots, plan.expert),
        "divisibility: data x tensor by expert": _rest(group, plan.expert),
        "unsupported: context parallelism is not modelled yet": plan.context > 1,
        "unsupported: pipelines are not modelled in serving yet": (plan.pipeline > 1)
        & (scenario.load.phase != "training"),
        "unsupported: more tensor ranks than key-value heads are not modelled yet": (model.attention == "gqa")
        & (plan.tensor > model.num_key_value_heads),
        "unsupported: only ZeRO 0 to 3 exist": np.asarray(plan.zero_stage) > 3,
        "sms: overlapped exchange needs n_comm_sms": (plan.overlap == "forward_backward")
        & (plan.expert > 1)
        & (np.asarray(plan.n_comm_sms) == 0),
        **_unsaved(scenario),
        **undefined(scenario),
    }


def _unsaved(scenario: Scenario) -> dict[str, Flag]:
    """Where training may fail, and has no bandwidth to save over."""
    given = scenario.cluster.reliability
    fails = (np.asarray(given.device_mtbf_s) > 0) & (scenario.load.phase == "training")
    return {"reliability: checkpoints without a bandwidth": fails & (np.asarray(given.checkpoint_bytes_per_s) <= 0)}


def schedule_limits(scenario: Scenario) -> dict[str, Flag]:
    """Where a schedule does not exist, by the reason."""
    plan = scenario.plan
    micro_batches = scenario.load.batch / (plan.data * plan.micro_batch)
    units = layer_counts(scenario.model)
    n_layers = sum(n for part, n in units.items() if part.endswith("layer"))
    limits: dict[str, Flag] = {
        "divisibility: sequences by data x micro_batch": np.abs(micro_batches - np.round(micro_batches)) > 1e-9,
        "divisibility: fewer layers than pipeline stages": n_stages(
            plan.schedule, int(plan.pipeline), int(plan.virtual_stages)
        )
        > n_layers + 1,
    }
    if plan.schedule == "interleaved":
        limits["schedule: interleaved needs micro-batches in multiples of the pipeline degree"] = (
            np.mod(micro_batches, plan.pipeline) > 0
        )
    else:
        limits["schedule: only interleaved has more than one virtual stage"] = plan.virtual_stages > 1
    if plan.schedule == "dualpipe":
        limits["schedule: DualPipe needs an even pipeline degree"] = np.mod(plan.pipeline, 2) > 0
        limits["schedule: DualPipe needs an even number of micro-batches, at least twice the stages"] = (
            np.mod(micro_batches, 2) > 0
        ) | (micro_batches < 2 * plan.pipeline)
    if plan.schedule == "dualpipev":
        limits["schedule: DualPipeV needs at least twice as many micro-batches as ranks"] = (
            micro_batches < 2 * plan.pipeline
        )
    return limits


def undefined(scenario: Scenario) -> dict[str, Flag]:
    """The limits beyond which operators have no meaning: such points are not evaluated, their metrics are 0."""
    model, plan, phase = scenario.model, scenario.plan, scenario.load.phase
    routed = np.asarray(model.n_routed_experts)
    mla = model.attention == "mla"
    layers = np.asarray(model.engram_layers)
    return {
        "model: this phase needs an image encoder": phase == "image_understanding" and model.vision is None,
        "model: this phase needs an image generator": phase == "image_generation" and model.generation is None,
        "model: MLA needs kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and v_head_dim": mla
        & _any_zero(model.kv_lora_rank, model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim),
        "model: routed experts need moe_intermediate_size and num_experts_per_tok": (routed > 0)
        & _any_zero(model.moe_intermediate_size, model.num_experts_per_tok),
        "model: engram_layers count from 1 to num_hidden_layers, each once": bool(
            layers.size and (np.any(layers < 1) | (len(set(model.engram_layers)) < layers.size))
        )
        | np.asarray(np.max(layers, initial=0.0) > model.num_hidden_layers),
        "divisibility: expert without routed experts": (plan.expert > 1) & (routed == 0),
        "choice: experts per token among routed experts": (routed > 0) & (model.num_experts_per_tok > routed),
        "sms: compute on the SMs that n_comm_sms leaves": np.asarray(plan.n_comm_sms >= scenario.cluster.device.n_sms),
        "divisibility: layers by layers_per_stage": _stages_differ(scenario),
    }


def _stages_differ(scenario: Scenario) -> bool:
    """Whether ``plan.layers_per_stage`` is given and is not one number per stage that add up to the model's layers."""
    plan = scenario.plan
    if not plan.layers_per_stage or scenario.load.phase != "training":
        return False
    n_layers = sum(n for part, n in layer_counts(scenario.model).items() if part.endswith("layer"))
    wanted = n_stages(plan.schedule, int(plan.pipeline), int(plan.virtual_stages))
    return bool(len(plan.layers_per_stage) != wanted or sum(plan.layers_per_stage) != n_layers)


def _any_zero(*values: Num) -> Flag:
    """Whether one of ``values`` is 0, per point."""
    return np.any(np.stack(np.broadcast_arrays(*values)) == 0, axis=0)


def _rest(number: Num, divisor: Num) -> Flag:
    """Whether ``divisor`` leaves a remainder; a zero number is divided by anything."""
    return np.asarray(np.mod(number, divisor)) > 1e-9
