"""Train one model on a corpus: AdamW, a cosine schedule, the loss on held-out tokens at the end.

Every model of a curve sees the same windows in the same order for the same seed. On a GPU the whole step (forward,
backward, optimizer, balancing) is one CUDA graph; its first steps run without one. The loss reported is the mean of
three evaluations on all held-out tokens, at 98, 99 and 100% of the steps.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sextant.validate.allocation.corpus import Corpus
from sextant.validate.allocation.layers import Compute
from sextant.validate.allocation.network import Network
from sextant.validate.allocation.sizes import Budget, Sizes

#: Tables learn so much faster and decay not at all, as in the paper (App. A Table 5).
TABLE_RATE = 5.0
WEIGHT_DECAY, BETAS, CLIP, WARM_UP = 0.1, (0.9, 0.95), 1.0, 0.05
#: Steps before the graph is captured, and evaluations as shares of all steps.
_EAGER_STEPS, _EVALUATED = 3, (0.98, 0.99, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """``loss``: held-out, in nats per token, of each evaluation; ``train_loss``: mean of the last tenth of steps;
    ``busiest``: load of the busiest expert over the mean, of the layer where it is largest."""

    losses: tuple[float, ...]
    train_loss: float
    busiest: float
    seconds: float

    @property
    def loss(self) -> float:
        """The mean of the evaluations."""
        return sum(self.losses) / len(self.losses)


@cache
def _fused(function: Callable) -> Callable:
    torch._dynamo.config.recompile_limit = 64  # one function serves several shapes
    return torch.compile(function, dynamic=False)


def compute(device: torch.device) -> Compute:
    """BF16, compiled and grouped on a GPU; FP32 and plain torch on a CPU."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    return Compute(dtype=dtype, fuse=_fused if cuda else lambda function: function, grouped=cuda)


def rate(step: int, n_steps: int) -> float:
    """Share of the highest learning rate: a linear start, then half a cosine to zero."""
    warm = max(1, round(WARM_UP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm)))


def _groups(net: Network) -> list[dict[str, Any]]:
    """Parameters with their share of the rate and their decay: tables; matrices; vocabulary, norms, taps and biases."""
    tables, matrices, others = [], [], []
    for name, parameter in net.named_parameters():
        own = name.rpartition(".")[2]
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or own in ("embedding", "norms", "taps")
        (tables if own == "table" else others if plain else matrices).append(parameter)
    found = ((tables, TABLE_RATE, 0.0), (matrices, 1.0, WEIGHT_DECAY), (others, 1.0, 0.0))
    return [{"params": part, "share": share, "weight_decay": decay} for part, share, decay in found if part]


class Step:
    """One training step on ``windows`` [batch, seq + 1], which the caller fills; gives the loss of that batch."""

    def __init__(self, net: Network, budget: Budget, device: torch.device) -> None:
        self.net, self.cuda = net, device.type == "cuda"
        self.windows = torch.zeros((budget.batch, budget.seq + 1), dtype=torch.int64, device=device)
        groups = [group | {"lr": torch.zeros((), device=device)} for group in _groups(net)]
        self.rates = [(group["lr"], budget.learning_rate * group["share"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=self.cuda or None, capturable=self.cuda)
        self.parameters = [p for group in groups for p in group["params"]]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.done = 0

    def _run(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.net(self.windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        for layer in self.net.experts():
            layer.balance()
        return loss.detach()

    def __call__(self, share: float) -> Tensor:
        """Step with ``share`` of the highest rate."""
        for now, highest in self.rates:
            now.fill_(share * highest)
        self.done += 1
        if not self.cuda or self.done <= _EAGER_STEPS:
            return self._run().clone()
        self.graph = graph = self.graph or self._captured()
        graph.replay()
        return self.loss.clone()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self.loss = self._run()
        return graph


def windows(tokens: Tensor, starts: Tensor, seq: int) -> Tensor:
    """[n, seq + 1] tokens from each of ``starts`` on, as int64."""
    return tokens[starts[:, None] + torch.arange(seq + 1, device=tokens.device)].long()


def evaluate(net: Network, tokens: Tensor, budget: Budget) -> float:
    """Mean loss over all whole windows of ``tokens``, batch by batch; those left over when batches are full do not
    count. Gradients stay on, for the compiled functions are those of training; none is computed."""
    net.eval()
    starts = torch.arange(0, len(tokens) - budget.seq, budget.seq, device=tokens.device)
    n = max(1, len(starts) // budget.batch)
    losses = [
        net(windows(tokens, starts[i * budget.batch : (i + 1) * budget.batch], budget.seq)).detach().double()
        for i in range(n)
    ]
    net.train()
    return float(torch.stack(losses).mean())


def training(of: Sizes, budget: Budget, corpus: Corpus, seed: int, device: torch.device) -> Iterator[Trained | None]:
    """Train the model ``of`` on ``corpus``: None after every step, then what came out.

    The caller may take turns between several; each stays on the stream that is current when it goes on. ValueError
    where the corpus has fewer windows than the budget's steps need.
    """
    begun_s = time.monotonic()
    needed, found = budget.n_steps * budget.batch, (len(corpus.train) - 1) // budget.seq
    if found < needed:
        raise ValueError(f"corpus: {found} windows of {budget.seq} tokens, {needed} are needed; none is read twice")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Network(of, budget.seq, compute(device)).to(device)
    drawn = torch.randperm(found, generator=torch.Generator().manual_seed(seed))[:needed]
    starts = (drawn * budget.seq).to(device).view(budget.n_steps, budget.batch)
    step, losses, evaluations = Step(net, budget, device), [], []
    stops = {round(share * budget.n_steps) for share in _EVALUATED}
    for i in range(budget.n_steps):
        step.windows.copy_(windows(corpus.train, starts[i], budget.seq))
        losses.append(step(rate(i, budget.n_steps)))
        if i + 1 in stops:
            evaluations.append(evaluate(net, corpus.held_out, budget))
        yield None
    late = torch.stack(losses[-max(1, budget.n_steps // 10) :])
    yield Trained(
        losses=tuple(evaluations), train_loss=float(late.mean()),
        busiest=max(float(layer.busiest()) for layer in net.experts()), seconds=time.monotonic() - begun_s,
    )  # fmt: skip


def train(of: Sizes, budget: Budget, corpus: Corpus, seed: int, device: torch.device) -> Trained:
    """``training`` from the first step to the last."""
    return next(found for found in training(of, budget, corpus, seed, device) if found is not None)
