"""A catalogue of stand-ins, so that these tests hold whatever the real catalogues say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Cluster, Device, Link, Memory, Num, Tier
from sextant.studies.scenario import Catalogue

METRICS = ("step_time_s", "tpot_s", "tokens_per_s", "tokens_per_s_per_device", "hbm_bytes", "usd_per_million_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    kind: str = "mla"
    num_attention_heads: int = 128
    q_lora_rank: int | None = 1536


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """A model with a field of every kind that real ones have."""

    name: str
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    n_routed_experts: Num = 256.0
    num_experts_per_tok: int = 8
    engram_fraction: Num = 0.0
    routed_scaling_factor: float = 2.5
    tie_word_embeddings: bool = False
    attention: Attention = field(default_factory=Attention)
    hash_sizes: tuple[int, ...] = (3, 5)
    source: str = "a report"

    def __post_init__(self) -> None:
        if self.hidden_size % 2:
            raise ValueError("hidden_size must be even")


def device(name: str, hbm_bytes_per_s: float) -> Device:
    memories = {
        "hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=hbm_bytes_per_s, source="a datasheet"),
        "host": Memory(capacity_bytes=2e12, bandwidth_bytes_per_s=55e9),
    }
    return Device(
        name=name, peak_flops_per_s={"bf16": 989e12, "fp8": 1979e12}, n_sms=132.0, memories=memories, l2_bytes=50e6,
        launch_s=3e-6, power_w=700.0, price_usd_per_h=2.0, source={"power_w": "a product brief"},
    )  # fmt: skip


def cluster(name: str, gpu: Device) -> Cluster:
    tiers = {
        "nvlink": Tier(n_devices=8.0, link=Link(bandwidth_bytes_per_s=200e9, latency_s=2e-6)),
        "infiniband": Tier(n_devices=2048.0, link=Link(bandwidth_bytes_per_s=50e9, latency_s=4e-6, efficiency=0.8)),
    }
    return Cluster(name=name, device=gpu, n_devices=2048.0, tiers=tiers)


GPUS = {name: device(name, rate) for name, rate in (("h800", 3.35e12), ("h200", 4.8e12))}
CLUSTERS = {"h800-2048": cluster("h800-2048", GPUS["h800"]), "h200-2048": cluster("h200-2048", GPUS["h200"])}
MODELS = {
    "deepseek-v3": StandIn(name="deepseek-v3"),
    "deepseek-v2": StandIn(name="deepseek-v2", hidden_size=5120, num_hidden_layers=60, n_routed_experts=160.0),
}

#: Sizes that a stand-in's fields move up, both ways, or not at all.
SIZES = {
    "n_parameters": lambda model, load: (
        1.0 * model.num_hidden_layers * model.hidden_size * (12 + model.n_routed_experts)
    ),
    "kv_bytes_per_token": lambda model, load: 1152.0 * model.num_hidden_layers,
    "n_dips": lambda model, load: (model.n_routed_experts - 50.0) ** 2,
}

GOOD = """\
name: expert counts
description: how many experts to route
model: {base: deepseek-v3, attention.q_lora_rank: 768}
cluster:
  base: h800-2048
  device.memories.host.bandwidth_bytes_per_s: 55 GB/s
  device:
    launch_s: 2 us
plan: {expert: 8, placement: {engram: host}, recompute: [mlp, norm]}
load: {phase: decode, batch: 128, context_tokens: 4096}
axes:
  plan.schedule: [1f1b, dualpipe]
  model.n_routed_experts: [64, 128, 256]
  cluster.device.memories.hbm.bandwidth_bytes_per_s: {linspace: [2 TB/s, 4 TB/s, 5]}
constraints: {tpot_s: {max: 50 ms}}
objectives: {tokens_per_s_per_device: max, usd_per_million_tokens: min}
engine: analytic
seed: 7
published: [figure-5]
"""


def make_catalogue(folder: Path | None = None) -> Catalogue:
    """The stand-ins; the YAML files in ``folder`` are the shipped scenarios."""
    shipped = {f.stem: f for f in sorted(folder.glob("*.yaml"))} if folder else {}

    def missing(name: str) -> InputError:
        return InputError(f"unknown model {name!r}; {nearest(name, MODELS)}")

    def model(name: str) -> StandIn:
        if name not in MODELS:
            raise missing(name)
        return MODELS[name]

    return Catalogue(
        models=model, model_names=tuple(MODELS), clusters=CLUSTERS.__getitem__, cluster_names=tuple(CLUSTERS),
        gpus=GPUS.__getitem__, gpu_names=tuple(GPUS), scenarios=shipped.__getitem__, scenario_names=tuple(shipped),
        metrics=METRICS, published=("figure-5",), choices={"plan.schedule": ("1f1b", "dualpipe", "zb1p")},
        sizes=SIZES,
    )  # fmt: skip


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return make_catalogue()


@pytest.fixture(scope="session")
def good() -> str:
    return GOOD


@pytest.fixture(scope="session")
def catalogue_of():
    """``make_catalogue``, for tests that ship scenarios of their own."""
    return make_catalogue
