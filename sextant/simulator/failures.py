"""Work lost to failures: how often to save, what share of the time is worth something, and the same by simulation.

Failures are a Poisson process of mean distance ``mtbf_s``; each throws the job back to its last checkpoint that was
written out, and costs ``restart_s``, during which it may fail again. Every ``interval_s`` of work it stands still for
``cost_s`` to save; what is then still on its way to safe storage arrives ``behind_s`` later, beside further work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sextant.simulator.types import Num


def young_interval_s(cost_s: Num, mtbf_s: Num) -> Num:
    """Seconds of work between checkpoints, to first order: sqrt(2 C M).

    J. W. Young, A first order approximation to the optimum checkpoint interval, 1974.
    """
    return np.sqrt(2.0 * cost_s * mtbf_s)


def daly_interval_s(cost_s: Num, mtbf_s: Num) -> Num:
    """Seconds of work between checkpoints, to higher order; the distance of failures itself where saving takes twice as
    long as that or more.

    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, 2006.
    """
    share = np.sqrt(cost_s / (2.0 * mtbf_s))
    series = np.sqrt(2.0 * cost_s * mtbf_s) * (1.0 + share / 3.0 + np.square(share) / 9.0) - cost_s
    return np.where(np.asarray(cost_s) < 2.0 * np.asarray(mtbf_s), series, mtbf_s)[()]


def goodput(interval_s: Num, cost_s: Num, mtbf_s: Num, restart_s: Num = 0.0, behind_s: Num = 0.0) -> Num:
    """Share of the time that is lasting work, between 0 and 1: exact for Poisson failures and a long job.

    From one failure to the next takes M on average and keeps one interval for every checkpoint that is safe by then:
    the n-th is after restart + n (interval + cost) + behind. The sum over n of the chances to come so far is geometric,
    and gives Daly's complete cost function, with what is written behind added to the restart.
    """
    period_s = interval_s + cost_s
    first = np.exp(-(restart_s + period_s + behind_s) / mtbf_s)
    return interval_s * first / (mtbf_s * -np.expm1(-period_s / mtbf_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """The share of lasting work that a simulation found, and the standard error of that share."""

    goodput: float
    standard_error: float


def simulate(
    interval_s: float, cost_s: float, mtbf_s: float, restart_s: float = 0.0, behind_s: float = 0.0, *,
    n_failures: int = 1000, seed: int = 0,
) -> Simulated:  # fmt: skip
    """Play a job through ``n_failures`` failures on the event engine; the same seed gives the same answer."""
    import simpy

    environment = simpy.Environment()
    distances = np.random.default_rng(seed).exponential(mtbf_s, n_failures).tolist()
    kept: list[float] = []

    def write(saved: list[float]) -> Iterator[Any]:
        yield environment.timeout(behind_s)
        saved[0] += interval_s

    def job(saved: list[float]) -> Iterator[Any]:
        yield environment.timeout(restart_s)
        while True:
            yield environment.timeout(interval_s)
            yield environment.timeout(cost_s)
            environment.process(write(saved))

    def machine() -> Iterator[Any]:
        for distance in distances:
            # Each life has a counter of its own: what an earlier one still writes is lost with it.
            saved = [0.0]
            process = environment.process(job(saved))
            yield environment.timeout(distance)
            kept.append(saved[0])
            process.interrupt()
            process.defused = True

    environment.run(until=environment.process(machine()))
    work, time = np.array(kept), np.array(distances)
    share = float(work.sum() / time.sum())
    spread = float(np.sqrt(np.square(work - share * time).sum() / (n_failures * (n_failures - 1))))
    return Simulated(goodput=share, standard_error=spread / float(time.mean()))
