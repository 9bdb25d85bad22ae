"""What one of the processes does: it goes through the cases of every family in step with the others.

A case that fails everywhere is a row with an error, and the next one follows. Where only some processes fail, the
others wait inside a library; the parent (``run``) sees that nothing more is reported, ends them all and starts anew.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sextant.validate.node.processes import Ranks, joined
from sextant.validate.node.table import Table
from sextant.validate.node.timing import meet

Case = dict[str, str | int]

#: Families in order, and the share of the time that each may take in the first round; the second takes what is left.
FAMILIES: Mapping[str, float] = {
    "collectives": 0.30, "experts": 0.20, "beside": 0.20, "pipeline": 0.14, "tensor_parallel": 0.06, "host_memory": 0.10
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all processes of one start share; ``begun_s`` is the parent's monotonic clock, common to the host."""

    n_gpus: int
    port: int
    folder: Path
    state: Path
    cuda: bool
    small: bool
    graphs: bool
    families: tuple[str, ...]
    done: Mapping[str, frozenset[tuple[str, ...]]]
    begun_s: float
    max_seconds: float


def family(name: str) -> Any:
    """The module that measures a family."""
    return importlib.import_module(f"sextant.validate.node.{name}")


def table(name: str, folder: Path) -> Table:
    """The file of a family."""
    module = family(name)
    return Table(path=folder / f"{name}.csv", case_columns=module.CASE_COLUMNS, result_columns=module.RESULT_COLUMNS)


def report(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _rounds(job: Job) -> Iterator[tuple[str, float]]:
    """Families, and when each has to stop, in seconds of the parent's clock."""
    until, total = job.begun_s, sum(FAMILIES[name] for name in job.families)
    for name in job.families:
        until += job.max_seconds * FAMILIES[name] / total
        yield name, until
    for name in job.families:
        yield name, job.begun_s + job.max_seconds


def _note(job: Job, ranks: Ranks, name: str, case: Case | None) -> None:
    """Tell the parent what is being measured; that the file changes tells it that somebody lives."""
    if ranks.rank == 0:
        fresh = job.state.with_suffix(".new")
        fresh.write_text(json.dumps({"family": name, "case": case, "graphs": ranks.graphs}), encoding="utf-8")
        fresh.replace(job.state)


def _attempt(module: Any, case: Case, ranks: Ranks, key: tuple[str, ...]) -> Case:
    torch.manual_seed(zlib.crc32("|".join(key).encode()) + ranks.rank)
    row, error = {}, ""
    try:
        row = module.measure(case, ranks)
    except Exception as raised:  # whatever a library raises is this row's result
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"[:300]
    errors = [found for found in ranks.gathered(error) if found]
    return {**case, "error": errors[0]} if errors else {**case, **row}


def _alive(ranks: Ranks) -> bool:
    """Whether all devices still answer."""
    try:
        ranks.synchronize()
        if ranks.target.cuda and torch.cuda.memory_reserved() > 40 * 2**30:
            torch.cuda.empty_cache()
        fine = True
    except Exception:  # a device after an illegal access answers nothing any more in this process
        fine = False
    return all(ranks.gathered(fine))


def _cases(job: Job, ranks: Ranks, name: str, until_s: float, done: set[tuple[str, ...]]) -> bool:
    """Measure a family's cases that are not done; False when the processes must be started anew."""
    module, rows = family(name), table(name, job.folder)
    todo = [case for case in module.cases(job.n_gpus, job.small) if rows.key(case) not in done]
    for i, case in enumerate(todo):
        if ranks.first(time.monotonic() > until_s):
            break
        _note(job, ranks, name, case)
        start_s = time.monotonic()
        row = _attempt(module, case, ranks, rows.key(case))
        done.add(rows.key(case))
        if ranks.rank == 0:
            rows.append(row)
            _note(job, ranks, name, None)
            now_s = time.monotonic()
            shape = " ".join(str(value) for value in case.values() if value != "")
            outcome = row.get("error") or " ".join(str(row.get(c, "")) for c in module.RESULT_COLUMNS[:4])
            at = f"{now_s - job.begun_s:.0f}s +{now_s - start_s:.2f}s {i + 1}/{len(todo)}"
            report(f"[{at}] {name} {shape}: {outcome}")
        if not _alive(ranks):
            return False
    ranks.kept.clear()
    gc.collect()
    if ranks.target.cuda:
        torch.cuda.empty_cache()
    return True


def _warm(ranks: Ranks) -> None:
    """Bring clocks and libraries to their working state."""
    if not ranks.target.cuda:
        return
    a = torch.randn((4096, 4096), dtype=torch.bfloat16, device=ranks.device)
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        for _ in range(10):
            torch.mm(a, a)
        torch.cuda.synchronize()
    meet(ranks)
    torch.cuda.synchronize()


def process(rank: int, job: Job) -> None:
    """Everything one process does; ends it with exit status 0, or 3 where a device answers no more."""
    torch.set_num_threads(1 if not job.cuda else 4)
    ranks = joined(rank, job.n_gpus, job.port, cuda=job.cuda, graphs=job.graphs)
    _warm(ranks)
    done = {name: set(job.done[name]) for name in job.families}
    fine = True
    for name, until_s in _rounds(job):
        fine = fine and _cases(job, ranks, name, until_s, done[name])
    ranks.gathered(None)
    sys.stderr.flush()
    time.sleep(0.3)  # the others may still read what this process has sent
    # Without destroying the groups: communicators whose graphs were captured may wait for each other for ever.
    os._exit(0 if fine else 3)
