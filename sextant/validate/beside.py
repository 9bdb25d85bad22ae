"""How much a compute kernel slows while another kernel holds some SMs and moves bytes, as communication does.

    python -m sextant.validate.beside --out FILE.csv

A persistent kernel on ``n_programs`` SMs runs beside repeated calls of a product, an attention kernel or a stream of
memory. It spins (takes SMs, moves nothing) or copies within HBM at several rates (a pause between blocks). Per row: the
call's median time alone and beside, and the bytes per second (read plus written) that the side kernel moved alone and
beside. The difference between spinning and copying is contention for L2, HBM and power, beyond the SMs taken.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from sextant.validate.kernels import FP8
from sextant.validate.measure import Settings, find_target, provenance

N_PROGRAMS = 20
#: Iterations of arithmetic between two blocks; None copies nothing.
PAUSES = (None, 0, 8, 24, 64, 160)
BLOCK = 8192
SIDE_MS, TIMED_MS, N_ROUNDS = 30.0, 12.0, 5
COLUMNS = (
    "call", "n_programs", "side", "pause", "alone_us", "beside_us", "side_alone_bytes_per_s", "side_beside_bytes_per_s",
)  # fmt: skip


@triton.jit
def _side(source, destination, sink, n_blocks, n_iterations, pause, moves: tl.constexpr, block: tl.constexpr):
    program, lanes = tl.program_id(0), tl.arange(0, block)
    value = tl.zeros((block,), dtype=tl.float32)
    for i in range(n_iterations):
        if moves:
            at = ((i * tl.num_programs(0) + program) % n_blocks).to(tl.int64) * block + lanes
            loaded = tl.load(source + at)
            tl.store(destination + at, loaded)
        for _ in range(pause):
            value = value * 1.0001 + 1.0
    tl.store(sink + program * block + lanes, value)


class Side:
    """The side kernel with enough iterations to run for ``SIDE_MS`` alone."""

    def __init__(self, pause: int | None) -> None:
        elements = 2**28
        self.moves, self.pause = pause is not None, pause if pause is not None else 64
        self.source = torch.randn(elements, dtype=torch.float32, device="cuda")
        self.destination = torch.empty_like(self.source)
        self.sink = torch.empty(N_PROGRAMS * BLOCK, device="cuda")
        self.n_blocks = elements // BLOCK
        self.n_iterations = 200
        for _ in range(2):
            self.launch()
            self.n_iterations = max(200, int(self.n_iterations * SIDE_MS / self.alone_ms()))

    def launch(self) -> None:
        _side[(N_PROGRAMS,)](  # type: ignore[index]
            self.source,
            self.destination,
            self.sink,
            self.n_blocks,
            self.n_iterations,
            self.pause,
            moves=self.moves,
            block=BLOCK,
            num_warps=16,
        )

    def alone_ms(self) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        self.launch()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def bytes_per_s(self, ms: float) -> float:
        return 2.0 * 4.0 * BLOCK * N_PROGRAMS * self.n_iterations / (ms * 1e-3) if self.moves else 0.0


def calls() -> dict[str, Callable[[], object]]:
    """The compute kernels: large enough that whole waves hardly matter."""

    def bf16(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    def block(m: int, n: int, k: int) -> Callable[[], object]:
        a, b = bf16(m, k).to(FP8), bf16(n, k).to(FP8)
        scale_a = torch.rand((k // 128, m), device="cuda").add_(0.5).t()
        scale_b = torch.rand((n // 128, k // 128), device="cuda") + 0.5
        one, two = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128  # type: ignore[attr-defined]
        return lambda: F.scaled_mm(  # type: ignore[attr-defined]
            a, b.t(), scale_a, one, scale_b.t(), two, output_dtype=torch.bfloat16
        )

    x, w = bf16(8192, 4096), bf16(8192, 4096)
    q, k, v = bf16(1, 128, 4096, 192), bf16(1, 128, 4096, 192), bf16(1, 128, 4096, 128)
    s, t = bf16(2**29), bf16(2**29)

    def attention() -> object:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    large, long = block(32768, 4096, 7168), block(4096, 7168, 16384)

    def mixed() -> None:
        """A quarter of the time memory, a quarter attention, half products: a training step in small."""
        torch.add(s, t, out=t)
        large()
        attention()
        torch.add(s[: 2**28], t[: 2**28], out=t[: 2**28])
        long()

    return {
        "gemm bf16 8192x8192x4096": lambda: F.linear(x, w),
        "gemm fp8_block 8192x8192x8192": block(8192, 8192, 8192),
        "gemm fp8_block 32768x4096x7168": large,
        "gemm fp8_block 4096x7168x16384": long,
        "attention 128 heads 4096 192/128 causal": attention,
        "add 2^29 bf16": lambda: torch.add(s, t, out=t),
        "mixed: the last two products, attention, 1.5 adds": mixed,
    }


def times_us(call: Callable[[], object], n: int) -> list[float]:
    """Microseconds of ``n`` calls in a row, each between two events."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [1e3 * a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]


def beside(call: Callable[[], object], side: Side, n: int) -> tuple[float, float]:
    """Median microseconds of the call beside the side kernel, and milliseconds that the side kernel took."""
    stream, samples, spans = torch.cuda.Stream(), [], []
    for _ in range(N_ROUNDS):
        torch.cuda.synchronize()
        begin, started, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.stream(stream):
            begin.record()
            side.launch()
            end.record()
        torch.cuda._sleep(200_000)
        started.record()
        times = times_us(call, n)
        ends, at = begin.elapsed_time(end), begin.elapsed_time(started)
        for i, us in enumerate(times):
            at += us * 1e-3
            if i > 0 and at < ends:
                samples.append(us)
        spans.append(ends)
    if not samples:
        raise ValueError("no call ran wholly beside the side kernel")
    return median(samples), median(spans)


def write_rows(path: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A file of measurements with its provenance in the header; ``name`` is the program that made it."""
    header = provenance(find_target("cuda"), cases=name, settings=Settings())
    header["command"] = f"python -m sextant.validate.{name}"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in header.items())
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(prog="sextant.validate.beside", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    rows = []
    for name, call in calls().items():
        for _ in range(20):
            call()
        alone = median(times_us(call, 60)[20:])
        n = max(4, int(TIMED_MS * 1e3 / alone))
        for pause in PAUSES:
            side = Side(pause)
            free = side.bytes_per_s(side.alone_ms())
            us, ms = beside(call, side, n)
            kind = "copy" if side.moves else "spin"
            moved = f"{free:.4g}", f"{side.bytes_per_s(ms):.4g}"
            rows.append((name, N_PROGRAMS, kind, side.pause, f"{alone:.2f}", f"{us:.2f}", *moved))
            print(*rows[-1], file=sys.stderr)
            del side
    write_rows(out, "beside", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
