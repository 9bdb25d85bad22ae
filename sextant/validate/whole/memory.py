"""Engram: rows of n-grams from a table in pinned host memory or in device memory, gated, convolved, added.

With prefetch the rows are fetched on a side stream from behind the embedding on, while the layers in front compute, and
waited for where they are needed; without, they are fetched there. ``way`` says by what:

``inline``  a kernel with all SMs, where the rows are needed
``few``     ahead, a kernel of a few programs that take rows in turn
``bounded`` the same, each program with ``BOUNDED`` reads in flight: fewer together than fill the page walkers
``full``    ahead, the kernel with all SMs
``copy``    ahead, one copy of the pinned buffer into which ``pack`` gathered the rows on the CPU
``none``    by nothing: the rows are those of an earlier pass
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.layers import Pass, whole
from sextant.workloads.ops import engram
from sextant.workloads.transformer import Transformer

#: The most that a table in host memory takes; a larger one is cut, every table alike.
MAX_HOST_BYTES = 32 * 2**30
#: Rows filled at a time, in elements.
CHUNK = 2**27
#: Ways of fetching rows, and those that begin behind the embedding.
WAYS = ("none", "inline", "few", "bounded", "full", "copy")
AHEAD = ("few", "bounded", "full", "copy")
BOUNDED = 8


@lru_cache(maxsize=1)
def host_table(rows: int, dim: int) -> Tensor:
    """Random BF16 rows [rows, dim] in pinned host memory, one table kept for all who ask alike."""
    table = torch.empty(rows * dim, dtype=torch.bfloat16, pin_memory=True)
    for start in range(0, rows * dim, CHUNK):
        part = table[start : start + CHUNK]
        part.copy_(torch.randn(part.numel(), dtype=torch.bfloat16, device="cuda"))
    return table.view(rows, dim)


class Memory:
    """One Engram layer; ``table(rows, dim)`` gives its tables, one after the other."""

    def __init__(
        self, model: Transformer, at: Pass, table: Callable[[int, int], Tensor], *, index: int, prefetch: bool
    ) -> None:
        self.at = at
        self.n, hidden = whole(model.n_streams), whole(model.hidden_size)
        tables, heads = whole(engram.n_rows(model)), whole(model.engram_heads)
        dim, self.dim = whole(model.engram_dim) // tables, whole(model.engram_dim)
        sizes = engram.prime_rows(model)[index * tables : (index + 1) * tables]
        most = MAX_HOST_BYTES // (2 * dim * tables)
        self.primes = torch.tensor([min(size, most) for size in sizes], dtype=torch.int64, device=at.device)
        self.starts = self.primes.cumsum(0) - self.primes
        orders = [whole(order) for order in model.engram_orders for _ in range(heads)]
        self.orders = torch.tensor(orders, dtype=torch.int64, device=at.device)
        self.table = table(int(self.primes.sum()), dim)
        self.rows = torch.empty((at.n_tokens * tables, dim), dtype=at.dtype, device=at.device)
        self.projections = at.matrix((1 + self.n) * hidden, self.dim)
        self.gate_norm = at.normal(self.n, hidden, dtype=torch.float32)
        self.conv_norm = at.normal(self.n, hidden, std=0.5, dtype=torch.float32)
        taps, self.dilation = whole(model.engram_conv_kernel), max(orders)
        self.taps = at.normal(taps, self.n, hidden, std=0.5, dtype=torch.float32)
        reach = (taps - 1) * self.dilation
        decode = at.phase == "decode"
        self.earlier = at.normal(at.batch, reach, self.n, hidden, std=0.5) if decode else None
        self.history: Tensor | None = None
        self.index: Tensor | None = None
        self.packed: Tensor | None = None
        self.way = "few" if prefetch else "inline"
        self.side = torch.cuda.Stream() if at.device.type == "cuda" else None

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of this layer."""
        return self.table.numel() * self.table.element_size()

    def start(self, history: Tensor) -> None:
        """The pass begins, its token ids are known."""
        self.history = history
        if self.way not in AHEAD:
            return
        self._hash()
        if self.side is None:
            self._fetch()
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            self._fetch()

    def pack(self, history: Tensor) -> None:
        """Gathers the rows of ``history`` on the CPU into the pinned buffer that ``copy`` fetches."""
        if self.packed is None:
            self.packed = torch.empty(self.rows.shape, dtype=self.rows.dtype, pin_memory=self.at.device.type == "cuda")
        index = self.at.kernels.hash(history, self.primes, self.starts, self.orders)
        self.gather(index.flatten().cpu())

    def gather(self, index: Tensor) -> None:
        """The CPU's part of ``pack``: rows of ``index``, on the CPU, into the pinned buffer."""
        assert self.packed is not None, "pack() makes the buffer"
        torch.index_select(self.table, 0, index, out=self.packed)

    def _hash(self) -> None:
        assert self.history is not None, "start() comes first"
        self.index = self.at.kernels.hash(self.history, self.primes, self.starts, self.orders)

    def _fetch(self) -> None:
        assert self.index is not None, "row numbers come first"
        if self.way == "copy":
            assert self.packed is not None, "pack() comes first"
            self.rows.copy_(self.packed, non_blocking=True)
        elif self.way != "none":
            self.at.kernels.fetch(
                self.table, self.index.flatten(), self.rows, beside=self.way in ("few", "bounded"),
                in_turn=BOUNDED if self.way == "bounded" else 0,
            )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        kernels, (m, n, hidden) = self.at.kernels, x.shape
        if self.way not in AHEAD:
            self._hash()
            self._fetch()
        elif self.side is not None:
            torch.cuda.current_stream().wait_stream(self.side)
        found = F.linear(self.rows.view(m, self.dim), self.projections)
        value, keys = found[:, :hidden], found[:, hidden:].unflatten(1, (n, hidden))
        gated = kernels.gate(x, keys, value, self.gate_norm)
        return kernels.convolve(
            x, gated, self.conv_norm, self.taps, self.earlier, seq=self.at.seq, dilation=self.dilation
        )
