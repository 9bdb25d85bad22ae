"""Catalogue of hardware: one sourced file per GPU and cluster, found by its name.

The name is the file's with hyphens for underscores. A GPU's kernel coefficients are read from ``fits/<module>.yaml``
where that file exists; kernels it does not hold come from the GPU its ``FIT`` names, with a wider interval.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

from sextant.hwmodels.gpus import Transfer
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Cluster, Device, KernelFit

FITS = Path(__file__).parent / "fits"


@cache
def device_names() -> tuple[str, ...]:
    """The names of all GPUs, sorted."""
    return _names("gpus")


@cache
def cluster_names() -> tuple[str, ...]:
    """The names of all clusters, sorted."""
    return _names("clusters")


@cache
def device(name: str) -> Device:
    """The GPU called ``name`` with its kernel coefficients; InputError offers the nearest names."""
    module = _module("gpus", "GPU", name, device_names())
    kernels = fits_of(name)
    source = {**module.DEVICE.source, "kernels": _kernel_source(name, module.FIT)}
    return replace(module.DEVICE, kernels=kernels, source=source)


@cache
def cluster(name: str) -> Cluster:
    """The cluster called ``name``, its device with kernel coefficients; InputError offers the nearest names."""
    found: Cluster = _module("clusters", "cluster", name, cluster_names()).CLUSTER
    return replace(found, device=device(found.device.name))


def fits_of(name: str, _askers: tuple[str, ...] = ()) -> Mapping[str, KernelFit]:
    """Kernel coefficients of GPU ``name`` by kernel: its own, and for other kernels those its ``FIT`` takes over.

    Two GPUs may lend to each other what only one of them measured; none lends to itself in the end. What a module's
    ``LIBRARIES`` says is of a library goes by that library's name too, so that a GPU with a block of its own, of
    another library, still has both.
    """
    module = _module("gpus", "GPU", name, device_names())
    transfer: Transfer | None = module.FIT
    kernels: dict[str, KernelFit] = {}
    if transfer is not None and transfer.gpu not in _askers:
        lent = fits_of(transfer.gpu, (*_askers, name))
        kernels = {kernel: transferred(fit, transfer) for kernel, fit in lent.items()}
    own = _read(name)
    libraries: Mapping[str, str] = getattr(module, "LIBRARIES", {})
    named = {f"{kernel}_{library}": own[kernel] for kernel, library in libraries.items() if kernel in own}
    return {**kernels, **named, **own}


def own_fits(name: str) -> Mapping[str, KernelFit]:
    """Kernel coefficients that were fitted to kernels of GPU ``name`` itself."""
    if name not in device_names():
        raise InputError(f"unknown GPU {name!r}; {nearest(name, device_names())}")
    return _read(name)


def transfer_of(name: str) -> Transfer | None:
    """Where GPU ``name`` takes the coefficients from that nobody measured on it; None where it takes none."""
    return _module("gpus", "GPU", name, device_names()).FIT


def transferred(fit: KernelFit, transfer: Transfer) -> KernelFit:
    """``fit`` as another GPU may use it: the interval widened, and the source saying so."""
    return replace(
        fit,
        low=fit.low * transfer.low,
        high=fit.high * transfer.high,
        provenance=transfer.provenance or fit.provenance,
        source=f"{fit.source}; taken over from {transfer.gpu}, interval x{transfer.low:g} to x{transfer.high:g}: "
        f"{transfer.reason}",
    )


def _read(name: str) -> Mapping[str, KernelFit]:
    path = FITS / f"{_file(name)}.yaml"
    if not path.is_file():
        return {}
    from sextant.hwmodels.fits import read_fits  # only here: a catalogue without fits needs no reader

    return read_fits(path)


def _kernel_source(name: str, transfer: Transfer | None) -> str:
    own = f"fits/{_file(name)}.yaml where it exists"
    if transfer is None:
        return own
    taken = f"x{transfer.low:g} to x{transfer.high:g} ({transfer.reason})"
    return f"{own}, otherwise {'assumed: ' if transfer.provenance == 'assumed' else ''}{transfer.gpu}'s, {taken}"


def _file(name: str) -> str:
    return name.replace("-", "_").replace(".", "_")


def _names(folder: str) -> tuple[str, ...]:
    package = importlib.import_module(f"{__name__}.{folder}")
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(package.__path__)))


def _module(folder: str, kind: str, name: str, known: tuple[str, ...]) -> ModuleType:
    if name not in known:
        raise InputError(f"unknown {kind} {name!r}; {nearest(name, known)}")
    return importlib.import_module(f"{__name__}.{folder}.{_file(name)}")
