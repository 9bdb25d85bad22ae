"""A Triton kernel that fetches random rows of a table in device memory or in pinned host memory, read over the link."""

# pyright: reportIndexIssue=false, reportFunctionMemberAccess=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import ctypes
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

#: Elements of one program's tile, and the most rows in it.
TILE, MAX_ROWS = 2048, 16


@triton.jit(do_not_specialize=["lookups"])
def _gather(table_ptr, index_ptr, out_ptr, lookups, dim, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < lookups
    source = tl.load(index_ptr + row, mask=known, other=0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = known[:, None] & (cols < dim)[None, :]
    values = tl.load(table_ptr + source[:, None] * dim + cols[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * dim + cols[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["lookups"])
def _gather_in_turn(
    table_ptr, index_ptr, out_ptr, place_ptr, lookups, dim,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    if PLACED:
        tl.store(place_ptr + tl.program_id(0), tl.extra.cuda.smid())
    cols = tl.arange(0, BLOCK)
    for first in range(tl.program_id(0) * ROWS, lookups, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        known = row < lookups
        source = tl.load(index_ptr + row, mask=known, other=0).to(tl.int64)
        mask = known[:, None] & (cols < dim)[None, :]
        values = tl.load(table_ptr + source[:, None] * dim + cols[None, :], mask=mask, other=0.0)
        tl.store(out_ptr + row.to(tl.int64)[:, None] * dim + cols[None, :], values, mask=mask)


#: CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent.
_CARVEOUT, _ALL = 9, 100
_PREFERRED: set[int] = set()


def _prefer_shared_memory(kernel: Any) -> None:
    """Asks for SMs whose cache is split in favour of shared memory: the split of an SM changes only when it is empty,
    and a kernel that needs more waits for the last block of one that prefers the cache. Where the SM is not empty when
    ``kernel`` begins this is not heeded, and products lack registers besides."""
    kernel._init_handles()
    if kernel.function in _PREFERRED:
        return
    failed = ctypes.CDLL("libcuda.so.1").cuFuncSetAttribute(ctypes.c_void_p(kernel.function), _CARVEOUT, _ALL)
    if failed:
        raise RuntimeError(f"cuFuncSetAttribute: error {failed}")
    _PREFERRED.add(kernel.function)


def gather(
    table: Tensor,
    index: Tensor,
    out: Tensor,
    *,
    n_sms: int,
    most: int = 0,
    in_turn: int = 0,
    place: Tensor | None = None,
) -> tuple[Tensor]:
    """out[i] = table[index[i]]: rows of one program as many as still leave eight programs for every SM.

    ``most`` programs, if it is given, take the rows in turn, for kernels that run beside: one program for every few
    rows would hold all places until the last is fetched, and thousands of reads that wait for page walks hold up all
    others. ``in_turn``: rows that each of them reads at once, where that is not left to the rule. ``place``
    (int32) gets the number of the SM that each of them runs on.
    """
    lookups, dim = out.shape
    block = triton.next_power_of_2(dim)
    rows = min(MAX_ROWS, max(1, TILE // block), triton.next_power_of_2(max(1, lookups // (8 * n_sms))))
    rows = in_turn or (1 if rows < 4 else rows)
    warps = max(1, min(4, rows * block // 256))
    programs = triton.cdiv(lookups, rows)
    if most:
        given = (table, index, out, out if place is None else place, lookups, dim)
        constants = {"ROWS": rows, "BLOCK": block, "PLACED": place is not None, "num_warps": warps}
        _prefer_shared_memory(_gather_in_turn.warmup(*given, **constants, grid=(1,)))
        _gather_in_turn[(min(programs, most),)](*given, **constants)
        return (out,)
    _gather[(programs,)](table, index, out, lookups, dim, ROWS=rows, BLOCK=block, num_warps=warps)
    return (out,)
