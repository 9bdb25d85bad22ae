"""What a GPU keeps of its short-run speed under load that lasts: the clock that its power limit leaves.

    python -m sextant.validate.sustained --out FILE.csv

Benchmarks of kernels last milliseconds and run at the boost clock; training lasts weeks. Per row: a kernel's median
time in bursts (idle in between) and after seconds of nothing else, with the SM clock and the power read meanwhile, on
all SMs and on those that a communication kernel would leave (the library's SM carve-out, where it heeds it).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from sextant.validate.beside import calls, times_us, write_rows

CARVED_SMS = (0, 20)
SUSTAINED_S, COUNTED_S, N_BURSTS, BURST_CALLS, IDLE_S = 4.0, 1.5, 12, 4, 0.1
_QUERY = ("nvidia-smi", "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits", "-i", "0")
COLUMNS = ("call", "carved_sms", "burst_us", "sustained_us", "sm_clock_mhz", "power_w")


def burst_us(call: Callable[[], object]) -> float:
    """Median microseconds of a few calls after a pause."""
    samples: list[float] = []
    for _ in range(N_BURSTS):
        time.sleep(IDLE_S)
        call()
        samples += times_us(call, BURST_CALLS)
    return median(samples)


def sustained(call: Callable[[], object], per_call_us: float) -> tuple[float, float, float]:
    """Median microseconds at the end of seconds of load; mean SM clock (MHz) and power (W) then."""
    n = max(8, int(0.1e6 / per_call_us))
    samples: list[float] = []
    clocks: list[float] = []
    powers: list[float] = []
    begin = time.monotonic()
    while (spent := time.monotonic() - begin) < SUSTAINED_S:
        query = None
        if spent > SUSTAINED_S - COUNTED_S:
            query = subprocess.Popen(_QUERY, stdout=subprocess.PIPE, text=True)
        times = times_us(call, n)
        if query is not None:
            samples += times
            out, _ = query.communicate()
            clock, power = out.strip().split(",")
            clocks.append(float(clock))
            powers.append(float(power))
    return median(samples), sum(clocks) / len(clocks), sum(powers) / len(powers)


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(prog="sextant.validate.sustained", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    rows = []
    for name, call in calls().items():
        for carved in CARVED_SMS:
            torch._C._set_sm_carveout_experimental(carved or None)  # type: ignore[attr-defined]
            burst = burst_us(call)
            long, clock, power = sustained(call, burst)
            rows.append((name, carved, f"{burst:.2f}", f"{long:.2f}", f"{clock:.0f}", f"{power:.0f}"))
            print(*rows[-1], file=sys.stderr)
    write_rows(out, "sustained", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
