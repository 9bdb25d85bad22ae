"""What it costs a weight gradient to add to an FP32 tensor instead of writing BF16: is that traffic hidden or not.

    python -m sextant.validate.accumulate --out FILE.csv

Per shape, BF16 operands (cuBLAS): the product written in BF16, written in FP32, and added to FP32 in place.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

from sextant.validate.beside import times_us, write_rows

#: (m, n) of weights; k tokens.
SITES = (
    (1536, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048), (7168, 18432), (8192, 8192),
)  # fmt: skip
TOKENS = (1024, 4096, 8192)
N_BURSTS, BURST_CALLS, IDLE_S = 8, 4, 0.03
COLUMNS = ("m", "n", "k", "bf16_us", "fp32_us", "accumulate_us")


def _median_us(call) -> float:
    samples: list[float] = []
    for _ in range(N_BURSTS):
        time.sleep(IDLE_S)
        call()
        samples += times_us(call, BURST_CALLS)
    return median(samples)


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(prog="sextant.validate.accumulate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    rows = []
    for m, n in SITES:
        for k in TOKENS:
            a = torch.randn((m, k), dtype=torch.bfloat16, device="cuda")
            b = torch.randn((k, n), dtype=torch.bfloat16, device="cuda")
            gradient = torch.randn((m, n), dtype=torch.float32, device="cuda")
            written = torch.empty_like(gradient)
            times = (
                _median_us(lambda a=a, b=b: a @ b),
                _median_us(lambda a=a, b=b, w=written: torch.mm(a, b, out_dtype=torch.float32, out=w)),
                _median_us(lambda a=a, b=b, g=gradient: torch.addmm(g, a, b, out_dtype=torch.float32, out=g)),
            )
            rows.append((m, n, k, *(f"{t:.2f}" for t in times)))
            print(*rows[-1], file=sys.stderr)
    write_rows(out, "accumulate", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
