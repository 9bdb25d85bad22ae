"""mHC as operators: published bytes, parameters and recompute blocks; backward passes; division over tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.types import Op, Plan
from sextant.workloads import parameters
from sextant.workloads import traffic as traffic_of
from sextant.workloads.models import model
from sextant.workloads.ops import hyperconnection
from sextant.workloads.ops.memory import Place

MHC = model("mhc-27b")
NAMES = ("mhc-3b", "mhc-9b", "mhc-27b")


def place(*, training: bool = True, recompute: tuple[str, ...] = ()) -> Place:
    return Place(part="moe_layer", block="attention", training=training, recompute=recompute)


def site(m, found, where: Place) -> list[Op]:
    return hyperconnection.pre("s", where, m, found) + hyperconnection.post("s", where, m, found)


def traffic(ops: list[Op], phase: str) -> float:
    return sum(float(op.traffic_bytes["hbm"]) for op in ops if op.phase == phase)


@pytest.mark.parametrize("name", NAMES)
def test_published_parameter_counts(name: str) -> None:
    """mHC App. A.1; the published figures have three digits, and the width of one dense layer is assumed."""
    found = model(name)
    assert parameters.n_parameters(found) == pytest.approx(found.official["n_parameters"], rel=2e-3)
    assert parameters.activated_parameters(found) == pytest.approx(found.official["n_activated_parameters"], rel=2e-3)
    vocabulary = 2.0 * found.vocab_size * found.hidden_size
    assert vocabulary == pytest.approx(found.official["vocabulary_parameters"], rel=2e-3)


def test_parameters_of_a_site_are_the_published_matrices() -> None:
    """eq. 10 to 15: phi_pre and phi_post (nC, n), phi_res (nC, n^2), their biases, three scales."""
    n, wide = 4, 4 * 2560
    shapes = [(wide, n), (wide, n), (wide, n * n), (n,), (n,), (n, n), (), (), ()]
    assert hyperconnection.parameters(MHC) == sum(int(np.prod(shape)) for shape in shapes)


def test_a_fused_sublayer_moves_the_published_bytes() -> None:
    """Three kernels of s4.3.1 at C = 7168: 18 C elements, 258 KB per token; the layer's own norm moves 2 C more."""
    wide = replace(MHC, hidden_size=7168.0)
    ops = site(1e6, wide, place(training=False))
    streams = [op for op in ops if not op.name.endswith("_norm")]
    assert traffic(streams, "forward") / 1e6 == pytest.approx(258e3, rel=0.004)
    norm = next(op for op in ops if op.name == "s_norm")
    assert norm.traffic_bytes["hbm"] / 1e6 == 2 * 2 * 7168


def test_names_are_unique_and_phases_are_right() -> None:
    ops = site(4096.0, MHC, place(recompute=("mhc",)))
    assert len({op.name for op in ops}) == len(ops)
    assert {op.phase for op in ops} == {"forward", "backward_input"}
    assert all(op.phase == "backward_input" for op in ops if "backward" in op.name or "recompute" in op.name)
    assert {op.phase for op in site(1.0, MHC, place(training=False))} == {"forward"}


def test_the_mappings_cost_two_flops_per_weight_and_token_and_twice_that_backward() -> None:
    ops = {op.name: op for op in site(100.0, MHC, place())}
    weights = float(hyperconnection.parameters(MHC)) - 24 - 3
    apply = 2 * 4 * 2560
    assert ops["s_pre"].flops == 100 * (2 * weights + apply)
    assert ops["s_pre_backward"].flops == 2 * ops["s_pre"].flops


def test_expand_and_merge_mirror_each_other() -> None:
    for training in (False, True):
        grow = hyperconnection.expand(place(training=training), 100.0, MHC)
        shrink = hyperconnection.merge(place(training=training), 100.0, MHC)
        assert [op.shape["read_bytes"] for op in grow] == [op.shape["write_bytes"] for op in shrink]
        assert [op.shape["write_bytes"] for op in grow] == [op.shape["read_bytes"] for op in shrink]
    assert grow[0].shape == {"read_bytes": 2 * 100 * 2560.0, "write_bytes": 4 * 2 * 100 * 2560.0}
    assert [op.phase for op in grow] == ["forward", "backward_input"]


@pytest.mark.parametrize(("layers", "length"), [(30.0, 6.3), (61.0, 9.0)])
def test_blocks_are_next_to_the_published_optimum(layers: float, length: float) -> None:
    """eq. 20: sqrt(nL / (n + 2)); 6.3 for the 27B, 9.0 for 61 layers."""
    found = float(hyperconnection.block_sites(replace(MHC, num_hidden_layers=layers)))
    assert abs(found - length) <= 1.0 and found == round(found)


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("layers", [1, 12, 30, 61, 126])
def test_no_block_length_keeps_much_less(n: int, layers: int) -> None:
    """Every integer tried: the rounded optimum is within 5% of the best, whose ceiling it does not search."""
    found = replace(MHC, n_streams=float(n), num_hidden_layers=float(layers))
    sites = 2 * layers
    kept = {length: n * np.ceil(sites / length) + (n + 2) * length for length in range(1, sites + 1)}
    assert kept[int(hyperconnection.block_sites(found))] <= 1.05 * min(kept.values())


