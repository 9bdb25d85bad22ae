"""How much a GEMM and a copy within device memory slow each other when both run at once.

The copy is a persistent Triton kernel of 20 programs on its own stream, launched first, the way a communication kernel
holds a few multiprocessors. ``variant`` says what is timed: gemm_alone, gemm_beside_copy, copy_alone,
copy_beside_gemm. A row of the copy gives the time of one pass over ``bytes``.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F

from sextant.validate import timer
from sextant.validate.kernels import Case, Prepared, Target, sizes
from sextant.validate.kernels.gemm import sampled_check

N_PROGRAMS = 20
#: Calls timed in a row beside the other stream, and how many times slower than alone they may become.
N_TIMED, SLOWED = 10, 3
VARIANTS = ("gemm_alone", "gemm_beside_copy", "copy_alone", "copy_beside_gemm")


def _elapsed_us(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    return start.elapsed_time(end) * 1e3


class BesideSampler:
    """Times the calls of one stream while another stream is kept busy from before their start to after their end."""

    n_calls = 1
    sm_clock_mhz: float | None = None

    def __init__(self, timed: timer.Call, other: timer.Call, *, label: str) -> None:
        self.timed, self.other, self.label = timed, other, label
        self.side = torch.cuda.Stream()
        self.cover = self._cover()

    def _cover(self) -> int:
        """How many calls of ``other`` outlast the timed ones, were these ``SLOWED`` times slower than alone."""
        spans_us = []
        for call in (self.timed, self.other):
            call()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            for _ in range(4):
                call()
            events[1].record()
            torch.cuda.synchronize()
            spans_us.append(_elapsed_us(*events) / 4)
        return int(SLOWED * N_TIMED * spans_us[0] / spans_us[1]) + 4

    def _burst(self) -> list[float]:
        """The timed calls that ended before the other stream did, without the first, which meets its start."""
        main = torch.cuda.current_stream()
        torch.cuda.synchronize()
        begun, over, *events = (torch.cuda.Event(enable_timing=True) for _ in range(N_TIMED + 3))
        with torch.cuda.stream(self.side):
            self.other()
            begun.record()
            for _ in range(self.cover):
                self.other()
            over.record()
        main.wait_event(begun)
        events[0].record()
        for event in events[1:]:
            self.timed()
            event.record()
        torch.cuda.synchronize()
        pairs = list(pairwise(events))[1:]
        return [_elapsed_us(a, b) for a, b in pairs if _elapsed_us(b, over) > 0.0]

    def __call__(self, n_samples: int, /) -> list[float]:
        samples_us: list[float] = []
        for _ in range(max(3, n_samples // N_TIMED)):
            samples_us += self._burst()
        if not samples_us:
            raise ValueError("contention: no timed call ran wholly beside the other stream")
        return samples_us


def build_contention(case: Case, target: Target) -> Prepared:
    """A bf16 GEMM of m, n, k and a copy of ``bytes``, the one alone or beside the other."""
    m, n, k, n_bytes = sizes(case, "m", "n", "k", "bytes")
    variant = str(case.get("variant"))
    if variant not in VARIANTS:
        raise ValueError(f"variant: contention is one of {', '.join(VARIANTS)}, got {variant!r}")
    if not target.cuda:
        raise ValueError("contention: two streams of work need a GPU")
    from sextant.validate.kernels import triton_moves

    a, b = (torch.randn((rows, k), dtype=torch.bfloat16, device=target.device) for rows in (m, n))
    source = torch.randint(-(2**31), 2**31 - 1, (n_bytes // 4,), dtype=torch.int32, device=target.device)
    destination = torch.empty_like(source)
    gemm = partial(F.linear, a, b)
    copy = partial(triton_moves.copy, source, destination, n_programs=N_PROGRAMS)

    def check() -> float:
        error = sampled_check(gemm(), a, b, tolerance=1e-2)
        copy()
        if not torch.equal(source, destination):
            raise ValueError("check: the copy differs from its source")
        return error

    timed, other = (gemm, copy) if variant.startswith("gemm") else (copy, gemm)
    sampler = None if variant.endswith("alone") else partial(BesideSampler, timed, other, label="beside")
    traffic = (2.0 * k * (m + n), 2.0 * m * n) if timed is gemm else (float(n_bytes), float(n_bytes))
    return Prepared(
        calls=(timed,),
        check=check,
        library="cublas" if timed is gemm else "triton",
        sampler=sampler,
        read_bytes=traffic[0],
        write_bytes=traffic[1],
    )


BUILDERS = {"contention": build_contention}
