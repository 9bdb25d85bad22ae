"""Kernel cases become the operators of the simulator, row by row as one by one, and no row harms another."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.validate.prediction import numbers, operators, predict, single_kernel_cluster
from sextant.validate.prediction.case_file import CaseFile
from sextant.validate.prediction.experts import expert_layers, moe_seconds, most_loaded
from sextant.validate.prediction.vocabulary import KINDS, ops

SHARED = Path(__file__).resolve().parents[3] / "shared"
H100 = single_kernel_cluster("h100")
#: A case of every operator and phase, with needed columns alone.
SIZES = {
    "m": 128, "n": 4096, "k": 7168, "groups": 8, "tokens_per_group": 64, "batch": 4, "heads": 32, "kv_len": 2048,
    "head_dim": 128, "n_tokens": 256, "hidden": 4096, "expert_ffn": 2048, "top_k": 8, "n_experts": 64, "bytes": 2**20,
    "n_elements": 10**6, "rows": 10**6, "dim": 320, "lookups": 4096, "height": 48, "width": 48, "in_channels": 64,
    "out_channels": 64, "kernel_size": 3, "n_gpus": 8, "message_elements": 2**20,
}  # fmt: skip


def case(kind: str, **cells: object) -> dict[str, str]:
    """The smallest case of a kind: its needed columns."""
    op, _, phase = kind.partition(":")
    row = {"op": op, "phase": phase, **{name: SIZES[name] for name in KINDS[kind].needed}}
    if op == "routing":
        row["variant"] = "topk"
    if op == "conv2d":
        cells = {"groups": 1, **cells}
    return {name: str(value) for name, value in {**row, **cells}.items()}


def predicted(*rows: dict[str, str], cluster=H100):
    names = list(dict.fromkeys(name for row in rows for name in row))
    return predict({name: [row.get(name, "") for row in rows] for name in names}, len(rows), cluster)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_needed_columns_are_enough(kind):
    """Every operator of the vocabulary is predicted, with an interval around it, a bound and a provenance."""
    found = predicted(case(kind))
    assert list(found.error) == [""]
    assert 0 < found.low_us[0] <= found.us[0] <= found.high_us[0] < 1e7
    assert found.bound[0] in ("math", "memory", "link", "rows", "launch")
    assert found.provenance[0] in ("fitted", "published", "assumed")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_missing_column_is_named(kind):
    for name in KINDS[kind].needed:
        row = case(kind)
        del row[name]
        assert predicted(row).error[0].startswith(f"{name}: missing")
        assert predicted({**row, name: ""}).error[0].startswith(f"{name}: missing")


def test_all_kinds_at_once_are_as_one_by_one():
    """Grouping changes nothing: neither numbers nor order."""
    rows = [case(kind, format=fmt) for kind in sorted(KINDS) for fmt in (KINDS[kind].formats or ("",))]
    together = predicted(*rows, *reversed(rows))
    assert not any(together.error)
    alone = [predicted(row) for row in rows]
    assert [p.us[0] for p in alone] == pytest.approx(together.us[: len(rows)])
    assert together.us[len(rows) :] == pytest.approx(together.us[: len(rows)][::-1])
    assert list(together.provenance[: len(rows)]) == [p.provenance[0] for p in alone]
    assert list(together.bound[: len(rows)]) == [p.bound[0] for p in alone]


def test_a_product_is_the_simulators_at_the_clock_of_short_runs():
    assert H100.device.clock_under_load == 1.0
    shape = {"m": 128.0, "n": 4096.0, "k": 7168.0}
    seconds = estimate(operator("gemm", "gemm", "bf16", shape), H100).seconds
    assert predicted(case("gemm")).us[0] == pytest.approx(1e6 * float(seconds))


def test_fp8_products_convert_bf16_unless_the_library_takes_fp8():
    plain, bare, named = predicted(
        case("gemm", format="fp8"), case("gemm", format="fp8", library="cublaslt"),
        case("gemm", format="fp8", variant="quantised"),
    ).us  # fmt: skip
    assert plain > bare == named


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("attention:prefill", {"q_len": 2048, "kv_heads": 32, "v_head_dim": 128, "causal": 1}),
        ("attention:encoder", {"q_len": 2048, "kv_heads": 32, "v_head_dim": 128, "causal": 0}),
        ("attention:decode", {"q_len": 1, "kv_heads": 32, "v_head_dim": 128}),
        ("mla:prefill", {"q_len": 2048, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}),
        ("mla:decode", {"q_len": 1, "kv_lora_rank": 512, "qk_rope_head_dim": 64}),
        ("moe", {"tensor_parallel": 1, "expert_parallel": 1, "routing": "balanced", "format": "bf16"}),
        ("mhc_pre", {"n_streams": 4, "sinkhorn_iters": 20}),
        ("gather", {"tier": "hbm", "format": "bf16"}),
        ("ep_dispatch", {"mode": "normal", "n_nodes": 1, "n_sms": 20, "format": "fp8_block"}),
        ("ep_combine", {"mode": "normal", "n_nodes": 1, "n_sms": 20, "format": "bf16"}),
    ],
)
def test_defaults_are_as_documented(kind, given):
    assert predicted(case(kind)).us[0] == predicted(case(kind, **given)).us[0]
    name = next(iter(given))
    other = {"mode": "low_latency", "tier": "host"}.get(name) or 2 * int(given[name])
    assert predicted(case(kind, **{name: other})).us[0] != predicted(case(kind)).us[0]


def test_phase_is_prefill_unless_said():
    row = case("attention:prefill")
    assert predicted({**row, "phase": ""}).us[0] == predicted(row).us[0]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (case("gemm", op="gem"), "did you mean 'gemm'"),
        (case("gemm", op=""), "op: empty"),
        (case("gemm", op="contention"), "two kernels at once"),
        (case("gemm", format="int4"), "format: unsupported 'int4' of gemm; choose one of bf16, fp16, fp8, fp8_block"),
        (case("gemm", m="many"), "m: 'many' is no number"),
        (case("gemm", m="nan"), "m: 'nan' is no number"),
        (case("gemm", m="inf"), "m: 'inf' is no number"),
        (case("gemm", m=-1), "m: -1 is negative"),
        (case("gemm", m=0), "m: 0 is zero"),
        (case("gemm", m=1.5), "m: 1.5 is no whole number"),
        (case("gemm", m="1e300", n="1e300"), "no finite time"),
        (case("gemm", variant="dgrap"), "did you mean 'dgrad'"),
        (case("attention:prefill", phase="training"), "phase: 'training' of attention"),
        (case("attention:decode", direction="backward"), "direction: 'backward'"),
        (case("attention:prefill", kv_heads=64), "kv_heads: larger than heads"),
        (case("attention:prefill", causal=2), "causal: neither 0 nor 1"),
        (case("moe", top_k=65), "top_k: larger than n_experts"),
        (case("moe", routing="zipf"), "routing: unknown 'zipf'"),
        (case("moe", routing="power_law_x"), "routing: unknown"),
        (case("ep_dispatch", mode="fast"), "mode: unknown 'fast'"),
        (case("ep_dispatch", n_gpus=32, n_nodes=2), "a node has 8 GPUs"),
        (case("gather", tier="tape"), "tier: unknown 'tape'"),
        (case("gather", variant="cpu_copy", tier="hbm"), "tier: the CPU copies from host memory"),
        (case("conv2d", groups=2), "groups: 1 group, or as many"),
    ],
)
def test_an_unusable_row_says_why_and_harms_no_other(row, says):
    good = [case(kind) for kind in ("gemm", "attention:prefill", "moe", "ep_dispatch", "gather", "conv2d")]
    found = predicted(good[0], row, *good[1:])
    assert says in found.error[1]
    assert "\n" not in found.error[1]
    assert np.isnan([found.us[1], found.low_us[1], found.high_us[1]]).all()
    assert found.bound[1] == found.provenance[1] == ""
    assert [*found.us[:1], *found.us[2:]] == pytest.approx([predicted(row).us[0] for row in good])


def test_provenance_is_each_rows_own():
    """Sixteen GPUs span nodes, which nobody measured; eight beside them in a file do not."""
    found = predicted(case("all_reduce"), case("all_reduce", n_gpus=16))
    assert list(found.provenance) == ["fitted", "published"]
    borrowed = predicted(case("gemm"), cluster=single_kernel_cluster("b200"))
    assert borrowed.provenance[0] == "assumed"


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_memory_bound_operators_move_their_bytes(gpu):
    """At sizes where launches vanish, times are as the bytes, at three quarters of the bandwidth and more (rows that
    are summed in the backward pass of a norm: at almost half): swiglu reads two and writes one, an add likewise."""
    cluster, big = single_kernel_cluster(gpu), {"n_tokens": 65536, "hidden": 8192, "expert_ffn": 8192}
    tensor_s = 2 * 65536 * 8192 / cluster.device.memories["hbm"].bandwidth_bytes_per_s
    tensors = {"rmsnorm": 2, "gelu": 2, "layernorm": 2, "add": 3, "swiglu": 3, "rmsnorm_backward": 3,
               "swiglu_backward": 5}  # fmt: skip
    us = {
        op: predicted(case(op, **{name: big[name] for name in KINDS[op].needed}), cluster=cluster).us[0]
        for op in tensors
    }
    for op, n in tensors.items():
        assert 1.0 < us[op] * 1e-6 / (n * tensor_s) < (2.1 if op == "rmsnorm_backward" else 1.34), op
    assert us["add"] / us["gelu"] == pytest.approx(1.5, rel=0.05)
    assert us["swiglu_backward"] / us["swiglu"] == pytest.approx(5 / 3, rel=0.05)
    half, whole = (predicted(case("copy", bytes=n), cluster=cluster).us[0] for n in (2**31, 2**32))
    assert whole / half == pytest.approx(2.0, abs=0.02)
    assert whole * 1e-6 > 2 * 2**32 / cluster.device.memories["hbm"].bandwidth_bytes_per_s


def test_memory_bound_operators_say_what_they_move_and_in_which_rows():
    """Each tensor once; blocks of threads that take a row each are told how many and how wide."""
    c = {"n_tokens": 10.0, "hidden": 2500.0, "expert_ffn": 300.0, "top_k": 4.0, "heads": 6.0, "head_dim": 8.0,
         "groups": 64.0, "bytes": 999.0, "n_elements": 7.0}  # fmt: skip
    size = 10.0 * 2500.0
    expected = {
        "copy": (999.0, 999.0), "gelu": (2 * size, 2 * size), "add": (4 * size, 2 * size),
        "swiglu": (4 * 3000.0, 2 * 3000.0), "swiglu_backward": (6 * 3000.0, 4 * 3000.0), "adam": (84.0, 70.0),
        "rmsnorm": (2 * size, 2 * size, 10.0, 2500.0), "layernorm": (2 * size, 2 * size, 10.0, 2500.0),
        "rmsnorm_backward": (4 * size, 2 * size, 10.0, 2500.0),
        "permute": (2 * size + 160.0, 8 * size, 40.0, 2500.0), "unpermute": (8 * size + 320.0, 2 * size, 30.0),
        "rope": (960.0 + 320.0, 960.0, 10.0, 48.0),
    }  # fmt: skip
    for op, values in expected.items():
        shape = operators.moved(op, c, "bf16").shape
        assert shape == dict(zip(("read_bytes", "write_bytes", "rows", "width"), values, strict=False)), op
    scaled = operators.moved("swiglu", c, "fp8_block")
    assert scaled.shape == {"read_bytes": 4 * 3000.0, "write_bytes": (1 + 4 / 128) * 3000.0}
    assert (scaled.variant, operators.moved("copy", c, "bf16", "memcpy").variant) == ("swiglu_fp8", "memcpy")
    top, index = (operators.moved("routing", c, "", kind) for kind in ("topk", "index"))
    assert (top.variant, top.shape) == ("topk", {"read_bytes": 2560.0, "write_bytes": 480.0, "rows": 10.0})
    assert (index.variant, index.shape) == ("index", {"read_bytes": 320.0, "write_bytes": 640.0, "rows": 10.0})
    with pytest.raises(KeyError, match="gemm"):
        operators.moved("gemm", c, "bf16")


def test_skewed_routing_loads_one_device_more():
    """The most loaded device: more pairs than the mean, never more than there are, fewer experts touched."""
    c = {name: np.array([float(v)]) for name, v in
         {"n_tokens": 4096, "hidden": 4096, "expert_ffn": 2048, "top_k": 8, "n_experts": 256, "tensor_parallel": 1,
          "expert_parallel": 8}.items()}  # fmt: skip
    even = expert_layers(c)
    skewed = most_loaded({**even, "ranks": c["expert_parallel"]}, 1.2)
    assert even["pairs"] < skewed["pairs"] < even["pairs"] * 8
    few = {**c, "n_tokens": np.array([64.0])}
    assert most_loaded({**expert_layers(few), "ranks": c["expert_parallel"]}, 1.2)["groups"] < even["groups"]
    assert skewed["pairs"] == pytest.approx(skewed["groups"] * skewed["tokens_per_group"])
    alone = most_loaded({**expert_layers({**c, "expert_parallel": np.array([1.0])}), "ranks": np.array([1.0])}, 1.2)
    assert alone["pairs"] == pytest.approx(4096 * 8)


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 65536), experts=st.sampled_from([8, 64, 256]), ranks=st.sampled_from([1, 2, 8]),
    top_k=st.integers(1, 8), exponent=st.sampled_from([0.0, 0.5, 1.0, 1.01, 1.2, 2.0, 3.0]),
)  # fmt: skip
def test_the_most_loaded_device_is_possible(tokens, experts, ranks, top_k, exponent):
    c = {name: np.array([float(v)]) for name, v in
         {"n_tokens": tokens, "hidden": 1024, "expert_ffn": 512, "top_k": top_k, "n_experts": experts,
          "tensor_parallel": 1, "expert_parallel": ranks}.items()}  # fmt: skip
    found = most_loaded({**expert_layers(c), "ranks": c["expert_parallel"]}, exponent)
    pairs, hit = found["pairs"][0], found["groups"][0]
    assert 0 < pairs <= tokens * top_k * (1 + 1e-9)
    assert 0 < hit <= experts / ranks * (1 + 1e-9)
    assert found["tokens_per_group"][0] <= tokens * (1 + 1e-9)


def test_a_whole_layer_takes_longer_than_its_experts():
    experts, layer = predicted(case("moe"), case("moe", variant="layer")).us
    assert layer > experts
    c = {"expert_parallel": np.ones(1), "tensor_parallel": np.ones(1)}
    c |= {name: np.array([float(SIZES[name])]) for name in KINDS["moe"].needed}
    assert experts == pytest.approx(1e6 * moe_seconds(expert_layers(c), "bf16", H100, routing="exact")[0])


def test_experts_have_a_gate_unless_the_case_says_otherwise():
    """No shape is special: a case without a gate says so, and saves a third of the products' FLOPs."""
    big = {"n_tokens": 65536, "hidden": 8192, "expert_ffn": 5120}
    gated, ungated = predicted(case("moe", **big), case("moe", **big, variant="ungated")).us
    assert 0.6 < ungated / gated < 0.75
    nearby = predicted(case("moe", **{**big, "expert_ffn": 5248})).us[0]
    assert nearby / gated == pytest.approx(5248 / 5120, abs=0.02)


