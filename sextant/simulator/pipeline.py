"""A pipeline on the event engine: every rank executes its schedule and waits for what other ranks send."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import simpy

from sextant.simulator.des import Span
from sextant.simulator.schedule import KINDS, Output, Work, instructions


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSeconds:
    """Seconds of every stage's chunks: forward, input gradient, weight gradient, and overlapped (forward stage,
    backward stage) pairs."""

    forward: Sequence[float]
    backward_input: Sequence[float]
    backward_weight: Sequence[float]
    pair: Mapping[tuple[int, int], float]

    def of(self, work: Work) -> float:
        """Seconds that an instruction holds its rank."""
        if work.kind == "FB":
            return self.pair[work.f_stage, work.b_stage]
        if work.kind == "F":
            return self.forward[work.f_stage]
        if work.kind == "W":
            return self.backward_weight[work.b_stage]
        full = self.backward_weight[work.b_stage] if work.kind == "BW" else 0.0
        return self.backward_input[work.b_stage] + full


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """``step_s`` from the first chunk to the end of the last; per rank the seconds by instruction kind, and idle."""

    step_s: float
    busy_s: tuple[Mapping[str, float], ...]
    idle_s: tuple[float, ...]
    spans: tuple[Span, ...]


def simulate(
    schedule: str, chunks: ChunkSeconds, n_ranks: int, n_micro_batches: int, *, virtual_stages: int = 1,
    send_s: float = 0.0,
) -> PipelineRun:  # fmt: skip
    """Run one step. A forward chunk needs that of the stage before, a backward chunk that of the stage after,
    ``send_s`` after it ended (nothing between stages of one rank); messages keep no rank busy."""
    env = simpy.Environment()
    n_stages = n_ranks * virtual_stages
    programs = [instructions(schedule, r, n_ranks, n_micro_batches, virtual_stages) for r in range(n_ranks)]
    owner = {key: rank for rank, program in enumerate(programs) for work in program for key in work.outputs}
    done = {key: env.event() for key in owner}
    ready: dict[Output, float] = {}
    spans: list[list[Span]] = [[] for _ in programs]

    def run(rank: int) -> Generator[simpy.Event, object, None]:
        for work in programs[rank]:
            for key in work.inputs(n_stages):
                if key not in ready:
                    yield done[key]
                arrival = ready[key] + (0.0 if owner[key] == rank else send_s)
                if env.now < arrival:
                    yield env.timeout(arrival - env.now)
            start = env.now
            yield env.timeout(chunks.of(work))
            for key in work.outputs:
                ready[key] = env.now
                done[key].succeed()
            spans[rank].append(_span(work, rank, start, env.now))

    for rank in range(n_ranks):
        env.process(run(rank))
    env.run()
    for rank, program in enumerate(programs):
        assert len(spans[rank]) == len(program), f"rank {rank} waits for ever before {program[len(spans[rank])]}"
    return _summary(spans)


def _span(work: Work, rank: int, start: float, end: float) -> Span:
    numbers = [f"F{work.f}" if work.f >= 0 else "", f"B{work.b}" if work.b >= 0 and work.kind != "W" else ""]
    name = "&".join(n for n in numbers if n) or f"W{work.b}"
    return Span(name=name, track=f"rank {rank:02d}", stream="compute", start_s=start, end_s=end, kind=work.kind)


def _summary(spans: Sequence[Sequence[Span]]) -> PipelineRun:
    step = max(rank[-1].end_s for rank in spans)
    busy = tuple({k: sum(s.end_s - s.start_s for s in rank if s.kind == k) for k in KINDS} for rank in spans)
    idle = tuple(step - sum(times.values()) for times in busy)
    return PipelineRun(step_s=step, busy_s=busy, idle_s=idle, spans=tuple(s for rank in spans for s in rank))
