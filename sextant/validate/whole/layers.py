"""What all layers of a pass share: where weights come from, what is processed, the residual, dense feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.kernels import Kernels
from sextant.workloads.transformer import Transformer

ROPE_BASE = 10_000.0
#: Standard deviation of what a sublayer adds to the residual, about: its last matrix is drawn that much smaller.
ADDED = 0.5


def whole(value: object) -> int:
    """A dimension as an int; ``ValueError`` where it is none."""
    number = float(value)  # type: ignore[arg-type]
    if number != int(number):
        raise ValueError(f"model: a whole number is needed, got {value!r}")
    return int(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of a model: ``batch`` sequences of ``seq`` new tokens that see ``context``, the kernels that run it, and
    where its tensors are."""

    kernels: Kernels
    device: torch.device
    phase: str
    batch: int
    seq: int
    context: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def n_tokens(self) -> int:
        """New tokens."""
        return self.batch * self.seq

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Random normal values."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device).normal_(0.0, std)

    def matrix(self, n: int, k: int, *, gain: float = 1.0) -> Tensor:
        """Weights [n, k] that keep the spread of what they multiply, times ``gain``."""
        return self.normal(n, k, std=gain * k**-0.5)

    def scales(self, width: int) -> Tensor:
        """Weights of a norm, between 0.5 and 1.5."""
        return torch.rand(width, device=self.device).add_(0.5).to(self.dtype)

    def tables(self, dim: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [seq, dim / 2] of the new tokens' positions, the last ``seq`` of ``context``; FP32."""
        position = torch.arange(self.context - self.seq, self.context, device=self.device, dtype=torch.float32)
        angle = position[:, None] * ROPE_BASE ** (-torch.arange(0, dim, 2, device=self.device) / dim)
        return angle.cos(), angle.sin()


class Residual(Protocol):
    """The residual between sublayers."""

    def enter(self, site: Site) -> Tensor:
        """The normalised input [m, hidden] of the next sublayer."""
        ...

    def leave(self, output: Tensor) -> None:
        """Takes a sublayer's output [m, hidden]."""
        ...

    def last(self, norm: Tensor) -> Tensor:
        """The final norm of every sequence's last token [batch, hidden]."""
        ...


class Site:
    """Weights between residual and sublayer: those of a norm, with several streams also of their mappings."""

    def __init__(self, model: Transformer, at: Pass) -> None:
        hidden, n = whole(model.hidden_size), whole(model.n_streams)
        self.norm = at.scales(hidden)
        if n > 1:
            maps = n * (n + 2)
            self.maps = at.normal(maps, n * hidden, std=(n * hidden) ** -0.5, dtype=torch.float32)
            self.scale = at.normal(3, std=0.5, dtype=torch.float32)
            self.base = at.normal(maps, std=0.5, dtype=torch.float32)


class Single:
    """One stream. A sublayer's output waits for the next norm, which adds it in the same kernel."""

    def __init__(self, x: Tensor, at: Pass) -> None:
        self.x, self.at = x, at
        self.waiting: Tensor | None = None

    def enter(self, site: Site) -> Tensor:
        if self.waiting is None:
            return self.at.kernels.norm(self.x, site.norm)
        self.x, y = self.at.kernels.add_norm(self.x, self.waiting, site.norm)
        return y

    def leave(self, output: Tensor) -> None:
        self.waiting = output

    def last(self, norm: Tensor) -> Tensor:
        """Adds and normalises the last tokens only."""
        step = slice(self.at.seq - 1, None, self.at.seq)
        assert self.waiting is not None, "no sublayer ran"
        return self.at.kernels.add_norm(self.x[step], self.waiting[step], norm)[1]


class Streams:
    """The streams of mHC, x [m, n, hidden]."""

    def __init__(self, x: Tensor, at: Pass, *, n: int, iterations: int) -> None:
        self.x = x.unsqueeze(1).expand(-1, n, -1).contiguous()
        self.at, self.iterations = at, iterations
        self.post = self.res = x

    def enter(self, site: Site) -> Tensor:
        y, self.post, self.res = self.at.kernels.mix_in(
            self.x, site.maps, site.scale, site.base, iterations=self.iterations
        )
        return self.at.kernels.norm(y, site.norm)

    def leave(self, output: Tensor) -> None:
        self.x = self.at.kernels.mix_out(output, self.x, self.post, self.res)

    def last(self, norm: Tensor) -> Tensor:
        """Merges the streams of the last tokens only."""
        return self.at.kernels.norm(self.x[self.at.seq - 1 :: self.at.seq].sum(1), norm)


class Gated:
    """Up and gate in one product, SwiGLU, down."""

    def __init__(self, hidden: int, width: int, at: Pass) -> None:
        self.at = at
        self.up_gate = at.matrix(2 * width, hidden)
        self.down = at.matrix(hidden, width, gain=2 * ADDED)

    def __call__(self, y: Tensor) -> Tensor:
        return F.linear(self.at.kernels.swiglu(F.linear(y, self.up_gate)), self.down)
