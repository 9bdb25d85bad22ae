"""A profile of the PyTorch profiler (Kineto), in the Trace Event Format: kernels, and the ranges that launched them.

Kineto writes times in microseconds, a kernel's stream and correlation in its ``args``, and the call that launched it
as an event of category cuda_runtime or cuda_driver with the same correlation. Ranges that a program names
(``torch.profiler.record_function``) are of category user_annotation, on the thread that opened them; the backward pass
launches from another thread, so a range also holds what other threads launch meanwhile.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.validate.kernel_names import classify

#: Categories of what runs on the device, and of the host calls that launch it.
_DEVICE, _LAUNCHES, _RANGES = ("kernel", "gpu_memcpy", "gpu_memset"), ("cuda_runtime", "cuda_driver"), "user_annotation"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """What ran on the device, in order of start. Arrays of shape (n_kernels,), seconds from the first start.

    ``range`` is the number of the range that launched a kernel, -1 outside of all; ``classes`` as ``kernel_names``.
    """

    names: tuple[str, ...]
    classes: NDArray[np.str_]
    streams: NDArray[np.str_]
    grids: tuple[tuple[int, ...], ...]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    range: NDArray[np.intp]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """How long each ran."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A profile: kernels, the names of its ranges in order of start, and what it says of the machine."""

    kernels: Kernels
    ranges: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def phases(self) -> NDArray[np.str_]:
        """The name of the range that launched each kernel, "" outside of all, shape (n_kernels,)."""
        return np.array([*self.ranges, ""])[self.kernels.range]


def read(path: Path | str) -> Trace:
    """The profile in ``path``, a .json or .json.gz of the PyTorch profiler.

    InputError where there is no such file, it is not such a profile, or no kernel is in it.
    """
    data = _parsed(path)
    found = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(found, list):
        raise InputError(f"{path}: no traceEvents; export the profile with torch.profiler's export_chrome_trace")
    events = [event for event in found if isinstance(event, dict) and event.get("ph") == "X"]
    try:
        return _trace(events, {k: v for k, v in data.items() if k != "traceEvents"} if isinstance(data, dict) else {})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        remedy = "every event of the device needs name, ts and dur in microseconds"
        raise InputError(f"{path}: an event of the profile cannot be read ({error!r}); {remedy}") from error


def _parsed(path: Path | str) -> Any:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a profile, .json or .json.gz") from error
    try:
        return json.loads(gzip.decompress(content) if content.startswith(_GZIP) else content)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not JSON ({error}); name a profile, .json or .json.gz") from error


def _trace(events: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Trace:
    on_device = sorted((e for e in events if e.get("cat") in _DEVICE), key=lambda e: (float(e["ts"]), _stream(e)))
    if not on_device:
        raise InputError("no kernel is in this profile; record it with activities=[CPU, CUDA]")
    zero_us = float(on_device[0]["ts"])
    ranges = sorted((e for e in events if e.get("cat") == _RANGES), key=lambda e: (float(e["ts"]), -float(e["dur"])))
    devices = {_args(e).get("device", e.get("pid")) for e in on_device}
    names = tuple(str(e["name"]) for e in on_device)
    classes = {name: classify(name) for name in dict.fromkeys(names)}
    start_us = np.array([float(e["ts"]) - zero_us for e in on_device])
    kernels = Kernels(
        names=names, classes=np.array([classes[name] for name in names]),
        streams=np.array([_stream(e, several=len(devices) > 1) for e in on_device]),
        grids=tuple(tuple(int(n) for n in _args(e).get("grid", ())) for e in on_device),
        start_s=1e-6 * start_us, end_s=1e-6 * (start_us + np.array([float(e["dur"]) for e in on_device])),
        range=_launching_range(on_device, _launches(events), ranges),
    )  # fmt: skip
    return Trace(kernels=kernels, ranges=tuple(str(e["name"]) for e in ranges), about=about)


def _launches(events: Iterable[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    """The host's call by correlation."""
    calls = (e for e in events if e.get("cat") in _LAUNCHES)
    return {_args(e)["correlation"]: e for e in calls if "correlation" in _args(e)}


def _launching_range(
    on_device: Sequence[Mapping[str, Any]], calls: Mapping[Any, Mapping[str, Any]], ranges: Sequence[Mapping[str, Any]]
) -> NDArray[np.intp]:
    """The innermost range around each launch: of the launching thread, else of any thread; -1 where there is none."""
    found = np.full(len(on_device), -1, dtype=np.intp)
    called = {i: calls[c] for i, e in enumerate(on_device) if (c := _args(e).get("correlation")) in calls}
    waiting, active = list(reversed(range(len(ranges)))), list[int]()
    for i, call in sorted(called.items(), key=lambda item: float(item[1]["ts"])):
        now = float(call["ts"])
        while waiting and float(ranges[waiting[-1]]["ts"]) <= now:
            active.append(waiting.pop())
        active = [r for r in active if float(ranges[r]["ts"]) + float(ranges[r]["dur"]) >= now]
        own = [r for r in active if ranges[r].get("tid") == call.get("tid")]
        if around := own or active:
            found[i] = min(around, key=lambda r: float(ranges[r]["dur"]))
    return found


def _stream(event: Mapping[str, Any], *, several: bool = False) -> str:
    args = _args(event)
    stream = str(args.get("stream", event.get("tid")))
    return f"{args.get('device', event.get('pid'))}:{stream}" if several else stream


def _args(event: Mapping[str, Any]) -> Mapping[str, Any]:
    found = event.get("args")
    return found if isinstance(found, dict) else {}
