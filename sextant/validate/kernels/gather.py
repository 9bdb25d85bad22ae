"""``lookups`` random rows of ``dim`` bf16 values from a table of ``rows`` rows, in device or in pinned host memory.

``tier`` says where the table is. Row numbers are drawn afresh before every sample, outside the timed region: one set of
them again would measure caches and address translation. Ways of fetching from the host, as ``variant``:

``''``        a Triton kernel reads the pinned table over the link (for ``hbm``: from device memory)
``cpu_copy``  threads of the CPU gather into a pinned buffer, one copy takes it to the device (tier host only)
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from sextant.validate import timer
from sextant.validate.kernels import CPU_LIBRARY, Case, Prepared, Target, require_close, sizes

BF16 = torch.bfloat16
#: The largest table of each tier; every smaller one is the first part of it.
TABLE_BYTES = {"hbm": 32 * 2**30, "host": 8 * 2**30}
CPU_TABLE_BYTES = 2**20
#: Rows filled at a time, in elements, and the most buffers of results that are rotated.
CHUNK, MAX_BUFFERS = 2**27, 16
N_CHECKED = 4096


@lru_cache(maxsize=4)
def _table(tier: str, n_elements: int, device: str) -> Tensor:
    """Random bf16 values, drawn on the device; tier host on a machine with a GPU: in pinned host memory."""
    host = tier == "host" and device == "cuda"
    table = (
        torch.empty(n_elements, dtype=BF16, pin_memory=True)
        if host
        else torch.empty(n_elements, dtype=BF16, device=device)
    )
    for start in range(0, n_elements, CHUNK):
        part = table[start : start + CHUNK]
        part.copy_(torch.randn(part.numel(), dtype=BF16, device=device))
    return table


def _view(case: Case, target: Target) -> Tensor:
    n_rows, dim = sizes(case, "rows", "dim")
    tier = str(case.get("tier"))
    if tier not in TABLE_BYTES:
        raise ValueError(f"tier: the table is in hbm or host, got {tier!r}")
    limit = TABLE_BYTES[tier] if target.cuda else CPU_TABLE_BYTES
    if n_rows * dim * 2 > limit:
        raise ValueError(f"rows: a table of {n_rows} rows of {dim} is larger than {limit} bytes here")
    # one allocation for small tables, one for all: pinning gigabytes takes seconds
    size = limit if n_rows * dim * 2 > 2**30 or not target.cuda else 2**30
    return _table(tier, size // 2, target.device.type)[: n_rows * dim].view(n_rows, dim)


def _by_kernel(
    table: Tensor, lookups: int, target: Target
) -> tuple[list[timer.Call], timer.Call, list[Tensor], list[Tensor]]:
    """Calls over rotated indices and results, what draws the indices anew, the indices and the results."""
    dim = table.shape[1]
    n_sets = min(MAX_BUFFERS, target.n_sets(4.0 * lookups * dim))
    indices = [torch.zeros(lookups, dtype=torch.int32, device=target.device) for _ in range(n_sets)]
    outs = [torch.full((lookups, dim), float("nan"), dtype=BF16, device=target.device) for _ in range(n_sets)]

    def draw() -> None:
        for index in indices:
            index.random_(0, table.shape[0])

    if target.fused:
        from sextant.validate.kernels import triton_gather

        fetch = partial(triton_gather.gather, n_sms=target.n_sms)
    else:

        def fetch(table: Tensor, index: Tensor, out: Tensor) -> tuple[Tensor]:
            return (torch.index_select(table, 0, index, out=out),)

    return [partial(fetch, table, index, out) for index, out in zip(indices, outs, strict=True)], draw, indices, outs


def _by_cpu(
    table: Tensor, lookups: int, target: Target
) -> tuple[list[timer.Call], timer.Call, list[Tensor], list[Tensor]]:
    """As ``_by_kernel``: the CPU gathers into a pinned buffer, the copy engine moves it, the host waits."""
    dim = table.shape[1]
    index = torch.zeros(lookups, dtype=torch.int32)
    buffer = torch.empty((lookups, dim), dtype=BF16, pin_memory=target.cuda)
    out = torch.full((lookups, dim), float("nan"), dtype=BF16, device=target.device)

    def fetch() -> None:
        torch.index_select(table, 0, index, out=buffer)
        out.copy_(buffer, non_blocking=True)
        if target.cuda:
            torch.cuda.current_stream().synchronize()

    return [fetch], lambda: index.random_(0, table.shape[0]), [index], [out]


def build_gather(case: Case, target: Target) -> Prepared:
    """Prepare one fetch; traffic counts row numbers and rows read, rows written (twice through the pinned buffer)."""
    (lookups,) = sizes(case, "lookups")
    variant = str(case.get("variant", ""))
    by_cpu = variant == "cpu_copy"
    if variant not in ("", "cpu_copy") or (by_cpu and case.get("tier") != "host"):
        raise ValueError(
            f"variant: gather takes '' or, of tier host, cpu_copy; got {variant!r} of {case.get('tier')!r}"
        )
    table = _view(case, target)
    calls, draw, indices, outs = (_by_cpu if by_cpu else _by_kernel)(table, lookups, target)

    def check() -> float:
        draw()
        calls[0]()
        if target.cuda:
            torch.cuda.synchronize()
        errors = []
        for end in (slice(0, N_CHECKED), slice(max(0, lookups - N_CHECKED), lookups)):
            expected = table[indices[0][end].to(table.device).long()]
            errors.append(require_close(outs[0][end], expected.to(target.device), what="the rows", tolerance=1e-9))
        return max(errors)

    row_bytes = 2.0 * lookups * table.shape[1]
    return Prepared(
        calls=tuple(calls),
        check=check,
        library="cpu_gather_copy" if by_cpu else "triton" if target.fused else CPU_LIBRARY,
        read_bytes=row_bytes + 4.0 * lookups,
        write_bytes=row_bytes,
        before=draw,
        sampler=(lambda: timer.HostSampler(calls=calls, before=draw, label="host_sync")) if by_cpu else None,
    )


BUILDERS = {"gather": build_gather}
