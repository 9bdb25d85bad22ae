"""Reads and writes of hyper-connections per token: the published table row by row, and the operators beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant.workloads.models import model
from sextant.workloads.ops import hyperconnection
from sextant.workloads.ops.hyperconnection import accesses, gradients, total
from sextant.workloads.ops.memory import Place

MHC = model("mhc-27b")
STREAMS = [(2.0, 1280.0), (4.0, 2560.0), (4.0, 7168.0), (8.0, 2560.0)]

#: Table 2 of arXiv:2512.24880, elements read and written per token, as printed.
UNFUSED = {
    "mappings": (lambda n, c: n * c, lambda n, c: n**2 + 2 * n),
    "apply_pre": (lambda n, c: n * c + n, lambda n, c: c),
    "apply_post": (lambda n, c: c + n, lambda n, c: n * c),
    "apply_res": (lambda n, c: n * c + n**2, lambda n, c: n * c),
    "merge": (lambda n, c: 2 * n * c, lambda n, c: n * c),
}


def place(*, fused: bool = False, recompute: tuple[str, ...] = ()) -> Place:
    return Place(
        part="moe_layer", block="attention", training=True, recompute=recompute, streams="fused" if fused else "unfused"
    )


def ops(n: float, width: float, where: Place, m: float = 1.0):
    found = replace(MHC, n_streams=n, hidden_size=width)
    sites = hyperconnection.pre("s", where, m, found) + hyperconnection.post("s", where, m, found)
    return {op.name: op for op in sites}


@pytest.mark.parametrize(("n", "width"), STREAMS)
def test_every_row_of_the_published_table(n: float, width: float) -> None:
    rows = accesses(n, width, "unfused")
    assert rows.keys() == UNFUSED.keys()
    for name, (read, written) in UNFUSED.items():
        assert (rows[name].n_read, rows[name].n_written) == (read(n, width), written(n, width)), name


@pytest.mark.parametrize(("n", "width"), STREAMS)
def test_the_published_totals(n: float, width: float) -> None:
    """Unfused (5n+1)C + n^2 + 2n and (3n+1)C + n^2 + 2n; fused (3n+1)C and (n+1)C, the same mappings; plain 2C, C."""
    maps = n**2 + 2 * n
    whole = total(accesses(n, width, "unfused"))
    assert (whole.n_read, whole.n_written) == ((5 * n + 1) * width + maps, (3 * n + 1) * width + maps)
    fused = total(accesses(n, width, "fused"))
    assert (fused.n_read, fused.n_written) == ((3 * n + 1) * width + maps, (n + 1) * width + maps)
    plain = total(accesses(n, width, "plain"))
    assert (plain.n_read, plain.n_written) == (2 * width, width)


def test_fusing_post_res_and_merge_saves_what_is_published() -> None:
    """s4.3.1: reads from (3n+1)C to (n+1)C, writes from 3nC to nC; at n = 4 and C = 7168 34, 18 and 3 C in all."""
    n, c = 4.0, 7168.0
    apart, whole = accesses(n, c, "unfused"), accesses(n, c)
    three = [apart[name] for name in ("apply_post", "apply_res", "merge")]
    assert (sum(row.read for row in three), whole["apply_post_res"].read) == ((3 * n + 1) * c, (n + 1) * c)
    assert (sum(row.written for row in three), whole["apply_post_res"].written) == (3 * n * c, n * c)
    elements = {k: total(accesses(n, c, k)) for k in ("unfused", "fused", "plain")}
    assert [(row.read + row.written) / c for row in elements.values()] == [34.0, 18.0, 3.0]


def test_arrays_of_streams_and_widths_are_their_scalars() -> None:
    n, width = np.array([each[0] for each in STREAMS]), np.array([each[1] for each in STREAMS])
    for rows in (lambda n, c: accesses(n, c, "unfused"), accesses, gradients):
        whole = rows(n, width)
        for i, at in enumerate(STREAMS):
            for name, row in rows(*at).items():
                for end in ("n_read", "n_written", "read_bytes", "write_bytes"):
                    assert np.broadcast_to(getattr(whole[name], end), n.shape)[i] == getattr(row, end), (name, end)


@pytest.mark.parametrize(("n", "width"), STREAMS)
def test_unfused_operators_move_the_bytes_of_the_table(n: float, width: float) -> None:
    """Tensors in BF16, mappings in FP32, except those that the product writes: a library writes BF16."""
    rows, found = accesses(n, width, "unfused"), ops(n, width, place())
    for name, row in {"s_pre": "apply_pre", "s_post": "apply_post", "s_res": "apply_res", "s_merge": "merge"}.items():
        assert found[name].shape["read_bytes"] == rows[row].read_bytes
        assert found[name].shape["write_bytes"] == rows[row].write_bytes
    maps, product = n * n + 2 * n, ops(n, width, place(), m=1e9)["s_mappings"]
    weights = 2 * n * width * maps
    moved = (float(product.traffic_bytes["hbm"]) - weights) / 1e9
    assert moved == pytest.approx(2 * rows["mappings"].read + 2 * rows["mappings"].mappings_written, rel=1e-12)


@pytest.mark.parametrize(("n", "width"), STREAMS)
def test_fused_operators_move_the_tensors_of_the_table(n: float, width: float) -> None:
    """TileKernels: the same tensors; of mappings 3 (n^2 + 2 n) before the layer, not n^2 + 3 n, after it n^2 + n."""
    rows, found = accesses(n, width), ops(n, width, place(fused=True))
    maps = n * n + 2 * n
    before = float(found["s_pre"].traffic_bytes["hbm"]) - 4 * n * width * maps
    made = [rows["mappings"], rows["apply_pre"]]
    assert before - 4 * 3 * maps == sum(2 * (row.read + row.written) for row in made)
    assert sum(row.mappings_read + row.mappings_written for row in made) == maps + n
    after = rows["apply_post_res"]
    assert float(found["s_post"].traffic_bytes["hbm"]) == after.read_bytes + after.write_bytes


@pytest.mark.parametrize(("n", "width"), STREAMS)
def test_unfused_backward_reads_both_inputs_of_every_product(n: float, width: float) -> None:
    """(8 n + 2) C read and (4 n + 1) C written beside the products of the mappings; fused TileKernels moves less."""
    whole = total(gradients(n, width))
    assert (whole.read, whole.written) == ((8 * n + 2) * width, (4 * n + 1) * width)

    def moved(fused: bool) -> float:
        back = [op for op in ops(n, width, place(fused=fused), m=1e6).values() if op.phase != "forward"]
        return sum(float(op.traffic_bytes["hbm"]) for op in back) / 1e6

    assert moved(fused=True) < moved(fused=False)


def test_unfused_recompute_runs_the_same_kernels_again() -> None:
    """All that applies mappings, nothing that makes them: they were kept."""
    again = ops(4.0, 2560.0, place(recompute=("mhc",)), m=64.0)
    found = {name.removesuffix("_recompute"): op for name, op in again.items() if name.endswith("_recompute")}
    assert found.keys() == {"s_pre", "s_norm", "s_post", "s_res", "s_merge"}
    for name, op in found.items():
        assert op.phase == "backward_input" and op.traffic_bytes == again[name].traffic_bytes


def test_phases_and_names_of_unfused_operators() -> None:
    found = ops(4.0, 2560.0, place(recompute=("mhc",)), m=64.0)
    assert {op.phase for op in found.values()} == {"forward", "backward_input", "backward_weight"}
    assert found["s_sinkhorn"].kind == "sinkhorn" and found["s_mappings"].kind == "gemm"
    # Of one rank's tokens tensor parallelism divides the tokens.
    assert found["s_mappings"].shards["tensor"] == found["s_mappings_dgrad"].shards["tensor"] == ("m",)
    assert found["s_mappings_wgrad"].shards["tensor"] == ("k",)