@pytest.mark.parametrize(("layers", "stages", "blocks", "length"), [
    (30, 1, 10, 6), (30, 2, 5, 6), (30, 4, 3, 5), (30, 10, 1, 6), (30, 30, 1, 2), (61, 1, 14, 9), (61, 16, 1, 8),
])  # fmt: skip
def test_blocks_end_with_their_stage(layers: int, stages: int, blocks: int, length: int) -> None:
    """s4.3.2: no block crosses a stage, so a stage has a whole number of them; a short stage is one block."""
    found = replace(MHC, num_hidden_layers=float(layers))
    assert hyperconnection.blocks(found, float(stages)) == blocks
    assert hyperconnection.block_sites(found, float(stages)) == length
    assert hyperconnection.stage_sites(found, float(stages)) * stages == 2 * layers


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize(("layers", "stages"), [(30, 4), (61, 16), (61, 8), (126, 6)])
def test_no_number_of_blocks_per_stage_keeps_less(n: int, layers: int, stages: int) -> None:
    """eq. 20 with whole blocks in every stage: tried one by one."""
    found = replace(MHC, n_streams=float(n), num_hidden_layers=float(layers))
    sites = 2 * layers / stages
    kept = {k: n * stages * k + (n + 2) * np.ceil(sites / k) for k in range(1, int(sites) + 1)}
    assert kept[int(hyperconnection.blocks(found, float(stages)))] <= 1.03 * min(kept.values())


def test_stages_of_a_pipeline_are_those_of_its_schedule() -> None:
    plan = Plan(pipeline=4.0, virtual_stages=1.0, schedule="dualpipev")
    assert traffic_of.pipeline_stages(plan) == 8.0
    assert traffic_of.pipeline_stages(replace(plan, schedule="interleaved", virtual_stages=3.0)) == 12.0
    degrees = traffic_of.pipeline_stages(replace(plan, schedule="dualpipe", pipeline=np.array([2.0, 4.0])))
    assert np.array_equal(degrees, [2.0, 4.0])


def test_what_a_stage_keeps_falls_with_fewer_blocks() -> None:
    """Deeper pipelines have a block at least per stage: the kept residual's share per site rises again."""
    kept = [float(hyperconnection.kept_bytes(MHC, ("mhc",), stages)) for stages in (1.0, 4.0, 30.0)]
    per_site = [2 * 2560 * (1 + 4 * share) + 4 * 49 for share in (10 / 60, 3 / 15, 1 / 2)]
    assert kept == pytest.approx(per_site)
    assert hyperconnection.block_bytes(MHC, 30.0) == 0.0


def test_recompute_trades_memory_for_traffic() -> None:
    kept, remade = hyperconnection.kept_bytes(MHC, ()), hyperconnection.kept_bytes(MHC, ("mhc",))
    assert kept == 2 * (4 + 2) * 2560 + 4 * (2 * 24 + 1)
    # Table 3: the residual once per block of 6, and the output; (n + 2) C per site of one block come once.
    assert remade == pytest.approx(2 * 2560 * (4 / 6 + 1) + 4 * (2 * 24 + 1))
    assert hyperconnection.block_bytes(MHC) == 2 * (4 + 2) * 2560 * (6 - 2)
    plain, again = site(1e4, MHC, place()), site(1e4, MHC, place(recompute=("mhc",)))
    assert traffic(again, "forward") == traffic(plain, "forward")
    extra = (traffic(again, "backward_input") - traffic(plain, "backward_input")) / 1e4 / 2 / 2560
    # TileKernels multilayer_recompute per site: nC / 6 and C read, C and nC written; the norm reads and writes C.
    assert extra == pytest.approx(4 / 6 + 1 + 1 + 4 + 2, rel=0.01)


def test_recompute_of_the_norm_alone_makes_only_the_norm_again() -> None:
    names = {op.name for op in site(1.0, MHC, place(recompute=("norm",)))} - {op.name for op in site(1.0, MHC, place())}
    assert names == {"s_norm_recompute"}


def test_tensor_parallelism_divides_every_operator_over_tokens() -> None:
    where = place(recompute=("mhc",))
    ops = site(64.0, MHC, where) + hyperconnection.expand(where, 64.0, MHC) + hyperconnection.merge(where, 64.0, MHC)
    assert all(op.shards["tensor"] in (("n_tokens",), ("read_bytes", "write_bytes")) for op in ops)


def test_arrays_of_streams_and_widths_are_their_scalars() -> None:
    n, width, layers = np.asarray([2.0, 4.0, 8.0]), np.asarray([1280.0, 2560.0, 7168.0]), np.asarray([12.0, 30.0, 61.0])
    whole = replace(MHC, n_streams=n, hidden_size=width, num_hidden_layers=layers)
    for i in range(3):
        one = replace(MHC, n_streams=n[i], hidden_size=width[i], num_hidden_layers=layers[i])
        for recompute in ((), ("mhc",)):
            kept = np.asarray(hyperconnection.kept_bytes(whole, recompute))
            assert kept[i] == hyperconnection.kept_bytes(one, recompute)
            where = place(recompute=recompute)
            pairs = zip(site(64.0, whole, where), site(64.0, one, where), strict=True)
            assert all(np.broadcast_to(a.traffic_bytes["hbm"], 3)[i] == b.traffic_bytes["hbm"] for a, b in pairs)
        assert np.asarray(hyperconnection.parameters(whole))[i] == hyperconnection.parameters(one)
