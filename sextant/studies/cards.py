"""What ``sextant list`` and ``sextant show`` say of a catalogue entry."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from sextant import hwmodels
from sextant.hwmodels.topologies import TOPOLOGIES
from sextant.simulator import kernels
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import KernelFit
from sextant.simulator.units import show as shown
from sextant.studies import axes, catalogue, model_card, study, topology_card
from sextant.studies.files import save
from sextant.workloads import models

#: What a scenario without a study of its own asks, by its ``load.phase``.
_PHASES = {
    "training": "one optimizer step: pipeline, overlap, bubble, MFU, memory, cost per trillion tokens",
    "prefill": "one engine step over prompts: time to first token, throughput, memory, cost per million tokens",
    "decode": "one engine step, a token per request: time per token, throughput, memory, cost per million tokens",
}


def _studies() -> dict[str, str]:
    return {**_PHASES, **{name: study.find(name).about for name in study.names()}}


def listing(kind: str) -> list[dict[str, Any]]:
    """One record per entry of ``kind``; InputError names the kinds there are."""
    kinds: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "models": lambda: [model_card.row(m) for m in models.catalogue().values()],
        "gpus": lambda: [_gpu_row(name) for name in hwmodels.device_names()],
        "clusters": lambda: [_cluster_row(name) for name in hwmodels.cluster_names()],
        "ops": lambda: [{"name": name, "about": _about(name)} for name in _kernel_kinds()],
        "studies": lambda: [{"name": name, "about": about} for name, about in _studies().items()],
        "scenarios": lambda: [_scenario_row(name) for name in catalogue.scenario_names()],
        "topologies": lambda: [topology_card.row(name) for name in TOPOLOGIES],
    }
    if kind not in kinds:
        raise InputError(f"unknown kind {kind!r}; {nearest(kind, kinds)}")
    return kinds[kind]()


def card(kind: str, name: str, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Everything about one entry, nested mappings as sections; InputError offers the nearest names.

    ``sets`` (``field=value``) change a model or a topology first; other kinds are shown as they are.
    """
    kinds: dict[str, Callable[[str], dict[str, Any]]] = {
        "model": lambda name: model_card.card(name, sets), "gpu": _gpu_card, "op": _op_card, "cluster": _cluster_card,
        "scenario": _scenario_card, "topology": lambda name: topology_card.of(name, sets),
    }  # fmt: skip
    singular = "topology" if kind == "topologies" else kind.removesuffix("s")
    if singular not in kinds:
        raise InputError(f"unknown kind {kind!r}; {nearest(kind, kinds)}")
    if sets and singular not in ("model", "topology"):
        raise InputError(f"--set changes the card of a model or topology, not of a {singular}; leave it out")
    return kinds[singular](name)


def write(found: Mapping[str, Any], place: Path, *, figure: bool) -> list[Path]:
    """``found`` as card.json in ``place``, of a model with its figure; returns the files."""
    from sextant.studies import report

    written = [save(place / "card.json", lambda file: file.write(report.dumps(found) + "\n"))]
    if figure:
        from sextant.studies import card_figure

        written += card_figure.draw(found, place)
    return written


def _count(value: Any) -> int | float:
    """A count as a whole number, so that JSON shows all its digits and no exponent."""
    return int(value) if float(value).is_integer() else float(value)


def _plain(value: Any) -> Any:
    return _count(value) if isinstance(value, float) and math.isfinite(value) else value


def _gpu_row(name: str) -> dict[str, Any]:
    device = hwmodels.device(name)
    hbm = device.memories["hbm"]
    return {
        "name": name, "bf16_flops_per_s": float(device.peak_flops_per_s["bf16"]),
        "fp8_flops_per_s": float(device.peak_flops_per_s["fp8"]) if "fp8" in device.peak_flops_per_s else "none",
        "hbm_bytes": float(hbm.capacity_bytes), "hbm_bytes_per_s": float(hbm.bandwidth_bytes_per_s),
        "n_sms": _count(device.n_sms), "price_usd_per_h": float(device.price_usd_per_h),
        "kernels": ", ".join(sorted({f.provenance for f in device.kernels.values()})),
    }  # fmt: skip


def _cluster_row(name: str) -> dict[str, Any]:
    found = hwmodels.cluster(name)
    # One device on the outermost tier is a machine that stands alone.
    tiers = [
        f"{tier.n_devices:g} over {name} at {shown(float(tier.link.bandwidth_bytes_per_s), 'bytes_per_s')}"
        for name, tier in found.tiers.items() if tier.n_devices > 1
    ]  # fmt: skip
    return {
        "name": name, "gpu": found.device.name, "n_devices": _count(found.n_devices),
        "links, per device and direction": ", ".join(tiers), "topology": found.topology,
    }  # fmt: skip


def _gpu_card(name: str) -> dict[str, Any]:
    return _record(hwmodels.device(name))


def _cluster_card(name: str) -> dict[str, Any]:
    """The cluster's own values; its GPU has a card of its own."""
    found = hwmodels.cluster(name)
    fields = {field: getattr(found, field) for field in found.__dataclass_fields__ if field != "device"}
    return {**_record(fields), "device": {"name": found.device.name, "see": f"sextant show gpu {found.device.name}"}}


def _record(record: Any) -> dict[str, Any]:
    """A dataclass tree as sections, one per nested record, in SI. Kernel fits are summed up, sources come last."""
    flat: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, KernelFit):
            value = f"{value.provenance}, {value.low - 1:+.0%} .. {value.high - 1:+.0%}: {value.source}"
        if is_dataclass(value) and not isinstance(value, type):
            value = {name: getattr(value, name) for name in value.__dataclass_fields__}
        if isinstance(value, Mapping):
            for key, child in value.items():
                walk(child, f"{path}.{key}" if path else str(key))
            return
        head, _, rest = path.partition(".")
        if rest:
            sections.setdefault(head, {})[rest] = _plain(value)
        else:
            flat[head] = _plain(value)

    walk(record, "")
    last = {name: sections.pop(name) for name in ("kernels", "source") if name in sections}
    return {**flat, **sections, **last}


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
    return {"name": name, "asks": asked.scenario.name, "points": axes.n_points(asked.scenario.axes)}


def _scenario_card(name: str) -> dict[str, Any]:
    path = catalogue.scenario_path(name)
    file = str(path.relative_to(catalogue.SCENARIOS.parents[2]))
    return {**_scenario_row(name), "file": file, "yaml": path.read_text(encoding="utf-8")}
