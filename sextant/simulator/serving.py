"""Continuous batching of an offline batch: which requests each iteration of an engine computes.

The policy is that of small engines (nano-vLLM, and vLLM before chunked prefill). Whole prompts first: while requests
wait, an iteration admits them in order, up to ``max_batched_tokens`` and ``max_sequences``, each only if the cache has
blocks for all of its tokens. Otherwise every running request decodes one token, taking a block where its last one is
full; where none is free the last of those running gives its blocks back and waits at the front, to be computed again.
Full blocks keep their content until they are used anew, so that a request which comes back finds those again that
nobody took (a prefix cache). Free blocks are used in the order in which they became free.

All requests are there at the start, and none ends early: what happens does not depend on how long it takes. ``replay``
therefore only counts; the times of all iterations follow from its arrays at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.types import KernelFit, Num

Counts = NDArray[np.int64]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What bounds a batch; ``n_blocks`` of ``block_tokens`` tokens are the cache."""

    n_blocks: int
    block_tokens: int = 256
    max_batched_tokens: int = 16384
    max_sequences: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations:
    """What each iteration of an engine computes; arrays of shape (n_iterations,), counts too.

    ``n_sequences`` are in the batch, each of which yields one token. ``n_tokens`` are computed, ``n_seen`` is the sum
    over sequences of the tokens that the last new token sees, ``n_pairs`` the sum over new tokens. ``n_blocks`` of the
    cache are in use afterwards, before finished requests leave. ``n_preempted`` lost their blocks in this iteration.
    ``longest`` and ``n_squared`` are the maximum and the sum of squares of what ``n_seen`` sums.
    """

    prefill: NDArray[np.bool_]
    n_sequences: Array
    n_tokens: Array
    n_seen: Array
    n_pairs: Array
    longest: Array
    n_squared: Array
    n_blocks: Array
    n_preempted: Array


def replay(prompt_tokens: Counts, output_tokens: Counts, engine: Engine) -> Iterations:
    """The iterations in which ``engine`` serves requests of these lengths, shapes (n_requests,), in their order.

    InputError if one request alone outgrows the cache or a batch.
    """
    longest = int(np.max(prompt_tokens + output_tokens))
    if np.min(prompt_tokens) < 1 or np.min(output_tokens) < 1:
        raise InputError("requests: every prompt and every output needs a token; give lengths from 1")
    if longest > engine.n_blocks * engine.block_tokens or longest > engine.max_batched_tokens:
        raise InputError(
            f"requests: the longest has {longest} tokens, the cache holds {engine.n_blocks * engine.block_tokens}, a "
            f"batch {engine.max_batched_tokens}; give shorter requests or more memory"
        )
    state = _State(engine, np.asarray(prompt_tokens), np.asarray(output_tokens))
    while state.waiting or len(state.running):
        if not state.admit():
            state.decode()
    first, *columns = np.array(state.log, dtype=np.float64).T
    names = (each.name for each in fields(Iterations))
    return Iterations(**dict(zip(names, (first.astype(bool), *columns), strict=True)))


def uneven(run: Iterations, n_programs: Num, n_sms: Num) -> Num:
    """How much later the last program of a decode kernel ends than if all sequences were alike.

    Each sequence has ``n_programs``, one per head of its cache, as long as the tokens that it sees, and ``n_sms`` of
    them run at a time, in their order. When the last one is taken up, the others have been running for some time: of
    programs met at random, half of E[length ** 2] / E[length] is left. The last to end is as long as the longest, and
    starts that late at most.
    """
    filled, mean = n_programs * run.n_sequences > n_sms, run.n_seen / run.n_sequences
    alike = np.where(filled, n_programs * run.n_seen / n_sms, mean)
    left = run.n_squared / (2.0 * run.n_seen)
    started = np.where(filled, np.maximum(alike - left, 0.0), 0.0)
    return np.maximum((started + run.longest) / alike, 1.0)


def host_work_s(rate: KernelFit, n: Num) -> Num:
    """Seconds of the host's work on ``n`` sequences, tokens or layers: ``step_s`` and ``unit_s`` for each."""
    return rate.coefficients["step_s"] + rate.coefficients["unit_s"] * n


