"""A training step of a pipeline with one stage per GPU, played from the simulator's own instruction lists.

A stage is ``n_layers`` layers (``layer``), a micro-batch one sequence of ``n_tokens``. Activations and their gradients
travel in bf16 over two communicators, one per direction. The last stage's loss is the sum of its outputs, weighted at
random. The optimizer does not run.

    us             one step: all micro-batches, on the slowest rank
    forward_us     of one micro-batch on every stage, alone (values by stage, separated by blanks); so backward_us
    send_us        one message to the next stage, alone
    busy_us        micro-batches x (forward + backward) of the slowest stage
    bubble_share   1 - busy_us / us
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sextant.simulator.schedule import Work, instructions
from sextant.validate.node.layer import Layer
from sextant.validate.node.layer_cases import SMALL, V3
from sextant.validate.node.processes import Ranks
from sextant.validate.node.timing import span_us, timed

Case = dict[str, str | int]

CASE_COLUMNS = ("schedule", "n_gpus", "n_layers", "n_tokens", "n_micro_batches", "hidden")
RESULT_COLUMNS = (
    "us", "us_p10", "us_p90", "n_samples", "forward_us", "backward_us", "send_us", "busy_us", "bubble_share",
    "peak_bytes", "library",
)  # fmt: skip
N_STEPS = 5


def cases(n_gpus: int, small: bool) -> list[Case]:
    """1F1B with as many micro-batches as stages and more, up to 16; GPipe, which holds all of them, with few."""
    hidden, tokens, layers = (SMALL.hidden, 32, 1) if small else (V3.hidden, 4096, 2)
    plans = [("1f1b", 2 * n_gpus), ("gpipe", n_gpus)]
    if not small:
        plans = [*(("1f1b", m) for m in (n_gpus, 2 * n_gpus, 4 * n_gpus, 16)), ("gpipe", min(2 * n_gpus, 8))]
    return [
        {
            "schedule": schedule, "n_gpus": n_gpus, "n_layers": layers, "n_tokens": tokens, "n_micro_batches": m,
            "hidden": hidden,
        }
        for schedule, m in dict.fromkeys(plans)
    ]  # fmt: skip


class Stage:
    """This rank's layers, its program, and the messages that travel."""

    def __init__(self, ranks: Ranks, n_layers: int, n_tokens: int, hidden: int) -> None:
        width = V3 if hidden == V3.hidden else SMALL
        self.ranks, self.shape = ranks, (n_tokens, width.hidden)
        self.layers = nn.Sequential(*(Layer(width, n_tokens, ranks.device) for _ in range(n_layers)))
        self.first, self.last = ranks.rank == 0, ranks.rank == ranks.size - 1
        self.tokens = torch.randn(self.shape, device=ranks.device).to(torch.bfloat16)
        self.gradient = (torch.randn(self.shape, device=ranks.device) / n_tokens).to(torch.bfloat16)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.sent: list[tuple[Any, Tensor]] = []

    def forward(self, i: int, x: Tensor) -> Tensor:
        """Micro-batch ``i`` through the layers; its graph is held until its backward."""
        x = x.detach().requires_grad_(True)
        y = self.layers(x)
        self.held[i] = (x, y)
        return y.detach()

    def backward(self, i: int, dy: Tensor) -> Tensor:
        """The gradient of micro-batch ``i``'s input; those of the weights are added up."""
        x, y = self.held.pop(i)
        y.backward(dy)
        assert x.grad is not None
        return x.grad

    def run(self, program: tuple[Work, ...]) -> None:
        """One step. Each direction has its own communicator, so the order of the two never matters."""
        forth, back = self.ranks.group("forth"), self.ranks.group("back")
        rank = self.ranks.rank
        for work in program:
            if work.f >= 0:
                x = self.tokens if self.first else self._received(rank - 1, forth)
                y = self.forward(work.f, x)
                if not self.last:
                    self._send(y, rank + 1, forth)
            if work.b >= 0:
                dy = self.gradient if self.last else self._received(rank + 1, back)
                dx = self.backward(work.b, dy)
                if not self.first:
                    self._send(dx, rank - 1, back)
        for sending, _ in self.sent:
            sending.wait()
        self.sent.clear()

    def _received(self, source: int, group: Any) -> Tensor:
        found = torch.empty(self.shape, dtype=torch.bfloat16, device=self.ranks.device)
        coming = dist.irecv(found, source, group=group)
        assert coming is not None
        coming.wait()
        return found

    def _send(self, what: Tensor, to: int, group: Any) -> None:
        self.sent.append((dist.isend(what, to, group=group), what))


def _stage(case: Case, ranks: Ranks) -> tuple[Stage, list[float], list[float], float]:
    """The stage, the forward and backward time of every stage alone, and that of a message; kept for other cases."""
    key = f"stage {case['n_layers']} {case['n_tokens']}"
    if key not in ranks.kept:
        stage = Stage(ranks, int(case["n_layers"]), int(case["n_tokens"]), int(case["hidden"]))
        forward, backward = _alone(ranks, stage)
        ranks.kept[key] = (stage, ranks.gathered(forward), ranks.gathered(backward), _message_us(ranks, stage))
    return ranks.kept[key]


def _alone(ranks: Ranks, stage: Stage) -> tuple[float, float]:
    """Median microseconds of this stage's forward and backward of one micro-batch."""
    spans: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(8):
        spans["forward"].append(span_us(ranks, lambda: stage.forward(0, stage.tokens)))
        spans["backward"].append(span_us(ranks, lambda: stage.backward(0, stage.gradient)))
    return median(spans["forward"][3:]), median(spans["backward"][3:])


def _message_us(ranks: Ranks, stage: Stage) -> float:
    """Microseconds of one message from the first stage to the second, which both wait for."""
    found = torch.empty_like(stage.tokens)

    def call() -> None:
        if ranks.rank == 0:
            dist.send(stage.tokens, 1, group=ranks.group("forth"))
        elif ranks.rank == 1:
            dist.recv(found, 0, group=ranks.group("forth"))

    return timed(ranks, call, capture=False).us


def measure(case: Case, ranks: Ranks) -> dict[str, str | int | float]:
    """One row."""
    for direction in ("forth", "back"):  # made here, since not every rank sends or receives
        ranks.group(direction)
    m = int(case["n_micro_batches"])
    stage, forward, backward, send = _stage(case, ranks)
    program = instructions(str(case["schedule"]), ranks.rank, ranks.size, m)
    step: Callable[[], object] = lambda: stage.run(program)  # noqa: E731
    if ranks.target.cuda:
        torch.cuda.reset_peak_memory_stats()
    span_us(ranks, step)
    samples = sorted(ranks.slowest([span_us(ranks, step) for _ in range(N_STEPS)]))
    peak = torch.cuda.max_memory_allocated() if ranks.target.cuda else 0
    us, busy = median(samples), m * max(f + b for f, b in zip(forward, backward, strict=True))
    return {
        "us": f"{us:.1f}", "us_p10": f"{samples[0]:.1f}", "us_p90": f"{samples[-1]:.1f}", "n_samples": N_STEPS,
        "forward_us": " ".join(f"{value:.1f}" for value in forward),
        "backward_us": " ".join(f"{value:.1f}" for value in backward), "send_us": f"{send:.2f}",
        "busy_us": f"{busy:.1f}", "bubble_share": f"{1.0 - busy / us:.4f}",
        "peak_bytes": f"{ranks.slowest([float(peak)])[0]:.0f}", "library": ranks.library,
    }  # fmt: skip
