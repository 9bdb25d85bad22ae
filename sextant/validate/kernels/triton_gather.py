"""A Triton kernel that fetches random rows of a table in device memory or in pinned host memory, read over the link."""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

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


def gather(table: Tensor, index: Tensor, out: Tensor, *, n_sms: int) -> tuple[Tensor]:
    """out[i] = table[index[i]]: rows of one program as many as still leave eight programs for every SM."""
    lookups, dim = out.shape
    block = triton.next_power_of_2(dim)
    rows = min(MAX_ROWS, max(1, TILE // block), triton.next_power_of_2(max(1, lookups // (8 * n_sms))))
    rows = 1 if rows < 4 else rows
    warps = max(1, min(4, rows * block // 256))
    _gather[(triton.cdiv(lookups, rows),)](table, index, out, lookups, dim, ROWS=rows, BLOCK=block, num_warps=warps)
    return (out,)
