"""The event engine, on simpy: it plays tasks and schedules with the operator times of the analytic engine.

Only waiting is added. An event is a layer's block, a pipeline chunk or an engine step, never a kernel of every token.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import simpy

from sextant.simulator.overlap import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One piece of work as it ran: ``track`` is a rank, ``stream`` one of its streams."""

    name: str
    track: str
    stream: str
    start_s: float
    end_s: float
    kind: str = ""


def simulate_tasks(tasks: Sequence[Task]) -> list[Span]:
    """Play ``tasks`` (scalar seconds) on their FIFO streams; spans in issue order."""
    env = simpy.Environment()
    ended = {task.name: env.event() for task in tasks}
    wanted = {task.name: env.event() for task in tasks if task.waited != 1.0}
    spans: dict[str, Span] = {}
    busy = {task.beside: _Busy(env) for task in tasks if task.beside}

    def stream(name: str) -> Generator[simpy.Event, object, None]:
        for task in tasks:
            if task.stream != name:
                continue
            for before in task.after:
                if not ended[before].processed:
                    if before in wanted and not wanted[before].triggered:
                        wanted[before].succeed()
                    yield ended[before]
            start = env.now
            if name in busy:
                busy[name].change(True)
            if task.beside:
                yield from _beside(env, task, busy[task.beside])
            elif task.name in wanted:
                yield from _awaited(env, task, wanted[task.name])
            else:
                yield env.timeout(float(task.seconds))
            if name in busy:
                busy[name].change(False)
            spans[task.name] = Span(name=task.name, track="device", stream=name, start_s=start, end_s=env.now)
            ended[task.name].succeed()

    for name in dict.fromkeys(task.stream for task in tasks):
        env.process(stream(name))
    env.run()
    stuck = [task.name for task in tasks if task.name not in spans]
    assert not stuck, f"tasks wait for each other: {', '.join(stuck[:5])}"
    return [spans[task.name] for task in tasks]


class _Busy:
    """Whether a stream works, and an event that tells when this changes."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self.now, self.changed = env, False, env.event()

    def change(self, now: bool) -> None:
        self.now, event, self.changed = now, self.changed, self.env.event()
        event.succeed()


def _beside(env: simpy.Environment, task: Task, other: _Busy) -> Generator[simpy.Event, object, None]:
    """Work on ``task``, more slowly whenever ``other`` works."""
    left = float(task.seconds)
    while True:
        pace = 1.0 + float(task.slowdown) if other.now else 1.0
        start, done = env.now, env.timeout(left * pace)
        yield done | other.changed
        if done.processed:
            return
        left = max(left - (env.now - start) / pace, 0.0)


def _awaited(env: simpy.Environment, task: Task, wanted: simpy.Event) -> Generator[simpy.Event, object, None]:
    """Work on ``task``, at another pace from when it is ``wanted`` on."""
    left = float(task.seconds)
    if not wanted.triggered:
        start, done = env.now, env.timeout(left)
        yield done | wanted
        if done.processed:
            return
        left = max(left - (env.now - start), 0.0)
    yield env.timeout(left * float(task.waited))


def makespan_s(spans: Sequence[Span]) -> float:
    """When the last span ends."""
    return max((span.end_s for span in spans), default=0.0)
