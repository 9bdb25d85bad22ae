"""Cases that belong to no model: copies, the optimizer, tables of rows, convolutions, collectives."""

from __future__ import annotations

from collections.abc import Iterator

from sextant.validate.case_sets.systems import System
from sextant.validate.cases import Case

LOOKUPS = (16, 256, 2048, 16384, 131072, 1048576)
#: Bytes of the tables: near the reach of caches and translation buffers, and far beyond it.
HBM_TABLES, HOST_TABLES = (2**30, 2**35), (2**30, 2**33)
#: Bytes of rows fetched at once; from the host they take their time.
MAX_HBM_FETCH, MAX_HOST_FETCH, MAX_CPU_FETCH = 3e9, 5e8, 2e8
BATCHES = (1, 4, 16)


def copies() -> Iterator[Case]:
    """Within device memory by a kernel and by the driver, to and from pinned host memory."""
    for exponent in range(12, 33, 2):
        for variant in ("memcpy", "kernel"):
            yield {"op": "copy", "variant": variant, "bytes": 2**exponent}
    for op in ("h2d", "d2h"):
        for exponent in range(12, 29, 2):
            yield {"op": op, "bytes": 2**exponent}
    for n_elements in (10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9):
        yield {"op": "adam", "format": "bf16", "n_elements": n_elements}
    for variant in ("gemm_alone", "gemm_beside_copy", "copy_alone", "copy_beside_gemm"):
        product: Case = {"op": "contention", "format": "bf16", "variant": variant, "m": 4096, "n": 4096, "k": 7168}
        yield product | {"bytes": 2**30}


def tables(system: System) -> Iterator[Case]:
    """Rows of a table in device memory and in host memory; rows of 128 to 2,560 bytes, 16 to a million of them."""
    for dim in system.row_dims:
        row: Case = {"op": "gather", "format": "bf16", "dim": dim}
        for lookups in LOOKUPS:
            fetched = 2.0 * dim * lookups
            for i, size in enumerate(HBM_TABLES):
                if fetched <= MAX_HBM_FETCH and (i == 1 or dim in (80, 640)):
                    yield row | {"tier": "hbm", "rows": size // (2 * dim), "lookups": lookups}
            for i, size in enumerate(HOST_TABLES):
                if fetched <= MAX_HOST_FETCH and (i == 1 or dim in (80, 640)):
                    yield row | {"tier": "host", "rows": size // (2 * dim), "lookups": lookups}
            if fetched <= MAX_CPU_FETCH:
                yield row | {
                    "tier": "host",
                    "rows": HOST_TABLES[1] // (2 * dim),
                    "lookups": lookups,
                    "variant": "cpu_copy",
                }


def convolutions(system: System) -> Iterator[Case]:
    """Decoders of images, and the depthwise convolutions of a generator."""
    for c_in, c_out, pixels, kernel in system.convolutions:
        stride = 2 if (c_in, c_out) in ((256, 512), (512, 1024)) and pixels in (48, 96) else 1
        for batch in BATCHES:
            case: Case = {"op": "conv2d", "format": "bf16", "direction": "forward", "batch": batch, "groups": 1}
            case |= {"in_channels": c_in, "out_channels": c_out, "height": pixels, "width": pixels}
            yield case | {"kernel_size": kernel, "stride": stride}
    for channels, pixels in system.depthwise:
        for batch in (*BATCHES, 32):
            case = {"op": "conv2d", "format": "bf16", "direction": "forward", "batch": batch, "groups": channels}
            case |= {"in_channels": channels, "out_channels": channels, "height": pixels, "width": pixels}
            yield case | {"kernel_size": 7, "stride": 1}


def collectives(n_gpus: int) -> Iterator[Case]:
    """Every collective over messages of 256 to 2^28 elements of the larger buffer."""
    for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        for exponent in range(8, 29):
            yield {"op": op, "format": "bf16", "n_gpus": n_gpus, "message_elements": 2**exponent}
