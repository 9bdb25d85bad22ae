"""Engram tables while training: rows and gradients that travel, rows that a step updates."""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.evaluate import time_ops
from sextant.simulator.types import Num, Op, Scenario
from sextant.studies.fetches import node_size
from sextant.workloads.ops import optimizer, table_rows
from sextant.workloads.shard import shard


def columns(scenario: Scenario) -> dict[str, Num]:
    """Seconds of one optimizer step on a device, nothing overlapped: all-to-alls of row numbers, rows and gradients,
    the update of the rows that are touched, and of all rows; the share that is touched, and of different rows among
    those that a micro-batch looks up."""
    model, plan, load = scenario.model, scenario.plan, scenario.load
    n_layers, n_tokens = float(len(model.engram_layers)), plan.micro_batch * load.context_tokens
    step = shard(model.step(load, plan, node_size(scenario)), model, plan, node_size(scenario))
    sent = [op for op in step.ops if op.group == "engram"]
    n_micro_batches = load.batch / (plan.data * plan.micro_batch)
    touched = table_rows.touched_share(model, load.zipf_exponent, load.batch * load.context_tokens)
    sparse = replace(plan, sparse_optimizer=True)
    return {
        "touched_rows_share": touched,
        "distinct_rows_share": table_rows.distinct_share(model, load.zipf_exponent, n_tokens),
        "row_exchange_s": n_layers * n_micro_batches * _seconds(scenario, sent),
        "table_update_s": _seconds(scenario, [optimizer.tables(model, sparse, n_layers, touched)]),
        "dense_table_update_s": _seconds(
            scenario, [optimizer.tables(model, replace(plan, sparse_optimizer=False), n_layers, 1.0)]
        ),
    }


def _seconds(scenario: Scenario, ops: list[Op]) -> Num:
    step = scenario.model.step(scenario.load, scenario.plan, node_size(scenario))
    return time_ops(replace(step, ops=tuple(ops)), scenario.cluster).seconds()