def test_cells_are_read_as_numbers():
    assert list(numbers(["1", " 2 ", "3e1"]).values) == [1, 2, 30]
    found = numbers(["1", "", "x", "nan", "-inf"])
    assert np.isnan(found.values[1:]).all()
    assert sorted(found.problems) == [2, 3, 4]


@settings(max_examples=80)
@given(st.lists(st.sampled_from(["m", "n", "k", "op", "format", "variant"]), unique=True), st.data())
def test_no_cell_makes_it_fail(names, data):
    """Whatever stands in the cells: a row is predicted, or says why."""
    cells = st.one_of(st.text(max_size=6), st.sampled_from(["gemm", "moe", "1", "128", "-4", "1e308", "bf16", "nan"]))
    row = {name: data.draw(cells) for name in names}
    found = predict({name: [cell, cell] for name, cell in row.items()}, 2, H100)
    assert ((found.error != "") == np.isnan(found.us)).all()


def test_every_gpu_of_the_catalogue_predicts():
    from sextant.hwmodels import device_names

    for name in device_names():
        found = predicted(*[case(kind) for kind in sorted(KINDS)], cluster=single_kernel_cluster(name))
        assert not any(found.error)


def test_a_format_that_the_gpu_lacks_is_told():
    """An A100 has no FP8: a product in it is no kernel there, in BF16 it is; a cast only moves bytes."""
    fp8, block, bf16, cast = (case("gemm", format="fp8"), case("moe", format="fp8_block"), case("gemm"), case("cast"))
    found = predicted(fp8, block, bf16, cast, cluster=single_kernel_cluster("a100-80gb"))
    assert found.error[0] == "format: a100-80gb has no tensor cores for fp8; give bf16 or fp16"
    assert "fp8_block" in found.error[1]
    assert list(found.error[2:]) == ["", ""]
    assert not any(predicted(fp8, block, bf16, cast).error)


