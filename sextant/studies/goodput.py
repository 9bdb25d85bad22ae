"""Checkpoints and failures of a training run: what to save, how often, and what is left of the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator import failures
from sextant.simulator.types import Num, Scenario
from sextant.studies.stages import Layouts, Stages
from sextant.workloads import parameters, residency
from sextant.workloads.formats import recipe

#: A machine that never fails, as a number that formulas can take.
_NEVER_S = 1e18
#: A run that never gets anywhere costs a number without meaning, not one without end.
_LEAST = 1e-30
#: What a run that fails costs more of.
_EFFECTIVE = ("gpu_hours_per_trillion_tokens", "usd_per_trillion_tokens")


def considered(scenario: Scenario) -> bool:
    """Whether any point says how often devices fail; without that nothing is said of failures."""
    return bool(np.any(np.asarray(scenario.cluster.reliability.device_mtbf_s) > 0))


def checkpoint_bytes(scenario: Scenario, stages: Stages | Layouts) -> tuple[Num, Num]:
    """Bytes that the fullest device saves, and all devices together.

    Master weights and Adam's moments, each once: the devices that hold a parameter save a share each, as ZeRO 1 divides
    it. Weights follow from the master weights; step counters and the state of the data loader are not counted.
    """
    model, plan = scenario.model, scenario.plan
    kind = recipe(plan.formats)
    state = residency.state_bytes(model, replace(plan, zero_stage=np.maximum(plan.zero_stage, 1.0)))
    table: Num = 0.0
    if "engram" in parameters.layer_counts(model):
        full = kind.weight_bytes + kind.master_bytes + kind.moment_bytes
        held = residency.table_bytes(model, plan, "training", 1.0)["hbm"]
        table = held * (kind.master_bytes + kind.moment_bytes) / full
    ranks = [
        sum((n * (state[part]["master"] + state[part]["moments"]) for part, n in stages.layers(rank).items()), table)
        for rank in range(len(stages.ranks))
    ]
    stack = np.stack(np.broadcast_arrays(*ranks))
    devices_per_rank = plan.tensor * plan.context * plan.data * plan.pipeline / len(ranks)
    return np.max(stack, axis=0), np.sum(stack, axis=0) * devices_per_rank


def columns(scenario: Scenario, stages: Stages | Layouts, rates: Mapping[str, Num]) -> dict[str, Num]:
    """Metrics of a run that fails and goes on, (n_points,) each; none where nobody says how often.

    ``plan.checkpoint`` ``file_system``: the job stands still while it is saved there. ``host``: while it is copied to
    host memory, over each device's own link; it is safe when it has reached the file system, one after the other. A
    restart reads the checkpoint back. Effective costs hold all work, also the lost.
    """
    if not considered(scenario):
        return {}
    plan, given = scenario.plan, scenario.cluster.reliability
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    fails = np.asarray(given.device_mtbf_s) > 0
    mtbf_s = np.where(fails, given.device_mtbf_s / used, _NEVER_S)[()]
    largest, total = checkpoint_bytes(scenario, stages)
    write_s = total / np.maximum(given.checkpoint_bytes_per_s, 1.0)
    to_host = plan.checkpoint == "host"
    host = scenario.cluster.device.memories["host"]
    cost_s = host.latency_s + largest / host.bandwidth_bytes_per_s if to_host else write_s
    behind_s = write_s if to_host else 0.0
    best_s = np.maximum(failures.daly_interval_s(cost_s, mtbf_s), behind_s)
    interval_s = np.where(np.asarray(plan.checkpoint_interval_s) > 0, plan.checkpoint_interval_s, best_s)[()]
    share = failures.goodput(interval_s, cost_s, mtbf_s, given.restart_s + write_s, behind_s)
    return {
        "goodput": share, "mtbf_s": mtbf_s, "checkpoint_bytes": total, "checkpoint_s": cost_s,
        "checkpoint_interval_s": interval_s,
        **{f"effective_{name}": rates[name] / np.maximum(share, _LEAST) for name in _EFFECTIVE},
    }  # fmt: skip
