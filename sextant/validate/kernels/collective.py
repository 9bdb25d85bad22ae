"""Collectives among the processes that measure together: all_reduce, all_gather, reduce_scatter, all_to_all.

``message_elements`` counts the larger buffer of one process (all_gather's result, reduce_scatter's input). NCCL on
GPUs, gloo on the CPU. A sample is the time of several calls in a row on the slowest process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sextant.validate import timer
from sextant.validate.kernels import Case, Prepared, Target, require_close, sizes

FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
#: Calls between two readings of the clock.
CALLS = {"cuda": 20, "cpu": 2}


@dataclass(slots=True)
class RanksSampler:
    """Times calls that all processes make; every process gets the slowest one's samples, so that they stay in step."""

    call: timer.Call
    device: torch.device
    n_calls: int
    sm_clock_mhz: float | None = None

    @property
    def label(self) -> str:
        """Way of timing and calls in a row."""
        return f"ranks:{self.n_calls}"

    def _sample(self) -> float:
        dist.barrier()
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(self.n_calls):
                self.call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) * 1e3 / self.n_calls
        start_s = time.perf_counter()
        for _ in range(self.n_calls):
            self.call()
        return (time.perf_counter() - start_s) * 1e6 / self.n_calls

    def __call__(self, n_samples: int, /) -> list[float]:
        samples = torch.tensor([self._sample() for _ in range(n_samples)], dtype=torch.float64, device=self.device)
        dist.all_reduce(samples, op=dist.ReduceOp.MAX)
        return samples.tolist()


def _parts(n: int, rank: int, op: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Input and result of one process; values are small whole numbers that the rank decides, exact in any format."""
    size = dist.get_world_size()
    share = n // size
    source = (torch.arange(share if op == "all_gather" else n, device=device) % 7 + rank).to(dtype)
    return source, torch.zeros(share if op == "reduce_scatter" else n, dtype=dtype, device=device)


def _expected(n: int, op: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    size, rank = dist.get_world_size(), dist.get_rank()
    every = [_parts(n, other, op, dtype, device)[0].float() for other in range(size)]
    own = slice(rank * (n // size), (rank + 1) * (n // size))
    if op == "all_gather":
        return torch.cat(every)
    if op == "all_to_all":
        return torch.cat([other[own] for other in every])
    total = torch.stack(every).sum(0)
    return total[own] if op == "reduce_scatter" else total


def _all_reduced(source: Tensor, result: Tensor) -> None:
    result.copy_(source)
    dist.all_reduce(result)


def build_collective(case: Case, target: Target) -> Prepared:
    """Prepare one collective among all processes; raises ``ValueError`` where ``n_gpus`` is not their number."""
    n_gpus, n = sizes(case, "n_gpus", "message_elements")
    op = str(case["op"])
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() != n_gpus:
        raise ValueError(f"n_gpus: {op} among {n_gpus} needs as many processes: --ranks {n_gpus}")
    if n % n_gpus or case.get("format") not in FORMATS:
        raise ValueError(f"message_elements, format: a multiple of {n_gpus}, in {', '.join(FORMATS)}")
    dtype = FORMATS[str(case["format"])]
    source, result = _parts(n, dist.get_rank(), op, dtype, target.device)
    # in place, as gradients are; averages, where the library has them, since repeated sums would overflow
    kept = dist.ReduceOp.AVG if target.cuda else dist.ReduceOp.MAX
    runs: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(result, op=kept),
        "all_gather": lambda: dist.all_gather_into_tensor(result, source),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(result, source),
        "all_to_all": lambda: dist.all_to_all_single(result, source),
    }

    def check() -> float:
        (_all_reduced(source, result) if op == "all_reduce" else runs[op]())
        return require_close(result, _expected(n, op, dtype, target.device), what=f"the result of {op}")

    kind = target.device.type
    return Prepared(
        calls=(runs[op],),
        check=check,
        library="nccl" if target.cuda else "gloo",
        read_bytes=float(source.numel() * source.element_size()),
        write_bytes=float(result.numel() * result.element_size()),
        sampler=lambda: RanksSampler(call=runs[op], device=target.device, n_calls=CALLS[kind]),
    )


BUILDERS = dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter", "all_to_all"), build_collective)