def test_an_unknown_gpu_offers_the_nearest():
    with pytest.raises(InputError, match="h100"):
        single_kernel_cluster("h10")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ":1:1: no header"),
        (b"# only\n# comments\n", ":2:1: no header"),
        (b"op,m\n", ":1:1: no case below the header"),
        (b"m,n,k\n1,2,3\n", ":1:1: the header has no column 'op' but 'm', 'n', 'k'"),
        (b"# a\ngemm,bf16,1,2,3\n", ":2:1: no header: the first line is a case"),
        (b"op;m;n\ngemm;1;2\n", ":1:1: columns are separated by ';'"),
        (b"op,m,m\ngemm,1,2\n", ":1:1: the column 'm' is named twice"),
        (b"op,m\ngemm,1\ngemm,\xff\n", ":3:6: not UTF-8"),
        (b"op,m\ngemm,\x00\n", ":2:6: a NUL byte"),
        (b'op,m\ngemm,"1\ngemm,2\n', ":3:1: not a CSV"),
    ],
)
def test_a_broken_file_is_one_error_with_its_place(tmp_path, content, says):
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised, CaseFile(path) as cases:
        list(cases.chunks())
    assert f"{path}{says}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_truncated_archive_is_one_error(tmp_path):
    path = tmp_path / "cases.csv.gz"
    path.write_bytes(gzip.compress(b"op,m\n" + b"gemm,1\n" * 9999)[:-60])
    with pytest.raises(InputError, match="cannot be read"), CaseFile(path) as cases:
        list(cases.chunks())


