"""How long measuring will take: a rough bound per case, to plan runs on machines that are lent for minutes.

A case takes its set-up (drawing inputs, checking, capturing, compiling), and its kernel as often as the budget and the
least number of samples say. The kernel is taken at rates of a data-centre GPU; the estimate is not a prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sextant.validate.cases import Case, split

#: FLOP/s, bytes/s of device memory and of the link, and the least time of a kernel in seconds.
FLOPS_PER_S, BYTES_PER_S, LINK_BYTES_PER_S, LEAST_S = 4e14, 2.5e12, 4e10, 3e-6
#: Seconds of set-up of a case beside its kernel, by operator; and samples taken at least, with those that warm up.
SET_UP_S, LEAST_SAMPLES = {"gather": 0.2, "moe": 0.3, "conv2d": 0.2, "contention": 1.0}, 12
DEFAULT_SET_UP_S = 0.08
#: Bytes drawn per second, for inputs and references.
DRAWN_BYTES_PER_S = 5e10


def _number(case: Case, *names: str) -> float:
    product = 1.0
    for name in names:
        product *= float(case.get(name, 1))
    return product


def work(case: Case) -> tuple[float, float]:
    """FLOPs and bytes of one call, roughly."""
    op = str(case["op"])
    if op == "gemm":
        m, n, k = (_number(case, name) for name in "mnk")
        return 2.0 * m * n * k, 2.0 * (m * n + m * k + n * k)
    if op in ("grouped_gemm", "moe"):
        if op == "moe":
            groups = _number(case, "n_experts") / _number(case, "expert_parallel")
            rows = _number(case, "n_tokens", "top_k") / _number(case, "expert_parallel")
            n, k = 3.0 * _number(case, "expert_ffn"), _number(case, "hidden")
        else:
            groups, n, k = (_number(case, name) for name in ("groups", "n", "k"))
            rows = groups * _number(case, "tokens_per_group")
        return 2.0 * rows * n * k, 2.0 * (groups * n * k + rows * (n + k))
    if op in ("attention", "mla"):
        dim = 2.0 * float(case.get("head_dim", 192))
        scores = _number(case, "batch", "heads", "q_len", "kv_len")
        backward = 2.5 if case.get("direction") == "backward" else 1.0
        cache = _number(case, "batch", "kv_len") * float(case.get("kv_heads", 1)) * 2.0 * dim
        return 2.0 * scores * dim * backward / (2.0 if case.get("causal", 1) == 1 else 1.0), cache
    if op == "conv2d":
        pixels = _number(case, "batch", "height", "width")
        flops = 2.0 * pixels * _number(case, "in_channels", "out_channels", "kernel_size", "kernel_size")
        return flops / _number(case, "groups"), 2.0 * pixels * (
            _number(case, "in_channels") + _number(case, "out_channels")
        )
    if op == "adam":
        return 0.0, 22.0 * _number(case, "n_elements")
    if "bytes" in case:
        return 0.0, 2.0 * _number(case, "bytes")
    if op == "gather":
        return 0.0, 4.0 * _number(case, "lookups", "dim")
    width = float(case.get("hidden", case.get("expert_ffn", 64)))
    return 0.0, 6.0 * _number(case, "n_tokens", "n_streams", "top_k") * width


def seconds(case: Case, budget_us: float) -> float:
    """Seconds to measure one case with ``budget_us`` of kernel time."""
    flops, moved = work(case)
    link = case["op"] in ("h2d", "d2h") or case.get("tier") == "host"
    kernel_s = max(LEAST_S, flops / FLOPS_PER_S, moved / (LINK_BYTES_PER_S if link else BYTES_PER_S))
    set_up_s = SET_UP_S.get(str(case["op"]), DEFAULT_SET_UP_S) + moved / DRAWN_BYTES_PER_S
    return set_up_s + max(budget_us * 1e-6, LEAST_SAMPLES * kernel_s)


def lines(cases: Sequence[Case], budget_us: float) -> list[str]:
    """A table: operator, cases, of them held out, minutes; and the sum."""
    count, held, spent = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        for name in (str(case["op"]), "in all"):
            count[name] += 1
            held[name] += split(case) == "held_out"
            spent[name] += seconds(case, budget_us)  # type: ignore[assignment]
    names = [name for name in count if name != "in all"] + ["in all"]
    head = f"{'operator':20}{'cases':>7}{'held out':>10}{'minutes':>9}"
    return [head, *(f"{name:20}{count[name]:7}{held[name]:10}{spent[name] / 60.0:9.1f}" for name in names)]
