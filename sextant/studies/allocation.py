"""The allocation study: what moving sparse parameters from experts to n-gram tables changes, beside the loss.

Loss comes from the published statements (``loss_curve``); memory, training step, messages, serving and money from the
phases of the scenario: its own and those of its ``variants``. Every phase sees the same model at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import BYTES
from sextant.simulator.result import join
from sextant.simulator.types import Num, Op, Result, Scenario
from sextant.studies import allocation_report, architecture_report, loss_curve, solve
from sextant.studies import answer as answering
from sextant.studies.scenario import Question
from sextant.studies.study import Study
from sextant.studies.training import sharded_step
from sextant.workloads import allocation, parameters
from sextant.workloads.ops import engram

#: What is told of each phase, by the phase's name and this.
TOLD = {
    "training": (
        "step_time_s", "hbm_bytes", "host_bytes", "optimizer_s", "exposed_comm_s", "tokens_per_s_per_device",
        "usd_per_trillion_tokens",
    ),
    "decode": (
        "tpot_s", "hbm_bytes", "host_bytes", "exposed_fetch_s", "tokens_per_s_per_device", "usd_per_million_tokens",
    ),
    "prefill": (
        "ttft_s", "hbm_bytes", "host_bytes", "exposed_fetch_s", "tokens_per_s_per_device", "usd_per_million_tokens",
    ),
}  # fmt: skip


Parts = Callable[[Question], Iterator[solve.Part]]


def _parts(question: Question) -> Iterator[solve.Part]:
    yield from solve.parts(question, answering.structural(question.scenario))


def answer(asked: Question, progress: Callable[[int], None], parts: Parts = _parts) -> Result:
    """The result of every point: the model and its loss, then each phase; ``step_time_s`` is the scenario's own.

    ``parts`` gives the points of a phase in groups, with the models that they mean.

    A point is feasible where all its phases are. Slots of experts are filled up with copies to a multiple of
    ``plan.expert``, as a deployment must where the number of experts is what it is.
    """
    found = {name: _phase(question, parts) for name, question in phases(asked).items()}
    own = next(iter(found.values()))
    columns = {name: own.columns[name] for name in ("step_time_s", "step_time_low_s", "step_time_high_s")}
    columns.update({name: own.columns[name] for name in _MODEL if name in own.columns})
    columns.update(_losses(own.columns["rho"], asked.scenario.seed))
    for phase, each in found.items():
        told = (*TOLD.get(phase, ()), *_EXCHANGED)
        columns.update({f"{phase}_{name}": each.columns[name] for name in told if name in each.columns})
    limits = [
        tuple(f"{reason} ({phase})" for phase, each in found.items() for reason in each.limits[i])
        for i in range(len(own.feasible))
    ]
    progress(len(limits))
    warnings = dict.fromkeys(w for each in found.values() for w in each.warnings)
    return replace(
        own, columns=columns, feasible=np.all([each.feasible for each in found.values()], axis=0),
        limits=tuple(limits), breakdown={}, provenance={}, warnings=(*warnings, *loss_curve.notes(own.columns["rho"])),
    )  # fmt: skip


def phases(asked: Question) -> dict[str, Question]:
    """The scenario by its phase, its variants by theirs; of two with one phase the second one by its own name."""
    found = {asked.scenario.load.phase: replace(asked, study="")}
    for name, variant in asked.variants.items():
        phase = variant.scenario.load.phase
        found[name if phase in found else phase] = replace(variant, study="")
    return found


def _phase(question: Question, parts: Parts) -> Result:
    results, order = [], []
    for part in parts(question):
        whole = replace(part, scenario=padded(part.scenario))
        found = solve.answered(whole, answering.evaluate)
        told = {} if whole.missed else {**_model(whole.scenario), **exchanged(whole.scenario)}
        n = len(part.index)
        columns = {k: np.broadcast_to(np.asarray(v, dtype=float), (n,)) for k, v in told.items()}
        results.append(replace(found, columns={**found.columns, **columns}))
        order.append(part.index)
    return join(results, order)


def padded(scenario: Scenario) -> Scenario:
    """``scenario`` with redundant experts that fill its slots up to a multiple of ``plan.expert``."""
    plan = scenario.plan
    slots = scenario.model.n_routed_experts + plan.redundant_experts
    missing = np.mod(-np.asarray(slots), plan.expert)[()]
    return replace(scenario, plan=replace(plan, redundant_experts=plan.redundant_experts + missing))


_MODEL = (
    "rho", "n_routed_experts", "engram_rows", "leftover_parameters", "activated_backbone_parameters",
    *architecture_report.VARIED,
)  # fmt: skip


def _model(scenario: Scenario) -> dict[str, Num]:
    model = scenario.model
    return {
        "rho": allocation.rho(model), "n_routed_experts": model.n_routed_experts,
        "engram_rows": model.engram_rows if model.engram_layers else 0.0,
        "activated_backbone_parameters": parameters.activated_backbone_parameters(model),
    }  # fmt: skip


_EXCHANGED = ("expert_rows", "expert_exchange_bytes", "engram_rows_sent", "engram_exchange_bytes")


def exchanged(scenario: Scenario) -> dict[str, Num]:
    """What one device sends in all-to-alls per token of its own, over all layers and both directions of a pass: rows
    (tokens to and from experts, table rows and their gradients) and bytes, over all links together."""
    step = sharded_step(scenario)
    found: dict[str, Num] = dict.fromkeys(_EXCHANGED, 0.0)
    for op in step.ops:
        if op.group not in ("expert", "engram"):
            continue
        sent = op.message_bytes * op.count * step.layers.get(op.part, 1.0) / step.n_tokens
        size = _row_bytes(scenario, op)
        rows = "expert_rows" if op.group == "expert" else "engram_rows_sent"
        found[rows] = found[rows] + (sent / size if size is not None else 0.0)
        found[f"{op.group}_exchange_bytes"] = found[f"{op.group}_exchange_bytes"] + sent
    return found


def _row_bytes(scenario: Scenario, op: Op) -> Num | None:
    """Bytes of a row that an exchange carries; None where it carries row numbers."""
    if op.group == "expert":
        return op.shape["hidden"] * BYTES[op.format]
    if op.name == "engram_index_exchange":
        return None
    return engram.row_bytes_per_token(scenario.model) / engram.n_rows(scenario.model)


def _losses(rho: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    distinct, inverse = np.unique(rho, return_inverse=True)
    band = loss_curve.band(distinct, seed=seed)
    told = {"loss_change": band.middle, "loss_change_low": band.low, "loss_change_high": band.high}
    return {name: values[inverse] for name, values in told.items()}


STUDY = Study(
    about="sparse parameters moved from experts to n-gram tables: loss, memory, steps, messages, cost",
    answer=answer,
    columns=("rho", "loss_change", "training_step_time_s", "decode_tpot_s", "prefill_ttft_s"),
    figures=allocation_report.figures,
    text=allocation_report.text,
    judged=allocation_report.judged,
    fitted="four statements at 6e20 FLOPs",
)
