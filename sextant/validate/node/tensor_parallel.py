"""A feed-forward block divided over all GPUs: a column-parallel product, SwiGLU, a row-parallel one, an all_reduce.

No overlap: the all_reduce waits for the product, and what follows waits for it. ``pass`` forward ends with the sum over
the ranks; forward_backward adds the gradients, whose input gradient is summed over the ranks as well.

    us          the whole                    local_us    the same without the sums
    reduce_us   one all_reduce of n_tokens x hidden alone
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.node.processes import Ranks
from sextant.validate.node.timing import TIME_COLUMNS, timed

Case = dict[str, str | int]

CASE_COLUMNS = ("pass", "format", "n_gpus", "n_tokens", "hidden", "ffn")
RESULT_COLUMNS = (*TIME_COLUMNS, "local_us", "reduce_us", "n_reduces", "library", "relative_error")


def cases(n_gpus: int, small: bool) -> list[Case]:
    """DeepSeek-V3's dense block, from a decode batch to two training sequences."""
    hidden, ffn, tokens = (64, 96, (8,)) if small else (7168, 18432, (64, 128, 1024, 4096, 8192))
    return [
        {"pass": name, "format": "bf16", "n_gpus": n_gpus, "n_tokens": n, "hidden": hidden, "ffn": ffn}
        for n in tokens for name in ("forward", "forward_backward")
    ]  # fmt: skip


class Block:
    """This rank's columns and rows of the two matrices."""

    def __init__(self, case: Case, ranks: Ranks) -> None:
        n, hidden, ffn = (int(case[name]) for name in ("n_tokens", "hidden", "ffn"))
        self.ranks, part = ranks, ffn // ranks.size
        generator = torch.Generator(device=ranks.device).manual_seed(7)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(shape, device=ranks.device, generator=generator)
            return (drawn * shape[-1] ** -0.5).to(torch.bfloat16)

        # all ranks draw the same whole matrices, and each keeps its part
        self.x, self.dy = normal(n, hidden).requires_grad_(True), normal(n, hidden)
        mine = slice(ranks.rank * part, (ranks.rank + 1) * part)
        gate, up, down = normal(ffn, hidden), normal(ffn, hidden), normal(hidden, ffn)
        self.whole = (gate, up, down) if n * ffn <= 2**21 else None
        self.inner = torch.cat([gate[mine], up[mine]]).requires_grad_(True)
        self.outer = down[:, mine].contiguous().requires_grad_(True)

    def local(self) -> Tensor:
        """This rank's part of the sum, (n_tokens, hidden)."""
        gate, up = F.linear(self.x, self.inner).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.outer)

    def reduce(self, part: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(part, group=self.ranks.group())
        return part

    def forward(self, reduce: bool) -> Tensor:
        """The block's result."""
        with torch.no_grad():
            out = self.local()
        return self.reduce(out) if reduce else out

    def both(self, reduce: bool) -> tuple[Tensor, ...]:
        """Result, and gradients of input and weights."""
        out = self.local()
        if reduce:
            self.reduce(out.detach())
        grads = torch.autograd.grad(out, (self.x, self.inner, self.outer), self.dy)
        if reduce:
            self.reduce(grads[0])
        return grads

    def error(self) -> float:
        """Relative error of the result against the undivided block in fp32; 0 where that is too large to keep."""
        out = self.forward(True).float()
        if self.whole is None:
            return 0.0
        gate, up, down = (matrix.float() for matrix in self.whole)
        x = self.x.detach().float()
        exact = (F.silu(x @ gate.t()) * (x @ up.t())) @ down.t()
        return float((out - exact).norm() / exact.norm())


def measure(case: Case, ranks: Ranks) -> dict[str, str | int | float]:
    """One row."""
    block, backward = Block(case, ranks), case["pass"] == "forward_backward"
    error = ranks.require(block.error(), what="the divided block", tolerance=2e-2)
    run: Callable[[bool], object] = block.both if backward else block.forward
    buffer = torch.randn(block.dy.shape, device=ranks.device).to(torch.bfloat16)
    kept = dist.ReduceOp.AVG if ranks.target.cuda else dist.ReduceOp.MAX
    # a backward pass runs in threads of its own: captured calls would have to know its streams
    whole = timed(ranks, lambda: run(True), capture=not backward)
    local = timed(ranks, lambda: run(False), capture=not backward)
    alone = timed(ranks, lambda: dist.all_reduce(buffer, op=kept, group=ranks.group()))
    return {
        **whole.columns(), "local_us": f"{local.us:.3f}", "reduce_us": f"{alone.us:.3f}",
        "n_reduces": 2 if backward else 1, "library": ranks.library, "relative_error": f"{error:.2e}",
    }  # fmt: skip
