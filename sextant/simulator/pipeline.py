"""A pipeline on the event engine: every rank executes its schedule and waits for what other ranks send.

``finish`` is the same as a recurrence over arrays of points or replicas, without queues of messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import simpy
from numpy.typing import NDArray

from sextant.simulator.des import Span
from sextant.simulator.recurrence import ChunkSeconds, Finish, finish
from sextant.simulator.schedule import KINDS, Output, Ratio, Work, n_stages, programs

__all__ = ["ChunkSeconds", "Finish", "PipelineRun", "finish", "recorded", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """``step_s`` from the first chunk to the end of the last; per rank the seconds by instruction kind, and idle.

    ``spans`` are the chunks, rank by rank in the order of its program; ``messages`` what ranks sent, on the stream
    "communication" of the sender, from the moment both ports were free.
    """

    step_s: float
    busy_s: tuple[Mapping[str, float], ...]
    idle_s: tuple[float, ...]
    spans: tuple[Span, ...]
    messages: tuple[Span, ...] = ()


def simulate(
    schedule: str, chunks: ChunkSeconds, n_ranks: int, n_micro_batches: int, *, virtual_stages: int = 1,
    send_s: float = 0.0, queue: bool = True, factors: Sequence[NDArray[np.float64]] = (),
) -> PipelineRun:  # fmt: skip
    """Run one step. A forward chunk needs that of the stage before, a backward chunk that of the stage after; stages of
    one rank need no message.

    A message holds the sending port of one rank and the receiving port of another for ``send_s``; each port serves one
    message at a time, first come, first served, and no message keeps a rank from computing. It leaves at the end of its
    chunk, less its ``lead``. Without ``queue`` ports serve any number of messages at once. ``factors[rank]``, of shape
    (n_instructions,), lengthen the instructions.
    """
    ratio = chunks.ratio() if schedule == "zbv" else (1.0, 1.0, 1.0)
    prepared = _prepared(schedule, n_ranks, n_micro_batches, virtual_stages, ratio)
    lists = [[each.work for each in program] for program in prepared]
    step = _Step(prepared, send_s, queue)
    for rank in range(n_ranks):
        seconds = [float(chunks.of(work)) for work in lists[rank]]
        if factors:
            seconds = [s * float(f) for s, f in zip(seconds, factors[rank], strict=True)]
        leads = [{key: float(chunks.lead(work, key[0])) for key in work.outputs} for work in lists[rank]]
        step.env.process(step.compute(rank, seconds, leads))
    step.env.run()
    for rank, program in enumerate(lists):
        stopped = len(step.spans[rank])
        assert stopped == len(program), f"rank {rank} waits for ever before {program[stopped]}"
    return _summary(step.spans, step.messages)


@dataclass(frozen=True, slots=True)
class _Instruction:
    """``inputs``: what it waits for; ``sends``: what others wait for, and which rank does."""

    work: Work
    inputs: tuple[Output, ...]
    sends: tuple[tuple[Output, int], ...]


@lru_cache(maxsize=64)
def _prepared(
    schedule: str, n_ranks: int, n_micro_batches: int, virtual_stages: int, ratio: Ratio
) -> tuple[tuple[_Instruction, ...], ...]:
    """The instructions of every rank, with who needs what they make."""
    lists = programs(schedule, n_ranks, n_micro_batches, virtual_stages, ratio)
    stages = n_stages(schedule, n_ranks, virtual_stages)
    needs = [[work.inputs(stages) for work in program] for program in lists]
    wanted = {key: rank for rank, program in enumerate(needs) for inputs in program for key in inputs}
    return tuple(
        tuple(
            _Instruction(work, inputs, tuple((key, wanted[key]) for key in work.outputs if key in wanted))
            for work, inputs in zip(program, needs[rank], strict=True)
        )
        for rank, program in enumerate(lists)
    )


@dataclass(slots=True)
class _Port:
    """The sending port of a rank: what waits there, and whether it is at work."""

    waiting: deque[tuple[Output, int]] = field(default_factory=deque)
    sending: bool = False


class _Step:
    """The state of one simulated step: what has arrived, who waits for it, which ports are taken until when."""

    def __init__(self, lists: Sequence[Sequence[_Instruction]], send_s: float, queue: bool) -> None:
        self.env = simpy.Environment()
        self.lists, self.send_s, self.queue = lists, send_s, queue
        self.arrived: set[Output] = set()
        self.waits: dict[Output, simpy.Event] = {}
        self.ports = [_Port() for _ in lists]
        self.receiving = [0.0] * len(lists)
        self.spans: list[list[Span]] = [[] for _ in lists]
        self.messages: list[Span] = []

    def compute(
        self, rank: int, seconds: Sequence[float], leads: Sequence[Mapping[Output, float]]
    ) -> Generator[simpy.Event, object, None]:
        """Execute the rank's list: wait for the inputs of an instruction, take its time, send what it made."""
        env, spans = self.env, self.spans[rank]
        for each, took, ahead in zip(self.lists[rank], seconds, leads, strict=True):
            for key in each.inputs:
                if key not in self.arrived:
                    self.waits[key] = env.event()
                    yield self.waits[key]
            start = env.now
            early = [(ahead[key], key, to) for key, to in each.sends if to != rank and ahead[key] > 0]
            for lead, key, receiver in sorted(early, key=lambda message: -message[0]):
                yield env.timeout(max(start + took - lead - env.now, 0.0))
                self._made(key, rank, receiver)
            yield env.timeout(max(start + took - env.now, 0.0) if early else took)
            spans.append(_span(each.work, rank, start, env.now))
            sent = {key for _, key, _ in early}
            for key, receiver in each.sends:
                if key not in sent:
                    self._made(key, rank, receiver)

    def _made(self, key: Output, rank: int, receiver: int) -> None:
        """Hand an output over: at once on the same rank or for free, else through the ports."""
        if receiver == rank or self.send_s <= 0:
            self._deliver(key)
        elif not self.queue:
            self.env.process(self._carry(key, rank, receiver, self.env.now))
        else:
            port = self.ports[rank]
            port.waiting.append((key, receiver))
            if not port.sending:
                port.sending = True
                self.env.process(self._send(rank))

    def _send(self, rank: int) -> Generator[simpy.Event, object, None]:
        """Empty the sending port's queue; a receiver serves messages in the order in which they come to the front."""
        port = self.ports[rank]
        while port.waiting:
            key, receiver = port.waiting.popleft()
            start = max(self.env.now, self.receiving[receiver])
            self.receiving[receiver] = start + self.send_s
            yield from self._carry(key, rank, receiver, start)
        port.sending = False

    def _carry(self, key: Output, rank: int, receiver: int, start: float) -> Generator[simpy.Event, object, None]:
        yield self.env.timeout(start + self.send_s - self.env.now)
        name = f"{key[0]}{key[1]} to rank {receiver:02d}"
        self.messages.append(
            Span(
                name=name, track=f"rank {rank:02d}", stream="communication", start_s=start, end_s=self.env.now,
                kind="send",
            )
        )  # fmt: skip
        self._deliver(key)

    def _deliver(self, key: Output) -> None:
        self.arrived.add(key)
        if key in self.waits:
            self.waits.pop(key).succeed()


