"""From a question to its answer: each group of points with the same structure is evaluated as arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sextant.simulator import paths
from sextant.simulator.result import join, result
from sextant.simulator.schedule import OVERLAPPING, n_stages
from sextant.simulator.types import Result, Scenario
from sextant.studies import allocated, catalogue, solve, study
from sextant.studies.limits import plan_limits, undefined
from sextant.studies.scenario import Check, Question, load
from sextant.workloads import models, traffic

#: The fields that each limit is about, for errors that name a place in the file: the first is blamed.
_BLAME = {
    "divisibility: heads by tensor": ("plan.tensor", "model.num_attention_heads"),
    "divisibility: routed and redundant experts by expert": (
        "plan.expert", "plan.redundant_experts", "model.n_routed_experts",
    ),
    "divisibility: data x tensor by expert": ("plan.expert", "plan.data", "plan.tensor"),
    "divisibility: expert without routed experts": ("plan.expert", "model.n_routed_experts"),
    "devices: tensor x context x pipeline x data exceeds the cluster": (
        "plan.data", "plan.tensor", "plan.pipeline", "plan.context", "cluster.n_devices",
    ),
    "unsupported: context parallelism is not modelled yet": ("plan.context",),
    "unsupported: pipelines are not modelled in serving yet": ("plan.pipeline", "load.phase"),
    "unsupported: more tensor ranks than key-value heads are not modelled yet": (
        "plan.tensor", "model.num_key_value_heads",
    ),
    "unsupported: only ZeRO 0 to 3 exist": ("plan.zero_stage",),
    "sms: overlapped exchange needs n_comm_sms": ("plan.n_comm_sms", "plan.overlap", "plan.expert"),
    "reliability: checkpoints without a bandwidth": (
        "cluster.reliability.checkpoint_bytes_per_s", "cluster.reliability.device_mtbf_s",
    ),
    "choice: experts per token among routed experts": ("model.num_experts_per_tok", "model.n_routed_experts"),
    "model: this phase needs an image encoder": ("load.phase",),
    "model: this phase needs an image generator": ("load.phase",),
    "model: MLA needs kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and v_head_dim": (
        "model.attention", "model.kv_lora_rank", "model.qk_nope_head_dim", "model.qk_rope_head_dim", "model.v_head_dim",
    ),
    "model: routed experts need moe_intermediate_size and num_experts_per_tok": (
        "model.n_routed_experts", "model.moe_intermediate_size", "model.num_experts_per_tok",
    ),
    "model: engram_layers count from 1 to num_hidden_layers, each once": (
        "model.engram_layers", "model.num_hidden_layers",
    ),
    "sms: compute on the SMs that n_comm_sms leaves": ("plan.n_comm_sms", "cluster.device.n_sms"),
    "divisibility: layers by layers_per_stage": (
        "plan.layers_per_stage", "plan.pipeline", "plan.virtual_stages", "model.num_hidden_layers",
    ),
}  # fmt: skip


def question(given: str | Path, sets: Sequence[str] = (), checks: Sequence[Check] | None = None) -> Question:
    """The question that a scenario file, or a shipped scenario's name, asks; InputError with everything wrong.

    ``checks`` look at the scenario beside its plan; without them the plan must work out.
    """
    found: Sequence[Check] = (_divisible,) if checks is None else checks
    return load(locate(given), sets=sets, catalogue=catalogue.catalogue(), checks=found)


def searchable(scenario: Scenario):
    """What is wrong with a scenario whatever its plan: a check for a search, which makes plans of its own."""
    for fields, message in _divisible(scenario):
        if not any(field.startswith("plan.") for field in fields):
            yield fields, message


def locate(given: str | Path) -> str | Path:
    """``given``, or where the package ships it: a scenario is found by name, and by its path inside the package."""
    if "\n" in str(given):  # the text of a scenario, not its place
        return given
    path = Path(given)
    if path.exists():
        return given
    if str(given) in catalogue.scenario_names():
        return catalogue.scenario_path(str(given))
    shipped = catalogue.SCENARIOS.parents[1] / path
    return shipped if path.suffix == ".yaml" and shipped.is_file() else given


def evaluate(scenario: Scenario, n_points: int = 1) -> Result:
    """Metrics of a scenario whose swept fields are arrays of shape (n_points,).

    Points that no plan can be made of are not evaluated: their metrics are 0, and their limits say why.
    """
    found = _bounded(_evaluated(scenario, n_points), scenario)
    return replace(found, warnings=(*found.warnings, *notes(scenario)))


def _evaluated(scenario: Scenario, n_points: int) -> Result:
    bad = np.broadcast_to(np.any(np.broadcast_arrays(*undefined(scenario).values()), axis=0), (n_points,))
    if bad.all():
        return result(n_points, {"step_time_s": 0.0}, plan_limits(scenario))
    if bad.any():
        index = [np.flatnonzero(~bad), np.flatnonzero(bad)]
        return join([_evaluated(paths.take(scenario, i), len(i)) for i in index], index)
    if scenario.load.phase == "training":
        from sextant.studies.training import evaluate_training

        return evaluate_training(scenario, n_points)
    if scenario.load.phase == "image_generation":
        from sextant.studies.imaging import evaluate_generation

        return evaluate_generation(scenario, n_points)
    from sextant.studies.serving import evaluate_serving

    return evaluate_serving(scenario, n_points)


def nothing(n_points: int) -> Result:
    """The result of points that cannot be evaluated: no metrics, whatever their reasons are."""
    return result(n_points, {"step_time_s": 0.0}, {})


def answer(asked: Question, progress: Callable[[int], None] = lambda n: None) -> Result:
    """The result of every point of the question's design table, in its order; ``progress`` gets points done so far.

    A study of its own answers what asks for it.
    """
    if asked.study:
        return study.find(asked.study).answer(asked, progress)
    results: list[Result] = []
    order: list[np.ndarray] = []
    done = 0
    for part in solve.parts(asked, structural(asked.scenario)):
        results.append(solve.answered(part, evaluate))
        order.append(part.index)
        done += len(part.index)
        progress(done)
    return join(results, order)


def structural(scenario: Scenario) -> frozenset[str]:
    """Axes and solved fields that a sweep evaluates value by value: in training all that layers are made of, but not
    how many experts and rows there are, whose layouts on stages are told apart as they come."""
    swept = {*scenario.axes, *scenario.solve}
    fixed = set(catalogue.STRUCTURAL)
    # Whether there are experts at all decides what is built.
    fixed |= {path for path in swept if path == "model.n_routed_experts" and 0 in scenario.axes.get(path, ())}
    if scenario.load.phase == "training":
        sizes = {allocated.PATH, *allocated.FOLLOWS}
        fixed |= {p for p in swept if (p.startswith("model.") and p not in sizes) or p == "load.context_tokens"}
    return frozenset(fixed)


def notes(scenario: Scenario) -> list[str]:
    """What a reader of any answer should know: fields without effect, and whose kernels the times come from."""
    found = _ignored(scenario)
    device = scenario.cluster.device
    if any("taken over from" in fit.source for fit in device.kernels.values()):
        sources = device.source.get("kernels", "taken over from other GPUs")
        found.append(f"kernel coefficients of {device.name}: {sources}")
    return found


def _ignored(scenario: Scenario) -> list[str]:
    """What the scenario says and this version does not use."""
    plan, load = scenario.plan, scenario.load
    training = load.phase == "training"
    used = ("none", "forward_backward", "tensor") if training else ("none", "two_batch")
    unused = {
        f"plan.overlap: {plan.overlap} means nothing in {load.phase}": plan.overlap not in used,
        "plan.overlap: forward_backward needs the dualpipe or dualpipev schedule": training
        and plan.overlap == "forward_backward"
        and plan.schedule not in OVERLAPPING,
        "cluster.jitter and cluster.stragglers, which are about training": not training and scenario.cluster.varies,
        f"load.routing: {load.routing} without routed experts": load.routing != "balanced"
        and bool(np.all(np.asarray(scenario.model.n_routed_experts) == 0)),
        "load.expert_tokens, which need load.routing: counts": bool(load.expert_tokens) and load.routing != "counts",
        f"plan.exchange: {plan.exchange} without routed experts": plan.exchange != "deepep"
        and bool(np.all(np.asarray(scenario.model.n_routed_experts) == 0)),
        "plan.early_sends: sends block": plan.early_sends and plan.blocking_sends,
        "plan.hyper_connections: a residual of one stream": plan.hyper_connections != "fused"
        and bool(np.all(np.asarray(scenario.model.n_streams) <= 1)),
        "plan.hyper_connections: tile_kernels are about training": plan.hyper_connections == "tile_kernels"
        and not training,
        **_misplaced(scenario),
        "plan.prefetch, which is about Engram tables while serving": plan.prefetch != "none" and not _fetches(scenario),
        "plan.prefetch: the tables lie in HBM": plan.prefetch != "none" and not _far(scenario),
        "plan.cache_bytes: no Engram rows are fetched from another memory": bool(
            np.any(np.asarray(plan.cache_bytes) > 0)
        )
        and not _far(scenario),
        "plan.host_cache_bytes, which is about Engram tables on drives": bool(
            np.any(np.asarray(plan.host_cache_bytes) > 0)
        )
        and not (_far(scenario) and plan.placement.get("engram") == "nvme"),
        "plan.sparse_optimizer, which is about Engram tables in training": plan.sparse_optimizer
        and not (bool(scenario.model.engram_layers) and training),
    }
    return [f"not used: {text}" for text, hit in unused.items() if hit]


def _far(scenario: Scenario) -> bool:
    """Whether a phase fetches Engram rows from another memory than HBM."""
    return _fetches(scenario) and scenario.plan.placement.get("engram", "hbm") != "hbm"


def _fetches(scenario: Scenario) -> bool:
    """Whether a phase reads Engram tables that may lie anywhere."""
    return bool(scenario.model.engram_layers) and scenario.load.phase not in ("training", "image_generation")


def _misplaced(scenario: Scenario) -> dict[str, bool]:
    """What ``plan.placement`` names and the phase does not have."""
    training = scenario.load.phase == "training"
    known = {"engram": _fetches(scenario), **dict.fromkeys(("optimizer", "activations", "ema"), training)}
    where = {"engram": "is about Engram tables while serving"}
    return {
        f"plan.placement.{part}, which {where.get(part, 'is about training' if part in known else 'names nothing')}":
        not known.get(part, False)
        for part in scenario.plan.placement
    }  # fmt: skip


def _bounded(found: Result, scenario: Scenario) -> Result:
    """``found`` with the points that break the scenario's constraints marked, each with its nearest miss."""
    if not scenario.constraints:
        return found
    feasible, limits = found.feasible.copy(), [list(reasons) for reasons in found.limits]
    for metric, ends in scenario.constraints.items():
        values = found.columns.get(metric)
        for end, bound in ends.items():
            if values is None:
                broken = np.ones(len(feasible), dtype=bool)
            else:
                broken = (operator.gt if end == "max" else operator.lt)(values, bound)
            feasible &= ~broken
            for i in np.flatnonzero(broken):
                got = "not computed in this phase" if values is None else f"{values[i]:.6g}"
                limits[i].append(f"constraint: {metric} {end} {bound:.6g}, got {got}")
    return replace(found, feasible=feasible, limits=tuple(tuple(reasons) for reasons in limits))


