"""How much compute kernels slow beside a fetch by few programs that stays for as long as they are repeated.

    python -m sextant.validate.resident --out FILE.csv

A fetch is one launch of ``LONG`` random rows from a table in pinned host memory. ``start`` says which came first:

``before``   the fetch, on an idle GPU, as in a pass, which launches it ahead: its programs spread over as many SMs
``between``  the calls, which are repeated already: the programs go where the first block of a call ends

Per row: microseconds of a call and of the fetch, alone and beside each other on a cool GPU, on how many SMs the
programs were, and the longest kernel of the call with its number of blocks, as the profiler has them. An SM with a
program has no room left for a block of a tensor-core kernel, which takes nearly all registers and shared memory of one,
until the fetch ends.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from sextant.validate.beside import write_rows
from sextant.validate.fetch import DIM, ROWS, Call, between_us, captured, marks
from sextant.validate.kernels import triton_gather
from sextant.validate.measure import find_target
from sextant.validate.whole.fused import FETCHING, FusedKernels
from sextant.validate.whole.memory import host_table

STARTS = ("before", "between")
#: Programs and rows that each takes at once: what passes use, and one program with as many rows in flight.
FETCHES = ((FETCHING, 8), (FETCHING, 16), (1, 64))
#: Matrices (n, k) of a layer of Engram-27B, and rows: of prefill, and of decoding.
MATRICES = ((576, 2560), (6144, 2560), (8192, 512), (2560, 4096), (24576, 2560), (2560, 12288))
PREFILL, DECODE = (512, 1024, 2048, 4096, 8192), (32, 64, 128, 256)
#: Experts that a device holds, how many a token takes, their width.
EXPERTS, TOP_K, EXPERT = 55, 6, 1536
HIDDEN, N_ROUNDS, SETTLED_US = 2560, 3, 100.0
#: A kernel's name is cut to so many characters.
NAME = 60
#: Lookups of a fetch; length of a graph of calls, time of the calls alone and how often, pause that keeps the GPU cool.
LONG, CALL_US, TIMED_US, N_SAMPLES, PAUSE_S = 2**18, 300.0, 6000.0, 5, 0.01
#: Cycles in which the host enqueues a round, and in which a fetch settles.
ENQUEUED, SETTLING = 4_000_000, 200_000
COLUMNS = (
    "start", "call", "programs", "in_turn", "lookups", "row_bytes", "table_bytes", "n_sms", "call_alone_us",
    "call_beside_us", "fetch_alone_us", "fetch_beside_us", "kernel", "blocks",
)  # fmt: skip


class Compute:
    """Repeated calls of one kernel, about ``CALL_US`` in a graph."""

    def __init__(self, call: Call) -> None:
        self.n = 1
        self.graph = captured([call])
        self.n = max(1, min(64, round(CALL_US / self.windows(8)[0])))
        self.graph = captured([call] * self.n)
        self.alone_us = median(us for _ in range(N_SAMPLES) for us in self.windows(max(8, int(TIMED_US / CALL_US))))

    def windows(self, n: int) -> list[float]:
        """Microseconds per call of ``n`` replays in a row, but the first, on a cool GPU."""
        time.sleep(PAUSE_S)
        events = marks(n + 1)
        torch.cuda._sleep(200_000)
        events[0].record()
        for event in events[1:]:
            self.graph.replay()
            event.record()
        torch.cuda.synchronize()
        return [between_us(a, b) / self.n for a, b in list(pairwise(events))[1:]]


class Resident:
    """One long launch of a fetch, and the SMs of its programs."""

    def __init__(self, programs: int, in_turn: int, n_sms: int) -> None:
        self.programs, self.in_turn, self.n_sms = programs, in_turn, n_sms
        self.table = host_table(ROWS, DIM)
        self.index = torch.empty(LONG, dtype=torch.int32, device="cuda")
        self.out = torch.empty((LONG, DIM), dtype=self.table.dtype, device="cuda")
        self.place = torch.zeros(programs, dtype=torch.int32, device="cuda")
        self.alone_us = median(self._alone_us() for _ in range(N_ROUNDS))

    def launch(self) -> None:
        """On the current stream."""
        triton_gather.gather(
            self.table, self.index, self.out, n_sms=self.n_sms, most=self.programs, in_turn=self.in_turn,
            place=self.place,
        )  # fmt: skip

    def draw(self) -> None:
        """New rows."""
        self.index.random_(0, ROWS)
        torch.cuda.synchronize()

    def _alone_us(self) -> float:
        self.draw()
        self.launch()
        self.draw()
        start, end = marks(2)
        start.record()
        self.launch()
        end.record()
        torch.cuda.synchronize()
        return between_us(start, end)


def beside(compute: Compute, fetched: Resident, start: str) -> tuple[float, float, float]:
    """Microseconds of a call and of the fetch (0: it outlasted the calls) beside each other, and SMs of the fetch."""
    side, calls_us, fetches_us, places = torch.cuda.Stream(), [], [], []
    n = max(8, math.ceil(1.6 * fetched.alone_us / (compute.n * compute.alone_us)))
    for _ in range(N_ROUNDS):
        fetched.draw()
        time.sleep(PAUSE_S)
        begin, end, go, *events = marks(n + 4)
        torch.cuda._sleep(ENQUEUED)
        if start == "between":
            compute.graph.replay()
        go.record()
        side.wait_event(go)
        with torch.cuda.stream(side):
            begin.record()
            fetched.launch()
            end.record()
        if start == "before":
            torch.cuda._sleep(SETTLING)
        events[0].record()
        for event in events[1:]:
            compute.graph.replay()
            event.record()
        torch.cuda.synchronize()
        calls_us += [
            between_us(a, b) / compute.n for a, b in pairwise(events)
            if between_us(begin, a) > SETTLED_US and between_us(b, end) > 0.0
        ]  # fmt: skip
        if between_us(end, events[-1]) > 0.0:
            fetches_us.append(between_us(begin, end))
        places.append(len(set(fetched.place.tolist())))
    if not calls_us:
        raise ValueError("no call ran wholly beside a fetch")
    return median(calls_us), median(fetches_us or [0.0]), median(places)


def longest(call: Call) -> tuple[str, int]:
    """Name of the longest kernel of a call, and its blocks."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kernel = max((each for each in events if each.get("cat") == "kernel"), key=lambda each: each["dur"])
    return kernel["name"][:NAME], math.prod(kernel["args"]["grid"])


