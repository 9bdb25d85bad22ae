"""What makes a plan impossible, as booleans per point: degrees that do not divide, devices that are not there."""

from __future__ import annotations

import numpy as np

from sextant.simulator.types import Flag, Num, Scenario


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
        "divisibility: expert without routed experts": (plan.expert > 1) & (np.asarray(model.n_routed_experts) == 0),
        "unsupported: context parallelism is not modelled yet": plan.context > 1,
    }


def _rest(number: Num, divisor: Num) -> Flag:
    """Whether ``divisor`` leaves a remainder; a zero number is divided by anything."""
    return np.asarray(np.mod(number, divisor)) > 1e-9