def _divisible(scenario: Scenario):
    for path, message in traffic.problems(scenario.model, scenario.load):
        yield (path,), message
    for reason, broken in plan_limits(scenario).items():
        if bool(np.any(broken)):
            fields = _BLAME[reason]
            text = reason.partition(": ")[2] + (
                "" if reason.startswith(("model", "reliability")) else " does not work out"
            )
            yield fields, f"{text}, got {_shown(paths.get(scenario, fields[0]))}; {_remedy(reason, scenario)}"


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    items = np.asarray(value, dtype=float)
    return f"{items:g}" if items.ndim == 0 else f"[{', '.join(f'{v:g}' for v in items)}]"


def _with(field: str) -> str:
    """The models whose nested record ``field`` is there."""
    return ", ".join(name for name, model in models.catalogue().items() if getattr(model, field) is not None)


def _remedy(reason: str, scenario: Scenario) -> str:
    model, plan, cluster = scenario.model, scenario.plan, scenario.cluster
    remedies: Mapping[str, str] = {
        "divisibility: heads by tensor": f"choose a divisor of {model.num_attention_heads:g} heads",
        "divisibility: routed and redundant experts by expert": "choose a divisor of "
        f"{model.n_routed_experts + plan.redundant_experts:g} experts, or set plan.redundant_experts",
        "divisibility: data x tensor by expert": f"choose a divisor of {plan.data * plan.tensor:g}",
        "divisibility: expert without routed experts": "leave it at 1: this model has no routed experts",
        "devices: tensor x context x pipeline x data exceeds the cluster": f"the cluster has {cluster.n_devices:g} "
        f"devices, the plan asks for {plan.tensor * plan.context * plan.pipeline * plan.data:g}",
        "unsupported: context parallelism is not modelled yet": "leave it at 1",
        "unsupported: pipelines are not modelled in serving yet": "leave it at 1",
        "unsupported: more tensor ranks than key-value heads are not modelled yet": "choose at most "
        f"{model.num_key_value_heads:g}",
        "unsupported: only ZeRO 0 to 3 exist": "choose 0, 1, 2 or 3",
        "sms: overlapped exchange needs n_comm_sms": "set aside some, such as 20",
        "reliability: checkpoints without a bandwidth": "give what all devices together write to storage, such as "
        "500 GB/s, or leave device_mtbf_s at 0",
        "choice: experts per token among routed experts": f"choose at most {model.n_routed_experts:g}",
        "model: this phase needs an image encoder": f"choose a phase of text, or a model with one: {_with('vision')}",
        "model: this phase needs an image generator": "choose another phase, or a model with one: "
        f"{_with('generation')}",
        "model: MLA needs kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and v_head_dim": "give all four, such as "
        "512, 128, 64 and 128",
        "model: routed experts need moe_intermediate_size and num_experts_per_tok": "give both, for example 1408 and 6",
        "model: engram_layers count from 1 to num_hidden_layers, each once": "list layers from 1 to "
        f"{model.num_hidden_layers:g}, each once",
        "sms: compute on the SMs that n_comm_sms leaves": f"choose fewer than {cluster.device.n_sms:g}",
        "divisibility: layers by layers_per_stage": "list "
        f"{n_stages(plan.schedule, int(plan.pipeline), int(plan.virtual_stages))} numbers that add up to "
        f"{model.num_hidden_layers:g}",
    }
    return remedies[reason]