def bf16(*shape: int) -> torch.Tensor:
    """Random numbers on the GPU."""
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


def product(m: int, n: int, k: int) -> Call:
    """A product of new operands."""
    x, w = bf16(m, k), bf16(n, k)
    return lambda: F.linear(x, w)


def experts(m: int, n: int, k: int) -> Call:
    """The products of all experts, which have tokens alike."""
    each = max(1, m * TOP_K // EXPERTS)
    x, w = bf16(each * EXPERTS, k), bf16(EXPERTS, n, k).transpose(-2, -1)
    ends = torch.arange(1, EXPERTS + 1, device="cuda", dtype=torch.int32) * each
    return lambda: torch._grouped_mm(x, w, offs=ends)  # pyright: ignore[reportPrivateImportUsage]


def attention(m: int, kernels: FusedKernels) -> Call:
    """Causal attention of one sequence."""
    q, k, v = (bf16(1, 32, m, width) for width in (192, 192, 128))
    return lambda: kernels.attention(q, k, v, causal=True)


def calls(n_sms: int) -> Iterator[tuple[str, Call]]:
    """Kernels of the layers of Engram-27B, those of the tensor cores in many sizes."""
    kernels = FusedKernels(n_sms=n_sms)
    for m in (*PREFILL, *DECODE):
        for n, k in MATRICES:
            yield f"gemm {m}x{n}x{k}", product(m, n, k)
    for m in PREFILL[::3]:
        yield f"grouped {m}x{2 * EXPERT}x{HIDDEN}", experts(m, 2 * EXPERT, HIDDEN)
        yield f"grouped {m}x{HIDDEN}x{EXPERT}", experts(m, HIDDEN, EXPERT)
    for m in PREFILL:
        yield f"attention 32x{m} 192/128", attention(m, kernels)
    yield from others(kernels)


def others(kernels: FusedKernels) -> Iterator[tuple[str, Call]]:
    """The other kernels of the layers: of 4096 tokens of prefill, and of 64 of decoding at a context of 4096."""
    m, hidden, streams = 4096, HIDDEN, 4
    x, f, wide = bf16(m, streams, hidden), bf16(m, hidden), bf16(m, 2 * 12288)
    maps = torch.randn((24, streams * hidden), device="cuda") * (streams * hidden) ** -0.5
    scale, base = torch.rand(3, device="cuda"), torch.rand(24, device="cuda")
    _, post, res = kernels.mix_in(x, maps, scale, base, iterations=20)
    latent_q, cache, norm = bf16(64, 32, 576), bf16(64, m, 576), bf16(hidden)
    yield "latent attention 64x4096", lambda: kernels.latent(latent_q, cache, rank=512, scale=0.07)
    yield "mhc_pre 4096x4x2560", lambda: kernels.mix_in(x, maps, scale, base, iterations=20)
    yield "mhc_post 4096x4x2560", lambda: kernels.mix_out(f, x, post, res)
    yield "swiglu 4096x12288", lambda: kernels.swiglu(wide)
    yield "rmsnorm 4096x2560", lambda: kernels.norm(f, norm)


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(prog="sextant.validate.resident", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    n_sms, rows = find_target("cuda").n_sms, []
    with torch.no_grad():
        fetches = [Resident(programs, in_turn, n_sms) for programs, in_turn in FETCHES]
        for name, call in calls(n_sms):
            compute, kernel = Compute(call), longest(call)
            for fetched in fetches:
                for start in STARTS if fetched.programs > 1 else STARTS[:1]:
                    call_us, fetch_us, place = beside(compute, fetched, start)
                    shape = fetched.programs, fetched.in_turn, LONG, 2 * DIM, 2 * DIM * ROWS, f"{place:g}"
                    times = (f"{us:.2f}" for us in (compute.alone_us, call_us, fetched.alone_us))
                    rows.append((start, name, *shape, *times, f"{fetch_us:.2f}" if fetch_us else "", *kernel))
                    print(*rows[-1], file=sys.stderr, flush=True)
        write_rows(out, "resident", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
