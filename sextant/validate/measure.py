"""Measure kernel cases on this machine: ``python -m sextant.validate.measure --cases deepseek-v3 --out gpu.csv``.

A row is one case: its case columns, the median ``us`` with the 10th and 90th percentiles, the way of timing (see
``timer``), the library that ran, the least traffic in bytes, the multiprocessors' clock while it ran and the relative
error of the result against a reference of higher precision. A case that fails, or whose result is wrong, is a row whose
``error`` says why; nothing else stops, and a case that never ends is given up. Rows are written as they come and cases
already in the file are skipped, so an interrupted run is continued by the same command. A header of ``# key: value``
lines says where the numbers come from. Progress goes to stderr. Needs torch and numpy only; without a GPU the kernels
are plain torch. ``ranks`` as the first word measures what several GPUs exchange (``node.run``), ``allocation`` trains
tiny models and measures their losses (``allocation.run``).
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sextant.validate import duration, timer
from sextant.validate.case_sets import case_set
from sextant.validate.cases import CASE_COLUMNS, Case, case_key, read_cases, select, smallest_of_each
from sextant.validate.kernels import Target, prepare

RESULT_COLUMNS = (
    "us",
    "us_p10",
    "us_p90",
    "n_repeats",
    "timing",
    "library",
    "read_bytes",
    "write_bytes",
    "sm_clock_mhz",
    "relative_error",
    "error",
)
COLUMNS = CASE_COLUMNS + RESULT_COLUMNS
#: Above this much memory kept by the allocator it is given back between cases.
KEPT_BYTES = 90 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How long to measure one case, in microseconds of kernel time, and when to stop starting cases."""

    budget_us: float = 20_000.0
    min_repeats: int = 7
    max_repeats: int = 50
    max_seconds: float = float("inf")
    case_seconds: float = 60.0


class BrokenDeviceError(RuntimeError):
    """The device answers nothing any more in this process (an illegal access, say); a new process may."""


def find_target(name: str = "auto") -> Target:
    """The device to measure: cuda where there is one, else cpu; Triton kernels run on the GPU, or interpreted."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kind == "cpu":
        return Target(device=torch.device("cpu"), n_sms=1, l2_bytes=2**20, fused=interpreted)
    properties = torch.cuda.get_device_properties(0)
    l2_bytes = int(getattr(properties, "L2_cache_size", 0)) or 64 * 2**20
    return Target(device=torch.device("cuda"), n_sms=properties.multi_processor_count, l2_bytes=l2_bytes, fused=True)


def output_of(command: Sequence[str]) -> str:
    """What a program prints; empty where it is absent or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def provenance(target: Target, *, cases: str, settings: Settings, note: str = "") -> dict[str, str]:
    """Where the numbers come from: device, driver, versions, date (UTC), command, revision, clocks, notes."""
    found = {
        "device": torch.cuda.get_device_name(0) if target.cuda else "cpu",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or ""),
        "cudnn": str(torch.backends.cudnn.version() or "") if target.cuda else "",
        "python": sys.version.split()[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": f"python -m sextant.validate.measure --cases {cases}",
        "note": note,
        "timing": f"{settings.budget_us / 1e3:g} ms a case, {settings.min_repeats} to {settings.max_repeats} samples; "
        "graph = rotated inputs in a CUDA graph, flush = L2 overwritten before each call, host = host clock",
        "traffic": "read_bytes and write_bytes count every input read once and every output written once",
        "revision": output_of(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]),
    }
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = ""
    if target.cuda:
        found["sms"], found["l2_bytes"] = str(target.n_sms), str(target.l2_bytes)
        fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total"
        values = output_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"])
        found |= dict(
            zip(
                ("driver", "sm_clock_at_start", "sm_clock_max", "memory_clock", "power_limit", "memory"),
                (value.strip() for value in values.split(",")),
                strict=False,
            )
        )
    return {key: " ".join(value.split()) for key, value in found.items()}


def read_results(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Header and rows of a file of measurements; raises ``ValueError`` where its columns are not this program's."""
    header: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = file.readlines()
    for line in lines:
        if line.startswith("# ") and ": " in line:
            key, value = line[2:].rstrip("\n").split(": ", 1)
            header[key] = value
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path}: columns are not those of this version; write to another file")
    return header, list(reader)


def _write_file(path: Path, header: Mapping[str, str], rows: Sequence[Mapping[str, str]] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in header.items())
        writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def forget_failures(path: Path) -> int:
    """Drop the rows that hold an error, so that their cases are tried again; returns how many there were."""
    if not path.exists():
        return 0
    header, rows = read_results(path)
    kept = [row for row in rows if not row["error"]]
    _write_file(path, header, kept)
    return len(rows) - len(kept)


