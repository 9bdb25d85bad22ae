"""Sweeps and searches over several processes: groups of points are answered side by side, and joined in their order."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from sextant.simulator.errors import InputError
from sextant.simulator.result import join
from sextant.simulator.types import Result
from sextant.studies import answer as answering
from sextant.studies import solve
from sextant.studies.scenario import Question

_MOST = 1024


def count(text: str) -> int:
    """The number of processes that ``--workers`` asks for; InputError says what it may be."""
    if re.match(r"[a-z]+://", text):
        raise InputError(f"--workers {text}: dask.distributed is not supported yet; write a number of processes")
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= _MOST:
        raise InputError(f"--workers {text}: expected a number of processes from 1 to {_MOST}; write for example 4")
    return int(text)


def answer(asked: Question, n_workers: int, progress: Callable[[int], None] = lambda n: None) -> Result:
    """The result that ``studies.answer`` gives, computed by ``n_workers`` processes.

    A group is the points that share one structure (at most ``axes.CHUNK`` of them), so a sweep with a single group
    gains nothing; a study of its own has one process. The groups do not depend on ``n_workers``, and neither does the
    result.
    """
    if n_workers == 1 or asked.study:
        return answering.answer(asked, progress)
    groups = list(solve.parts(asked, answering.structural(asked.scenario)))
    if len(groups) == 1:
        return answering.answer(asked, progress)
    results: list[Result] = []
    done = 0
    for group, found in zip(groups, shared(_evaluate, groups, n_workers), strict=True):
        results.append(found)
        done += len(group.index)
        progress(done)
    return join(results, [group.index for group in groups])


def shared(work: Callable[[Any], Any], items: Sequence[Any], n_workers: int) -> Iterator[Any]:
    """``work`` of every item, in their order, by ``n_workers`` processes; in this one where a single one is enough.

    ``work`` is a function of a module; items and results are pickled. InputError if a process dies.
    """
    n = min(n_workers, len(items))
    if n <= 1:
        yield from map(work, items)
        return
    # A fresh interpreter per worker: a fork copies locks that other threads may hold.
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))
    try:
        with _interrupts_held():
            results = pool.map(work, items)
        yield from results
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            remedy = "perhaps for lack of memory; use fewer"
            raise InputError(f"--workers {n_workers}: a worker process died, {remedy}") from None
        raise


def _evaluate(group: solve.Part) -> Result:
    return solve.answered(group, answering.evaluate)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in the block never see an interrupt (Ctrl-C reaches them too): the parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