@dataclass(slots=True)
class _State:
    """Requests by number: those waiting and running, their lengths so far, their blocks, and what free blocks hold."""

    engine: Engine
    prompt: Counts
    output: Counts
    waiting: deque[int] = field(init=False)
    running: Counts = field(init=False)
    length: Counts = field(init=False)
    made: Counts = field(init=False)
    tables: list[list[int]] = field(init=False)
    free: dict[int, None] = field(init=False)
    content: list[tuple[int, int] | None] = field(init=False)
    log: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.prompt)
        self.waiting, self.running = deque(range(n)), np.zeros(0, dtype=np.int64)
        self.length, self.made = self.prompt.astype(np.int64).copy(), np.zeros(n, dtype=np.int64)
        self.tables = [[] for _ in range(n)]
        # A dict keeps the order in which blocks became free, and lets one be taken from the middle.
        self.free = dict.fromkeys(range(self.engine.n_blocks))
        self.content = [None] * self.engine.n_blocks

    def admit(self) -> bool:
        """Prefill as many of those waiting as fit; whether any did."""
        taken: list[int] = []
        n_tokens, n_pairs = 0, 0.0
        while self.waiting and len(taken) < self.engine.max_sequences:
            request = self.waiting[0]
            length = int(self.length[request])
            n_needed = -(-length // self.engine.block_tokens)
            if n_tokens + length > self.engine.max_batched_tokens or n_needed > len(self.free):
                break
            self.waiting.popleft()
            cached = self._place(request, n_needed)
            new = length - cached
            n_tokens += new
            n_pairs += new * cached + new * (new + 1) / 2.0
            taken.append(request)
        if not taken:
            return False
        self.running = np.concatenate([self.running, np.array(taken, dtype=np.int64)])
        self._finish(np.array(taken), 1, n_tokens, n_pairs, 0)
        return True

    def _place(self, request: int, n_needed: int) -> int:
        """Give a request its blocks; how many of its tokens are found in blocks that it once had."""
        old, table, hit, cached = self.tables[request], [], True, 0
        # The last block holds what is computed now, full or not.
        n_kept = min(len(old), n_needed - 1)
        for i in range(n_needed):
            hit = hit and i < n_kept and old[i] in self.free and self.content[old[i]] == (request, i)
            if hit:
                del self.free[old[i]]
                table.append(old[i])
                cached += self.engine.block_tokens
            else:
                table.append(self._take())
        self.tables[request] = table
        return cached

    def _take(self) -> int:
        block = next(iter(self.free))
        del self.free[block]
        self.content[block] = None
        return block

    def _give_back(self, request: int) -> None:
        """Free a request's blocks, the last one first; the full ones keep what they hold."""
        table = self.tables[request]
        n_full = (int(self.length[request]) - 1) // self.engine.block_tokens
        for i in reversed(range(len(table))):
            self.content[table[i]] = (request, i) if i < n_full else None
            self.free[table[i]] = None

    def decode(self) -> None:
        """One token for every running request that keeps its blocks."""
        batch = self.running[: self.engine.max_sequences]
        opening = batch[self.length[batch] % self.engine.block_tokens == 1]
        # A request of one block's width and a token more opens its next block; the first one it has already.
        opening = np.array([r for r in opening if self._short(int(r))], dtype=np.int64)
        n_preempted = 0
        if len(opening) <= len(self.free):
            for request in opening:
                self.tables[request].append(self._take())
        else:
            batch, n_preempted = self._preempting()
        self._finish(batch, 0, len(batch), float(self.length[batch].sum()), n_preempted)

    def _short(self, request: int) -> bool:
        return len(self.tables[request]) * self.engine.block_tokens < self.length[request]

    def _preempting(self) -> tuple[Counts, int]:
        """The batch where blocks run out: the last ones give theirs to those before them."""
        order, batch, n_preempted = deque(int(r) for r in self.running), [], 0
        while order and len(batch) < self.engine.max_sequences:
            request = order.popleft()
            while self._short(request) and not self.free:
                victim = order.pop() if order else request
                self._give_back(victim)
                self.waiting.appendleft(victim)
                n_preempted += 1
                if victim == request:
                    break
            else:
                if self._short(request):
                    self.tables[request].append(self._take())
                batch.append(request)
        self.running = np.array([*batch, *order], dtype=np.int64)
        return np.array(batch, dtype=np.int64), n_preempted

    def _finish(self, batch: Counts, prefill: int, n_tokens: int, n_pairs: float, n_preempted: int) -> None:
        """Note the iteration; every request of the batch has a token more, and leaves with its last one."""
        seen = self.length[batch]
        squared, in_use = float(np.square(seen).sum()), self.engine.n_blocks - len(self.free)
        self.log.append(
            (prefill, len(batch), n_tokens, int(seen.sum()), n_pairs, int(seen.max()), squared, in_use, n_preempted)
        )
        self.length[batch] += 1
        self.made[batch] += 1
        done = batch[self.made[batch] == self.output[batch]]
        for request in done:
            self._give_back(int(request))
        if len(done):
            self.running = self.running[self.made[self.running] < self.output[self.running]]
