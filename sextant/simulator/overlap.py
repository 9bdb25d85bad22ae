"""Overlap of streams as a max-plus recurrence: FIFO streams, tasks that wait for other tasks.

A task starts when its stream is free and everything in ``after`` has finished. Two numpy operations per task, for
arrays of design points at once. ``des.simulate_tasks`` plays the same tasks on the event engine and must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sextant.simulator.types import Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """``seconds`` of work on ``stream``, issued in list order, after the tasks named in ``after``.

    While tasks run on the stream ``beside``, it takes ``1 + slowdown`` times as long. Once another task has come to
    wait for it, what is left of it takes the share ``waited`` of its seconds: what ran beside it rests.
    """

    name: str
    stream: str
    seconds: Num
    after: tuple[str, ...] = ()
    beside: str = ""
    slowdown: Num = 0.0
    waited: Num = 1.0


def finish_times(tasks: Sequence[Task]) -> dict[str, Num]:
    """When each task ends, in seconds from the start; arrays of shape (n_points,) where any input is one.

    Tasks must be listed in issue order: a KeyError means that one waits for a task not yet listed. What runs beside a
    task must be listed before it; tasks with a share ``waited`` are waited for in the order of their stream, and not
    beside others themselves.
    """
    done: dict[str, Num] = {}
    begun: dict[str, Num] = {}
    free: dict[str, Num] = {}
    lines: dict[str, list[Task]] = {}
    faster = {task.name: task for task in tasks if np.any(np.asarray(task.waited) != 1.0)}
    for task in tasks:
        start = free.get(task.stream, 0.0)
        for name in task.after:
            if name in faster:
                stream = faster[name].stream
                free[stream] = _hasten(faster[name], start, lines[stream], begun, done)
            start = np.maximum(start, done[name])
        if task.beside:
            busy = [(begun[other.name], done[other.name]) for other in lines.get(task.beside, ())]
            end = _slowed_end(start, task, busy)
        else:
            end = start + task.seconds
        begun[task.name] = start
        done[task.name] = free[task.stream] = end
        lines.setdefault(task.stream, []).append(task)
    return done


def _hasten(task: Task, now: Num, line: Sequence[Task], begun: dict[str, Num], done: dict[str, Num]) -> Num:
    """Moves the end of ``task``, waited for from ``now`` on, and all that is behind it in its ``line``; when the line
    ends."""
    left = np.maximum(done[task.name] - np.maximum(now, begun[task.name]), 0.0)
    done[task.name] = done[task.name] - left * (1.0 - task.waited)
    names = [each.name for each in line]
    for before, behind in pairwise(line[names.index(task.name) :]):
        start = done[before.name]
        for name in behind.after:
            start = np.maximum(start, done[name])
        begun[behind.name], done[behind.name] = start, start + behind.seconds
    return done[names[-1]]


def _slowed_end(start: Num, task: Task, busy: Sequence[tuple[Num, Num]]) -> Num:
    """When a task from ``start`` on ends that others slow down in the intervals ``busy``, one after the other."""
    now, left = start, task.seconds
    for begin, end in busy:
        alone = np.minimum(left, np.maximum(begin - now, 0.0))
        now, left = now + alone, left - alone
        beside = np.minimum(left, np.maximum(end - np.maximum(now, begin), 0.0) / (1.0 + task.slowdown))
        now, left = now + beside * (1.0 + task.slowdown), left - beside
    return now + left


def makespan_s(tasks: Sequence[Task]) -> Num:
    """Seconds until the last task has ended; 0 without tasks."""
    last: dict[str, Num] = {}
    done = finish_times(tasks)
    for task in tasks:
        last[task.stream] = done[task.name]
    total: Num = 0.0
    for end in last.values():
        total = np.maximum(total, end)
    return total


def busy_s(tasks: Sequence[Task], stream: str) -> Num:
    """Seconds of work on ``stream``."""
    return sum((task.seconds for task in tasks if task.stream == stream), 0.0)


def exposed_s(message_s: Num, compute_s: Num, sm_share: Num) -> Num:
    """Seconds that a message adds to the operator beside it, while its kernel takes ``sm_share`` of the SMs.

    The operator then loses that share of its speed. Where the message ends first it adds ``sm_share`` of its own time;
    where the operator ends first, what is left of the message.
    """
    return np.maximum(message_s - compute_s, sm_share * message_s)