def test_rows_come_in_chunks_and_odd_ones_are_told(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("\ufeff# made by hand\nop, m\n\ngemm,1\ngemm\ngemm,1,2\n# late\ngemm,3\n", encoding="utf-8")
    with CaseFile(path) as cases:
        assert (cases.comments, cases.header) == (["# made by hand"], ["op", "m"])
        chunks = list(cases.chunks(3))
    assert [len(chunk.rows) for chunk in chunks] == [3, 1]
    assert all(len(row) == 2 for chunk in chunks for row in chunk.rows)
    assert sorted(chunks[0].problems) == [1, 2]
    assert chunks[1].problems == {}


#: What the errors on measured kernels are, rounded up: rows that fits saw and rows they did not.
MEASURED = {
    "gemm": 0.06, "attention_prefill": 0.08, "attention_decode": 0.13, "attention_encoder": 0.06, "mla_prefill": 0.06,
    "mla_decode": 0.08, "mhc": 0.04, "nccl": 0.09, "deepep_low_latency": 0.06, "deepep_normal": 0.15, "moe": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_measured_kernels_are_predicted(name):
    """A change of the mapping from cases to operators would show here."""
    path = SHARED / "measured" / "h100_sxm" / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path.name} is absent from a shared folder beside the repository")
    with gzip.open(path, "rt") as lines:
        rows = list(csv.DictReader(lines))
    found = predict({key: [row[key] for row in rows] for key in rows[0]}, len(rows), H100)
    assert not any(found.error)
    us = numbers([row["us"] for row in rows]).values
    assert np.abs(found.us / us - 1).mean() < MEASURED[name]
    inside = ((found.low_us <= us) & (us <= found.high_us)).mean()
    assert inside > 0.75
    # The interval of low-latency exchanges is of node counts left out: it holds all of these rows, which were fitted.
    assert (inside == 1.0) if name == "deepep_low_latency" else (inside < 0.99)


def test_the_vocabulary_is_complete():
    """The operators of the design's table, and those that the measurements add."""
    designed = {
        "gemm", "grouped_gemm", "attention", "mla", "moe", "rmsnorm", "add", "swiglu", "copy", "h2d", "d2h", "gather",
        "mhc_pre", "mhc_post", "sinkhorn", "engram_gate", "all_reduce", "all_gather", "reduce_scatter", "all_to_all",
        "ep_dispatch", "ep_combine", "layernorm", "gelu", "conv2d", "cast", "rope", "permute", "adam",
    }  # fmt: skip
    assert designed <= set(ops())