def recorded(
    schedule: str, chunks: ChunkSeconds, n_ranks: int, n_micro_batches: int, times: Finish, replica: int = 0, *,
    virtual_stages: int = 1,
) -> PipelineRun:  # fmt: skip
    """One replica of what ``finish`` recorded, as the event engine would tell it. Messages are not recorded."""
    ratio = chunks.ratio() if schedule == "zbv" else (1.0, 1.0, 1.0)
    lists = programs(schedule, n_ranks, n_micro_batches, virtual_stages, ratio)
    spans = [
        [
            _span(work, rank, _at(start, replica), _at(end, replica))
            for work, start, end in zip(lists[rank], times.starts_s[rank], times.ends_s[rank], strict=True)
        ]
        for rank in range(n_ranks)
    ]
    return _summary(spans, [])


def _at(value: float | NDArray[np.float64], replica: int) -> float:
    return float(value if np.ndim(value) == 0 else np.asarray(value)[replica])


def _span(work: Work, rank: int, start: float, end: float) -> Span:
    numbers = [f"F{work.f}" if work.f >= 0 else "", f"B{work.b}" if work.b >= 0 and work.kind != "W" else ""]
    name = "&".join(n for n in numbers if n) or f"W{work.b}"
    return Span(name=name, track=f"rank {rank:02d}", stream="compute", start_s=start, end_s=end, kind=work.kind)


def _summary(spans: Sequence[Sequence[Span]], messages: Sequence[Span]) -> PipelineRun:
    step = max(rank[-1].end_s for rank in spans)
    busy: tuple[dict[str, float], ...] = tuple(dict[str, float](dict.fromkeys(KINDS, 0.0)) for _ in spans)
    for times, rank in zip(busy, spans, strict=True):
        for span in rank:
            times[span.kind] += span.end_s - span.start_s
    idle = tuple(step - sum(times.values()) for times in busy)
    return PipelineRun(
        step_s=step, busy_s=busy, idle_s=idle, spans=tuple(s for rank in spans for s in rank),
        messages=tuple(sorted(messages, key=lambda s: (s.start_s, s.track, s.name))),
    )  # fmt: skip
