"""What a scenario may name: models, clusters, GPUs, shipped scenarios, metrics, published figures."""

from __future__ import annotations

from pathlib import Path

from sextant import hwmodels
from sextant.simulator.cache import POLICIES
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.fetch import WAYS
from sextant.simulator.schedule import NAMES
from sextant.studies import metrics, model_file, study
from sextant.studies.layers import Catalogue
from sextant.workloads import models
from sextant.workloads.formats import RECIPES
from sextant.workloads.sizes import SIZES
from sextant.workloads.transformer import PHASES

SCENARIOS = Path(__file__).parent / "scenarios"

#: What the text fields of a plan may say.
CHOICES = {
    "plan.schedule": NAMES,
    "plan.overlap": ("none", "forward_backward", "two_batch", "tensor"),
    "plan.attention": ("fused", "unfused"),
    "plan.hyper_connections": ("fused", "tile_kernels", "unfused"),
    "plan.exchange": ("deepep", "deepep_2025_02"),
    "plan.formats": tuple(RECIPES),
    "plan.recompute": ("norm", "mla_up", "swiglu", "mhc", "attention", "full"),
    "load.phase": PHASES,
    "plan.prefetch": WAYS,
    "plan.cache_policy": POLICIES,
    "plan.checkpoint": ("file_system", "host"),
    "plan.placement.engram": ("hbm", "host", "nvme"),
    "plan.placement.optimizer": ("hbm", "host"),
    "plan.placement.activations": ("hbm", "host"),
    "plan.placement.ema": ("hbm", "host"),
    "model.attention": ("mla", "gqa"),
    "model.hidden_act": ("silu", "gelu"),
    "model.topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
}

#: Numeric fields that change what is built, not only how large it is: a sweep evaluates their values one by one.
STRUCTURAL = frozenset(
    {
        "model.num_hidden_layers", "model.first_k_dense_replace", "model.num_nextn_predict_layers", "model.q_lora_rank",
        "model.n_group", "model.n_shared_experts", "model.n_streams",
        "plan.pipeline", "plan.virtual_stages",
    }
)  # fmt: skip


def scenario_names() -> tuple[str, ...]:
    """The shipped scenarios, by file name without suffix."""
    return tuple(sorted(path.stem for path in SCENARIOS.glob("*.yaml")))


def scenario_path(name: str) -> Path:
    """The file of a shipped scenario; InputError offers the nearest names."""
    if name not in scenario_names():
        raise InputError(f"unknown scenario {name!r}; {nearest(name, scenario_names())}")
    return SCENARIOS / f"{name}.yaml"


def catalogue() -> Catalogue:
    """Everything a scenario may name."""
    from sextant.validate import published

    return Catalogue(
        models=model_file.named,
        model_names=sorted(models.catalogue()),
        clusters=hwmodels.cluster,
        cluster_names=hwmodels.cluster_names(),
        gpus=hwmodels.device,
        gpu_names=hwmodels.device_names(),
        scenarios=scenario_path,
        scenario_names=scenario_names(),
        metrics=metrics.names(),
        published=published.groups(),
        choices=CHOICES,
        sizes=SIZES,
        studies=study.names(),
    )
