"""What an inference engine does on the host and beside its layers, measured: one synchronous iteration of a plain one.

The engine is this file's own, of the kind that fits a page: Python objects for requests, lists of token ids, positions,
slots and block tables made anew in each iteration, pinned tensors sent to the GPU and copied into the inputs of a
captured graph, sampled ids brought back, appended request by request. The model is one kernel, so that what remains is
the host's. Beside it: the sampler over the vocabulary (FP32 softmax with temperatures, exponential draws, arg-max), how
long the host takes to enqueue one layer that is not captured, and the hash of n-grams on the CPU.

    python -m sextant.validate.engine_loop [--out FILE] [--seconds S] [--smoke]

Needs torch and nothing else, so that the file can be run where the package is not. Rows: work, n (requests; tokens for
``prefill_loop``), us, us_p10, us_p90, n_repeats.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import Tensor

BLOCK_TOKENS = 256
MAX_REQUESTS, MAX_BLOCKS = 512, 16
#: Sizes of Qwen3-4B: vocabulary, hidden, query and key heads, width of a head, feed-forward.
VOCABULARY, HIDDEN, HEADS, KV_HEADS, WIDTH, FFN = 151_936, 2560, 32, 8, 128, 9728
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512)
PROMPT_TOKENS = (512, 2048, 8192, 16384)
ORDERS, HASHES = (2, 3), 8


class Request:
    """One sequence with its tokens and the blocks of its cache."""

    __slots__ = ("blocks", "limit", "temperature", "tokens")

    def __init__(self, tokens: list[int], limit: int) -> None:
        self.tokens, self.limit, self.temperature = tokens, limit, 0.6
        self.blocks: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)


class Engine:
    """Requests, a pool of blocks, and the input buffers of a captured step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pinned = device, device.type == "cuda"
        self.free: deque[int] = deque(range(MAX_REQUESTS * MAX_BLOCKS))
        self.running: deque[Request] = deque()
        self.prompt = [random.randrange(VOCABULARY) for _ in range(max(PROMPT_TOKENS))]
        make = {"device": device, "dtype": torch.int64}
        self.ids = torch.zeros(MAX_REQUESTS, **make)
        self.positions = torch.zeros(MAX_REQUESTS, **make)
        self.slots = torch.zeros(MAX_REQUESTS, device=device, dtype=torch.int32)
        self.lengths = torch.zeros(MAX_REQUESTS, device=device, dtype=torch.int32)
        self.tables = torch.zeros(MAX_REQUESTS, MAX_BLOCKS, device=device, dtype=torch.int32)
        self.sampled = torch.zeros(MAX_REQUESTS, **make)
        self.replay = self._captured()

    def _captured(self) -> Callable[[], object]:
        def step() -> None:
            torch.add(self.ids, self.positions, out=self.sampled)

        if not self.pinned:
            return step
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def sent(self, values: list, dtype: torch.dtype) -> Tensor:
        """A list as a tensor on the device, through pinned memory."""
        made = torch.tensor(values, dtype=dtype, pin_memory=self.pinned)
        return made.to(self.device, non_blocking=True) if self.pinned else made

    def admit(self, n: int) -> None:
        """Fill the engine with ``n`` requests half-way through their outputs."""
        self.running.clear()
        for _ in range(n):
            length = random.randint(100, 1024) + random.randint(1, 1024)
            request = Request([random.randrange(VOCABULARY) for _ in range(length)], 1 << 30)
            request.blocks = [random.randrange(len(self.free)) for _ in range(-(-length // BLOCK_TOKENS))]
            self.running.append(request)

    def chosen(self) -> list[Request]:
        """The requests of this iteration: each must have a block for its next token."""
        batch = []
        while self.running and len(batch) < MAX_REQUESTS:
            request = self.running.popleft()
            if len(request) % BLOCK_TOKENS == 1 and len(request.blocks) * BLOCK_TOKENS < len(request):
                request.blocks.append(self.free.popleft())
            batch.append(request)
        self.running.extendleft(reversed(batch))
        return batch

    def fed(self, batch: list[Request]) -> Tensor:
        """Inputs of a decode step, brought into the buffers of the graph; the temperatures."""
        ids, positions, slots, lengths = [], [], [], []
        for request in batch:
            ids.append(request.tokens[-1])
            positions.append(len(request) - 1)
            lengths.append(len(request))
            slots.append(request.blocks[-1] * BLOCK_TOKENS + (len(request) - 1) % BLOCK_TOKENS)
        width = max(len(request.blocks) for request in batch)
        tables = [request.blocks + [-1] * (width - len(request.blocks)) for request in batch]
        n = len(batch)
        inputs = (self.sent(ids, torch.int64), self.sent(positions, torch.int64), self.sent(slots, torch.int32))
        held, table = self.sent(lengths, torch.int32), self.sent(tables, torch.int32)
        temperatures = self.sent([request.temperature for request in batch], torch.float32)
        self.slots.fill_(-1)
        self.lengths.zero_()
        for buffer, given in zip((self.ids, self.positions, self.slots), inputs, strict=True):
            buffer[:n] = given
        self.lengths[:n] = held
        self.tables[:n, :width] = table[:, :MAX_BLOCKS]
        return temperatures

    def iterate(self) -> None:
        """One synchronous decode iteration; a token that would outgrow the tables starts its request anew."""
        batch = self.chosen()
        self.fed(batch)
        self.replay()
        for request, token in zip(batch, self.sampled[: len(batch)].tolist(), strict=True):
            request.tokens.append(token)
            if len(request) >= request.limit:
                self.running.remove(request)

    def prefill(self, n_tokens: int) -> None:
        """Inputs of a prefill of ``n_tokens`` in prompts of 512, made and sent; blocks are hashed by their content."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends = [0]
        for first in range(0, n_tokens, 512):
            prompt = self.prompt[first : first + 512]
            ids.extend(prompt)
            positions.extend(range(len(prompt)))
            for start in range(0, len(prompt), BLOCK_TOKENS):
                hash(tuple(prompt[start : start + BLOCK_TOKENS]))
                slots.extend(range(first + start, first + start + BLOCK_TOKENS))
            ends.append(len(ids))
        for values, dtype in ((ids, torch.int64), (positions, torch.int64), (slots, torch.int32), (ends, torch.int32)):
            self.sent(values, dtype)
        self.sampled[:1].tolist()


def sample(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Tokens drawn from the softmax of ``logits`` over ``temperatures``: arg-max of probabilities over exponentials."""
    probabilities = torch.softmax(logits.float() / temperatures[:, None], dim=-1)
    noise = torch.empty_like(probabilities).exponential_(1.0).clamp_min_(1e-10)
    return (probabilities / noise).argmax(dim=-1)


def hashed(engine: Engine, multipliers: list[int], rows: int) -> Tensor:
    """Numbers of table rows of the next token of every request, hashed on the CPU and sent."""
    last = torch.tensor([request.tokens[-max(ORDERS) :] for request in engine.running], dtype=torch.int64)
    found = []
    mixed = last[:, -1] * multipliers[0]
    for order in ORDERS:
        mixed = mixed ^ (last[:, -order] * multipliers[order - 1])
        found += [mixed % (rows + 2 * i + 1) for i in range(HASHES)]
    ids = torch.stack(found, dim=1)
    return ids.pin_memory().to(engine.device, non_blocking=True) if engine.pinned else ids


def normed(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """RMSNorm of the sum with the residual, and the sum."""
    both = x.float() + residual.float()
    return (both * torch.rsqrt(both.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype), both.to(x.dtype)


def head_norm(x: Tensor) -> Tensor:
    """RMSNorm of each head."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on the two halves of each head."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1).to(x.dtype)


def gated(x: Tensor) -> Tensor:
    """SiLU of the first half times the second."""
    a, b = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(a) * b


def layer(device: torch.device, n_tokens: int) -> Callable[[], object]:
    """A decoder layer of Qwen3-4B without a graph; its small operators are compiled, as engines have them. On the CPU
    all widths are an eighth."""
    draw = {"device": device, "dtype": torch.bfloat16}
    size = 8 if device.type == "cpu" else 1
    hidden, ffn, q, kv = (width // size for width in (HIDDEN, FFN, HEADS * WIDTH, KV_HEADS * WIDTH))
    shapes = ((q + 2 * kv, hidden), (hidden, q), (2 * ffn, hidden), (hidden, ffn))
    weights = [torch.randn(*shape, **draw) * 0.02 for shape in shapes]
    x, residual = torch.randn(n_tokens, hidden, **draw), torch.randn(n_tokens, hidden, **draw)
    cache, at = torch.zeros(4096, 2 * kv, **draw), torch.arange(n_tokens, device=device)
    angles = torch.randn(n_tokens, 1, WIDTH // 2, device=device)
    compiled = torch.compile if device.type == "cuda" else (lambda f: f)
    norm, heads_norm, turn, gate = (compiled(f) for f in (normed, head_norm, turned, gated))
    linear, attend = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention

    def run() -> Tensor:
        y, kept = norm(x, residual)
        query, key, value = linear(y, weights[0]).split((q, kv, kv), dim=-1)
        query, key = (turn(heads_norm(part.unflatten(-1, (-1, WIDTH))), angles) for part in (query, key))
        cache.index_copy_(0, at, torch.cat((key.flatten(1), value), -1))
        heads = [part.transpose(0, 1)[None] for part in (query, key, value.unflatten(-1, (-1, WIDTH)))]
        seen = attend(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1).flatten(1)
        y, kept = norm(linear(seen, weights[1]), kept)
        return linear(gate(linear(y, weights[2])), weights[3])

    return run


def timed(call: Callable[[], object], seconds: float, device: torch.device, *, drained: bool = True) -> list[float]:
    """Microseconds of calls for ``seconds``; with ``drained`` the device is idle before each and finished after it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for _ in range(3):
        call()
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < 5 or time.perf_counter() < stop:
        wait()
        start = time.perf_counter()
        call()
        if drained:
            wait()
        found.append((time.perf_counter() - start) * 1e6)
    return found


def measured(device: torch.device, seconds: float, requests: tuple[int, ...]) -> list[dict[str, object]]:
    """All rows of the file."""
    rows: list[dict[str, object]] = []

    def note(work: str, n: int, us: list[float], per: float = 1.0) -> None:
        tenths = statistics.quantiles(us, n=10)
        found = {"us": statistics.median(us), "us_p10": tenths[0], "us_p90": tenths[-1]}
        ends = {key: f"{value / per:.2f}" for key, value in found.items()}
        rows.append({"work": work, "n": n, **ends, "n_repeats": len(us)})
        print(work, n, ends, file=sys.stderr, flush=True)

    engine = Engine(device)
    random.seed(0)
    for n in requests:
        engine.admit(n)
        note("decode_loop", n, timed(engine.iterate, seconds, device))
        note("ngram_hash_cpu", n, timed(lambda: hashed(engine, [3, 5, 7], 78_125_000), seconds, device))
    for n in PROMPT_TOKENS if device.type == "cuda" else PROMPT_TOKENS[:2]:
        note("prefill_loop", n, timed(lambda n=n: engine.prefill(n), seconds, device))
    compiled = torch.compile(sample, dynamic=True) if device.type == "cuda" else sample
    for n in requests if device.type == "cuda" else requests[:3]:
        logits = torch.randn(n, VOCABULARY, device=device, dtype=torch.bfloat16)
        temperatures = torch.full((n,), 0.6, device=device)
        for name, call in (("sampler_compiled", compiled), ("sampler_eager", sample)):
            note(name, n, _on_device(lambda call=call, at=logits, t=temperatures: call(at, t), seconds, device))
    one = layer(device, 64)

    def many() -> None:
        for _ in range(36):
            one()

    note("layer_enqueued", 64, timed(many, seconds, device, drained=False), per=36.0)
    note("layer_finished", 64, timed(many, seconds, device), per=36.0)
    return rows


def _on_device(call: Callable[[], object], seconds: float, device: torch.device) -> list[float]:
    """Microseconds of the device for one call: several between two events; a host clock where there is none."""
    if device.type != "cuda":
        return timed(call, seconds, device)
    for _ in range(3):
        call()
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < 5 or time.perf_counter() < stop:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(1_000_000)  # the device is busy while the host enqueues
        start.record()
        for _ in range(4):
            call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 250.0)
    return found


def header(device: torch.device) -> list[str]:
    """Lines that say where and how the rows came about."""
    cuda = device.type == "cuda"
    about = {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(), "host": processor(),
        "cores": os.cpu_count(), "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": "python -m sextant.validate.engine_loop",
        "timing": "decode_loop, prefill_loop, ngram_hash_cpu: host clock, device drained; sampler: four calls between "
        "events; layer: 36 in a row, per layer, enqueued (host only) and finished",
    }  # fmt: skip
    return [f"# {key}: {value}" for key, value in about.items()]


def processor() -> str:
    """The host's processor, by name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="engine_loop.csv")
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--smoke", action="store_true", help="few sizes, on the CPU")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not given.smoke else "cpu")
    rows = measured(device, 0.02 if given.smoke else given.seconds, REQUESTS[:4] if given.smoke else REQUESTS)
    with open(given.out, "w", encoding="utf-8", newline="") as out:
        out.write("\n".join(header(device)) + "\n")
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
