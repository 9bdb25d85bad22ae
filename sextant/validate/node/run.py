"""Measure what the GPUs of one host exchange: ``python -m sextant.validate.node.run --gpus 2 --out FOLDER``.

Starts one process per GPU and watches them. Every family of rows is a file in FOLDER, written row by row: the same
command continues it. A case during which the processes die or fall silent becomes a row that says so, and new processes
go on with the next; after a failure with captured graphs they go on without. Progress goes to stderr. Needs torch,
triton, numpy, scipy and yaml; without GPUs (``--device cpu``) it runs through gloo, with ``--small`` in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sextant.validate import measure
from sextant.validate.node import work
from sextant.validate.node.processes import ENVIRONMENT

#: Starts in all, and failures of one family after which its other cases are left.
MAX_STARTS, MAX_FAILURES = 10, 3
#: Seconds of silence: while the processes start, and more per case.
START_SECONDS = 120.0


def provenance(cuda: bool, n_gpus: int, command: str, note: str) -> dict[str, str]:
    """The header: what ``measure`` says of a device, and of the host its GPUs, links and NCCL."""
    target = measure.find_target("cuda" if cuda else "cpu")
    header = measure.provenance(target, cases="", settings=measure.Settings(), note=note)
    header["device"] = f"{n_gpus} x {header['device']}"
    header["command"] = command
    header["timing"] = (
        "us is the median over samples of the slowest process; graph:N = N calls in a replayed graph, events:N = N "
        "calls launched one by one, host:N = host clock; devices meet in a small collective before each sample"
    )
    del header["traffic"]
    if cuda:
        header["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
        header["links"] = _plain(measure.output_of(["nvidia-smi", "topo", "-m"]))
        header["nvlink"] = _plain(measure.output_of(["nvidia-smi", "nvlink", "--status", "-i", "0"]))
        settings = {k: v for k, v in os.environ.items() if k.startswith("NCCL_")}
        header["nccl_environment"] = " ".join(f"{k}={v}" for k, v in sorted(settings.items()))
    header["cpus"] = str(os.cpu_count())
    return header


def _plain(text: str) -> str:
    """One line, without colours and the serial numbers of devices."""
    return re.sub(r"\x1b\[[0-9;]*m| \(UUID: [^)]*\)", "", " ".join(text.split()))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _watch(processes: Sequence[Any], state: Path, case_seconds: float) -> str:
    """Wait for the processes; "" when all ended well, else what went wrong. None is alive afterwards."""
    alive_s, stamp, limit_s = time.monotonic(), state.stat().st_mtime_ns, START_SECONDS
    problem = ""
    while any(process.is_alive() for process in processes) and not problem:
        time.sleep(0.05)
        now = state.stat().st_mtime_ns
        if now != stamp:
            alive_s, stamp, limit_s = time.monotonic(), now, case_seconds
        failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
        if failed:
            problem = f"a process ended with exit status {failed[0]}"
        elif time.monotonic() - alive_s > limit_s:
            problem = f"TimeoutError: nothing heard for {limit_s:g} s"
    failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
    for process in processes:
        process.kill()
        process.join(20)
    return problem or (f"a process ended with exit status {failed[0]}" if failed else "")


def _in_flight(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(state.read_text(encoding="utf-8") or "{}")
    return found


def measure_all(options: argparse.Namespace, header: Mapping[str, str], *, cuda: bool) -> int:
    """Start processes until all cases have a row, the time is over or too much failed; how many failures there were."""
    begun_s, graphs, failures = time.monotonic(), not options.no_graphs, dict.fromkeys(options.families, 0)
    tables = {name: work.table(name, options.out) for name in options.families}
    for table in tables.values():
        table.start(header, retry=options.retry_failed)
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.json"
        for _ in range(MAX_STARTS):
            families = tuple(name for name in options.families if failures[name] < MAX_FAILURES)
            if not families:
                break
            state.write_text("{}", encoding="utf-8")
            job = work.Job(
                n_gpus=options.gpus, port=_free_port(), folder=options.out, state=state, cuda=cuda,
                small=options.small, graphs=graphs, families=families, begun_s=begun_s,
                max_seconds=options.max_seconds,
                done={name: frozenset(tables[name].start(header, retry=False)) for name in families},
            )  # fmt: skip
            processes = [
                context.Process(target=work.process, args=(rank, job), daemon=True) for rank in range(options.gpus)
            ]
            for process in processes:
                process.start()
            problem = _watch(processes, state, options.case_seconds)
            if not problem:
                break
            found = _in_flight(state)
            if not found:
                raise ValueError(f"the processes do not start: {problem}")
            work.report(f"{problem}, during {found}; going on in new processes")
            if found.get("case") is not None:
                tables[found["family"]].append({**found["case"], "error": problem})
            failures[found["family"]] += 1
            graphs = graphs and not found.get("graphs", False)
            if time.monotonic() - begun_s > options.max_seconds:
                break
    return sum(failures.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sextant measure ranks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpus", type=int, required=True, help="processes, one GPU each")
    parser.add_argument("--out", type=Path, required=True, help="folder of the files to write or to continue")
    parser.add_argument("--families", default=",".join(work.FAMILIES), help="which, comma-separated, in this order")
    parser.add_argument("--max-seconds", type=float, default=210.0, help="start no case after this long")
    parser.add_argument("--case-seconds", type=float, default=40.0, help="give a case up after this long")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="few small cases: a check that everything runs")
    parser.add_argument("--no-graphs", action="store_true", help="launch every call; capture none into a graph")
    parser.add_argument("--retry-failed", action="store_true", help="measure the files' failed cases again")
    parser.add_argument("--note", default="", help="a line for the header")
    return parser


def _checked(options: argparse.Namespace) -> bool:
    """Whether GPUs are measured; ``ValueError`` for options that cannot be had."""
    options.families = tuple(name.strip() for name in options.families.split(",") if name.strip())
    unknown = [name for name in options.families if name not in work.FAMILIES]
    if unknown or not options.families:
        raise ValueError(f"--families: one or more of {', '.join(work.FAMILIES)}, got {', '.join(unknown) or 'none'}")
    cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    most = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if not 2 <= options.gpus <= max(most, 2):
        raise ValueError(f"--gpus: from 2 to {max(most, 2)} here, got {options.gpus}")
    if not torch.distributed.is_available():
        raise ValueError("torch.distributed is not in this build of torch; install one that has it")
    return cuda


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0 when nothing failed in a process, 1 when some did, 2 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    os.environ |= ENVIRONMENT
    try:
        cuda = _checked(options)
        command = " ".join(["python -m sextant.validate.node.run", *arguments])
        header = provenance(cuda, options.gpus, command, options.note)
        n_failures = measure_all(options, header, cuda=cuda)
    except (ValueError, OSError) as error:
        work.report(f"error: {error}")
        return 2
    for name in options.families:
        rows = work.table(name, options.out).read()[1]
        work.report(f"{name}: {len(rows)} rows, {sum(bool(row['error']) for row in rows)} with an error")
    return 1 if n_failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