def done_keys(path: Path, header: Mapping[str, str]) -> set[tuple[str, ...]]:
    """Keys of the cases a file holds; starts the file where there is none (an empty set).

    Raises ``ValueError`` where the file was measured on another device: one file is one machine.
    """
    if not path.exists() or path.stat().st_size == 0:
        _write_file(path, header)
        return set()
    before, rows = read_results(path)
    if before.get("device") != header["device"]:
        raise ValueError(
            f"{path}: was measured on {before.get('device')!r}, this is {header['device']!r}; write to another file"
        )
    return {case_key(row) for row in rows}


def measure_case(case: Case, target: Target, settings: Settings) -> dict[str, str | int]:
    """One row: inputs drawn from a seed of the case itself, the result checked, then timed; raises what went wrong."""
    torch.manual_seed(zlib.crc32("|".join(case_key(case)).encode()))
    prepared = prepare(case, target)
    relative_error = prepared.check()
    before = {} if prepared.before is None else {"before": prepared.before}
    make = prepared.sampler or (lambda: timer.sampler_for(prepared.calls, cuda=target.cuda, **before))
    timing = timer.repeat(
        make(), budget_us=settings.budget_us, min_repeats=settings.min_repeats, max_repeats=settings.max_repeats
    )
    return dict(case) | {
        "us": f"{timing.us:.3f}",
        "us_p10": f"{timing.us_p10:.3f}",
        "us_p90": f"{timing.us_p90:.3f}",
        "n_repeats": timing.n_repeats,
        "timing": timing.timing,
        "library": prepared.library,
        "read_bytes": f"{prepared.read_bytes:.0f}",
        "write_bytes": f"{prepared.write_bytes:.0f}",
        "sm_clock_mhz": "" if timing.sm_clock_mhz is None else f"{timing.sm_clock_mhz:.0f}",
        "relative_error": f"{relative_error:.2e}",
    }


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _tidy(target: Target) -> None:
    """Give memory back when much is kept; raises ``BrokenDeviceError`` when the device no longer answers."""
    if not target.cuda:
        return
    try:
        torch.cuda.synchronize()
        if torch.cuda.memory_reserved() > KEPT_BYTES:
            torch.cuda.empty_cache()
    except Exception as error:
        raise BrokenDeviceError(_message(error)) from error


class Watchdog:
    """Ends a case that never does: where it is not fed in time, ``expire`` is called from a thread of its own."""

    def __init__(self, limit_s: float, expire: Callable[[], None]) -> None:
        self.limit_s, self.expire = limit_s, expire
        self.timer: threading.Timer | None = None

    def feed(self) -> None:
        """The case has ended, or a new one begins."""
        self.rest()
        self.timer = threading.Timer(self.limit_s, self.expire)
        self.timer.daemon = True
        self.timer.start()

    def rest(self) -> None:
        """No case is running."""
        if self.timer is not None:
            self.timer.cancel()


def _row_of(case: Case, target: Target, settings: Settings) -> dict[str, str | int]:
    try:
        return measure_case(case, target, settings)
    except Exception as error:  # whatever a kernel, a library or a compiler raises is this row's result
        return dict(case) | {"error": _message(error)}


def measure_all(
    cases: Sequence[Case],
    path: Path,
    target: Target,
    settings: Settings,
    *,
    header: Mapping[str, str],
    report: Callable[[str], None],
    hung: Callable[[float], None] | None = None,
    agreed: Callable[[Any], Any] = lambda value: value,
) -> Counter[str]:
    """Measure the cases that are not in ``path`` yet and append them.

    Returns how many were measured, failed, skipped (already there) and left (no time).
    A row is on disk before the next case starts. Raises ``BrokenDeviceError`` after the row of the case that broke it;
    ``hung`` is called with the seconds spent when a case has not ended in ``case_seconds``, after its row was written.
    ``agreed`` gives the first process's value where several measure together.
    """
    done = agreed(done_keys(path, header))
    counts: Counter[str] = Counter()
    start_s = time.monotonic()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=list(COLUMNS), lineterminator="\n")

        def finish(i: int, case: Case, row: Mapping[str, str | int], spent_s: float) -> None:
            counts["failed" if "error" in row else "measured"] += 1
            writer.writerow(row)
            file.flush()
            shape = " ".join(f"{key}={value}" for key, value in case.items() if key != "op")
            outcome = row.get("error") or f"{row['us']} us"
            at_s = time.monotonic() - start_s
            report(f"[{i + 1}/{len(cases)} {at_s:.0f}s +{spent_s:.2f}s] {case['op']} {shape}: {outcome}")

        for i, case in enumerate(cases):
            if case_key(case) in done:
                counts["skipped"] += 1
                continue
            if agreed(time.monotonic() - start_s > settings.max_seconds):
                counts["left"] += 1
                continue

            def expire(i: int = i, case: Case = case) -> None:
                error = f"TimeoutError: not done within {settings.case_seconds:g} s"
                finish(i, case, dict(case) | {"error": error}, settings.case_seconds)
                if hung is not None:
                    hung(time.monotonic() - start_s)

            case_start_s, watchdog = time.monotonic(), Watchdog(settings.case_seconds, expire)
            watchdog.feed()
            row = _row_of(case, target, settings)
            watchdog.rest()
            finish(i, case, row, time.monotonic() - case_start_s)
            try:
                _tidy(target)
            except BrokenDeviceError as error:
                raise BrokenDeviceError(f"{error}", time.monotonic() - start_s) from error
    return counts


