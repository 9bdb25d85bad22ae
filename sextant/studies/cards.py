"""What ``sextant list`` and ``sextant show`` say of a catalogue entry."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from sextant import hwmodels
from sextant.simulator import kernels
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.units import dimension
from sextant.simulator.units import show as shown
from sextant.studies import catalogue
from sextant.workloads import models, parameters

#: The sequence length at which a card quotes FLOPs per trained token; the published tables use it.
_CONTEXT_TOKENS = 4096.0


def listing(kind: str) -> list[dict[str, Any]]:
    """One record per entry of ``kind``; InputError names the kinds there are."""
    kinds: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "models": lambda: [_model_row(m) for m in models.catalogue().values()],
        "gpus": lambda: [_gpu_row(name) for name in hwmodels.device_names()],
        "clusters": lambda: [_cluster_row(name) for name in hwmodels.cluster_names()],
        "ops": lambda: [{"name": name, "about": _about(name)} for name in _kernel_kinds()],
        "studies": lambda: [{"name": "training"}, {"name": "prefill"}, {"name": "decode"}],
        "scenarios": lambda: [_scenario_row(name) for name in catalogue.scenario_names()],
    }
    if kind not in kinds:
        raise InputError(f"unknown kind {kind!r}; {nearest(kind, kinds)}")
    return kinds[kind]()


def card(kind: str, name: str) -> dict[str, Any]:
    """Everything about one entry, nested mappings as sections; InputError offers the nearest names."""
    kinds: dict[str, Callable[[str], dict[str, Any]]] = {
        "model": _model_card, "gpu": lambda n: _record(hwmodels.device(n)), "op": _op_card,
        "cluster": lambda n: _record(hwmodels.cluster(n)), "scenario": _scenario_card,
    }  # fmt: skip
    if kind.rstrip("s") not in kinds:
        raise InputError(f"unknown kind {kind!r}; {nearest(kind, kinds)}")
    return kinds[kind.rstrip("s")](name)


def _model_row(model: Any) -> dict[str, Any]:
    return {
        "name": model.name, "system": model.system, "n_parameters": float(parameters.n_parameters(model)),
        "n_activated_parameters": float(parameters.activated_parameters(model)),
        "convention": "without MTP; activated without the input embedding",
        "official": {k: float(v) for k, v in model.official.items()}, "source": dict(model.source),
    }  # fmt: skip


def _model_card(name: str) -> dict[str, Any]:
    model = models.model(name)
    fields = {
        k: v for k, v in asdict(model).items() if k not in ("official", "source", "name", "system") and v not in (0.0, "")
    }
    row = _model_row(model)
    flops = parameters.training_flops_per_token
    sizes = {
        "kv_bytes_per_token": float(parameters.kv_bytes_per_token(model)),
        "training_flops_per_token_causal": float(flops(model, _CONTEXT_TOKENS)),
        "training_flops_per_token_noncausal": float(flops(model, _CONTEXT_TOKENS, causal=False)),
        "context_tokens_of_those": _CONTEXT_TOKENS,
        "weights_bf16_bytes": 2.0 * row["n_parameters"], "mtp_parameters": float(parameters.mtp_parameters(model)),
        "n_activated_parameters_with_embedding": float(parameters.activated_parameters(model, embedding=True)),
    }  # fmt: skip
    pieces = {piece: float(n) for piece, n in parameters.by_piece(model).items()}
    official, source = row.pop("official"), row.pop("source")
    return {
        **row, "parameters by piece": pieces, "sizes": sizes, "fields": fields, "official": official, "source": source
    }  # fmt: skip


def _gpu_row(name: str) -> dict[str, Any]:
    device = hwmodels.device(name)
    hbm = device.memories["hbm"]
    return {
        "name": name, "bf16": shown(float(device.peak_flops_per_s["bf16"]), "flops_per_s"),
        "fp8": shown(float(device.peak_flops_per_s.get("fp8", 0.0)), "flops_per_s"),
        "hbm": shown(float(hbm.capacity_bytes), "bytes"),
        "hbm bandwidth": shown(float(hbm.bandwidth_bytes_per_s), "bytes_per_s"), "SMs": float(device.n_sms),
        "USD/h": float(device.price_usd_per_h), "kernels": ", ".join(sorted({f.provenance for f in device.kernels.values()})),
    }  # fmt: skip


def _cluster_row(name: str) -> dict[str, Any]:
    found = hwmodels.cluster(name)
    tiers = [
        f"{tier.n_devices:g} over {name} at {shown(float(tier.link.bandwidth_bytes_per_s), 'bytes_per_s')}"
        for name, tier in found.tiers.items()
    ]
    return {
        "name": name, "gpu": found.device.name, "n_devices": float(found.n_devices),
        "tiers, per device and direction": "; ".join(tiers), "topology": found.topology,
    }  # fmt: skip


def _record(record: Any) -> dict[str, Any]:
    """A dataclass tree as sections: one per nested record, values with their units."""
    flat: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}

    def walk(value: Any, path: str) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            value = {name: getattr(value, name) for name in value.__dataclass_fields__}
        if isinstance(value, dict) or hasattr(value, "items"):
            for key, child in value.items():
                walk(child, f"{path}.{key}" if path else str(key))
            return
        name = path.rpartition(".")[2]
        text = shown(float(value), dimension(name)) if isinstance(value, float) and dimension(name) else value
        if "." in path:
            head, _, rest = path.partition(".")
            sections.setdefault(head, {})[rest] = text
        else:
            flat[path] = text

    walk(record, "")
    return {**flat, **sections}


def _kernel_kinds() -> list[str]:
    found = [m.name for m in pkgutil.iter_modules(kernels.__path__)]
    return sorted(name for name in found if kernels.is_kind(name))


def _about(kind: str) -> str:
    return (kernels.module(kind).__doc__ or "").strip().splitlines()[0]


def _op_card(name: str) -> dict[str, Any]:
    if name not in _kernel_kinds():
        raise InputError(f"unknown operator {name!r}; {nearest(name, _kernel_kinds())}")
    module = kernels.module(name)
    fitted = {
        device: ", ".join(sorted(k for k in hwmodels.device(device).kernels if k.startswith(name))) or "see about"
        for device in hwmodels.device_names()
    }
    return {"name": name, "about": " ".join((module.__doc__ or "").split()), "coefficients by GPU": fitted}


def _scenario_row(name: str) -> dict[str, Any]:
    from sextant.studies.answer import question

    asked = question(name)
    n_points = int(np.prod([len(v) for v in asked.scenario.axes.values()])) if asked.scenario.axes else 1
    return {"name": name, "asks": asked.scenario.name, "points": float(n_points)}


def _scenario_card(name: str) -> dict[str, Any]:
    path = catalogue.scenario_path(name)
    return {**_scenario_row(name), "file": str(path.relative_to(catalogue.SCENARIOS.parents[2])), "yaml": path.read_text()}