def _warm_up(target: Target) -> None:
    """Bring clocks and libraries to their working state: half a second of large products."""
    if not target.cuda:
        return
    a = torch.randn((4096, 4096), dtype=torch.bfloat16, device=target.device)
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        for _ in range(10):
            torch.mm(a, a)
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sextant measure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", required=True, help="named lists (all, deepseek-v3 ...) or a CSV of kernel cases")
    parser.add_argument("--out", type=Path, help="CSV to write or to continue")
    parser.add_argument("--ops", default="", help="only these operators, comma-separated, in this order")
    parser.add_argument("--every", type=int, default=1, help="only every n-th case, for a quick look")
    parser.add_argument("--shard", default="1/1", help="i/n: only the i-th of n equal parts")
    parser.add_argument("--order", default="listed", choices=("listed", "spread"), help="spread: any part is a sample")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--ranks", type=int, default=1, help="processes, one GPU each, for collectives")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="start no case after this long")
    parser.add_argument("--case-seconds", type=float, default=60.0, help="give a case up after this long")
    parser.add_argument("--budget-ms", type=float, default=20.0, help="kernel time per case")
    parser.add_argument("--check", action="store_true", help="one small case of each kernel; fail if any is wrong")
    parser.add_argument("--estimate", action="store_true", help="only count the cases and estimate the time")
    parser.add_argument("--note", default="", help="a line for the header")
    parser.add_argument("--retry-failed", action="store_true", help="measure the file's failed cases again")
    return parser


def _cases_of(options: argparse.Namespace) -> list[Case]:
    path = Path(options.cases)
    cases = read_cases(path) if path.suffix == ".csv" else case_set(options.cases)
    cases = select(cases, ops=options.ops, every=options.every, shard=options.shard, order=options.order)
    return smallest_of_each(cases) if options.check else cases


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _again(arguments: Sequence[str], options: argparse.Namespace, spent_s: float) -> None:
    """Go on in a new process with the time that is left; failed cases are not tried again, or it would never end."""
    left = [argument for argument in arguments if argument != "--retry-failed"]
    if math.isfinite(options.max_seconds):
        left += ["--max-seconds", f"{max(0.0, options.max_seconds - spent_s):.0f}"]
    os.execv(sys.executable, [sys.executable, "-m", "sextant.validate.measure", *left])


def measure(options: argparse.Namespace, arguments: Sequence[str], *, agreed=lambda value: value) -> int:
    """Measure what the options say in this process; exit status as of ``main``. Raises ``ValueError``, ``OSError``."""
    settings = Settings(
        budget_us=options.budget_ms * 1e3, max_seconds=options.max_seconds, case_seconds=options.case_seconds
    )
    cases = _cases_of(options)
    target = find_target(options.device)
    header = provenance(target, cases=Path(options.cases).name, settings=settings, note=options.note)
    if options.retry_failed:
        _report(f"{forget_failures(options.out)} failed cases are tried again")
    _warm_up(target)
    if target.cuda:  # a backward pass runs on its forward pass's stream, and only a side stream can be captured
        torch.cuda.set_stream(torch.cuda.Stream())

    def hung(spent_s: float) -> None:
        _report("a case does not end; continuing in a new process")
        _again(arguments, options, spent_s)

    try:
        counts = measure_all(
            cases, options.out, target, settings, header=header, report=_report, agreed=agreed,
            hung=hung if options.ranks == 1 else None,
        )  # fmt: skip
    except BrokenDeviceError as error:
        _report(f"the device answers no more ({error.args[0]}); continuing in a new process")
        _again(arguments, options, float(error.args[1]) if len(error.args) > 1 else 0.0)
        raise
    _report(", ".join(f"{count} {what}" for what, count in counts.items()) or "no cases")
    if options.check:
        return 1 if counts["failed"] else 0
    return 0 if counts["measured"] or counts["skipped"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0 measured, 1 nothing could be measured (--check: something failed), 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["ranks"]:
        from sextant.validate.node import run

        return run.main(arguments[1:])
    if arguments[:1] == ["allocation"]:
        from sextant.validate.allocation import run as training

        return training.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        if options.estimate:
            for line in duration.lines(_cases_of(options), options.budget_ms * 1e3):
                print(line)
            return 0
        if options.out is None:
            raise ValueError("--out FILE.csv says where the rows go")
        if options.ranks > 1:
            from sextant.validate import ranks

            return ranks.run(options, arguments)
        return measure(options, arguments)
    except (ValueError, OSError) as error:
        _report(f"error: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
