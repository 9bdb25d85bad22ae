"""Lists of kernel cases: deterministic, distinct, of the published dimensions, split by whole shapes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from sextant.validate import cases as case_files
from sextant.validate import duration
from sextant.validate.case_sets import case_set, names
from sextant.validate.case_sets.systems import ALIASES, SYSTEMS
from sextant.validate.cases import case_key, select, split
from sextant.workloads.models import catalogue

ALL = case_set("all")


def test_the_list_of_all_systems_is_large_distinct_and_in_the_schema():
    assert len(ALL) >= 1800
    assert len({case_key(case) for case in ALL}) == len(ALL)
    assert {column for case in ALL for column in case} <= set(case_files.CASE_COLUMNS)
    assert case_set("all") == ALL


def test_every_named_list_is_part_of_all_or_special():
    known = {case_key(case) for case in ALL}
    for name in [*SYSTEMS, *ALIASES, "machine"]:
        listed = case_set(name)
        assert listed and {case_key(case) for case in listed} <= known, name
    assert "tile-kernels" in names() and {case["variant"] for case in case_set("tile-kernels")} == {"tile_kernels"}
    assert {case["n_gpus"] for case in case_set("collectives-4")} == {4}


def test_tokens_run_from_one_to_32k():
    for op in ("gemm", "rmsnorm", "swiglu"):
        column = "m" if op == "gemm" else "n_tokens"
        counts = {int(case[column]) for case in ALL if case["op"] == op and case.get("direction") == "forward"}
        assert {1, 32768} <= counts and len(counts) > 15, op
    cached = {int(case["kv_len"]) for case in ALL if case.get("phase") == "decode"}
    assert min(cached) <= 1024 and max(cached) == 32768


def test_v3_sites_are_those_of_the_published_configuration():
    """Weights per layer counted from the sites: MLA 187.1 M, one expert 44.04 M, a dense MLP 396.4 M."""
    system = SYSTEMS["deepseek-v3"]
    sites = {name: n * k for name, (n, k) in system.sites.items()}
    assert sum(sites[name] for name in ("q_a", "q_b", "kv_a", "kv_b", "o")) == 187_105_280
    assert sum(n * k for n, k in system.expert_sites) == 3 * 7168 * 2048
    assert sites["dense_up"] + sites["dense_down"] == 3 * 7168 * 18432


@pytest.mark.parametrize("system", SYSTEMS)
def test_sites_agree_with_the_simulator_s_model(system: str):
    """Hidden width, heads and expert width of a list are those of the model of the same name, where there is one."""
    names_of = {"deepseek-v2-lite": "deepseek-coder-v2-lite"}
    model = catalogue().get(names_of.get(system, system), catalogue().get(system))
    if model is None:
        pytest.skip(f"no model is named {system}")
    found = SYSTEMS[system]
    assert model.hidden_size == found.hidden
    if found.experts:
        assert model.moe_intermediate_size == found.experts.expert_ffn
        assert (model.n_routed_experts, model.num_experts_per_tok) == (found.experts.n_experts, found.experts.top_k)


def test_a_quarter_of_the_shapes_of_every_operator_is_held_out():
    listed = Counter(str(case["op"]) for case in ALL)
    held = Counter(str(case["op"]) for case in ALL if split(case) == "held_out")
    for op in listed.keys() - {"contention"}:
        assert 0.13 < held[op] / listed[op] < 0.37, (op, held[op], listed[op])
    assert 0.2 < held.total() / len(ALL) < 0.3


def test_no_site_and_no_width_is_on_both_sides():
    sides: dict[object, set[str]] = {}
    for case in ALL:
        if case["op"] == "gemm":
            swapped = {"wgrad": ("m", "n"), "dgrad": ("k", "n")}.get(str(case.get("variant")), ("n", "k"))
            key: object = ("site", case[swapped[0]], case[swapped[1]])
        elif case["op"] == "grouped_gemm":
            key = ("site", case["n"], case["k"])
        elif case["op"] in ("rmsnorm", "add", "cast", "layernorm"):
            key = ("width", case["hidden"])
        elif case["op"] in ("mhc_pre", "mhc_post", "engram_gate"):
            key = ("streams", case["hidden"], case["n_streams"])
        else:
            continue
        sides.setdefault(key, set()).add(split(case))
    assert sides and all(len(found) == 1 for found in sides.values())


@pytest.mark.parametrize("op", ["attention", "mla"])
def test_attention_is_held_out_by_configuration_or_by_length(op: str):
    """A case is held out exactly if all cases of its heads are, or all of its (batch, length); both ways occur."""
    listed = [case for case in ALL if case["op"] == op]
    heads = ("phase", "heads", "kv_heads", "head_dim", "v_head_dim", "kv_lora_rank")
    sides: dict[object, set[str]] = {}

    def group(case: case_files.Case, columns: tuple[str, ...]) -> object:
        return columns, tuple(case.get(column) for column in columns)

    for case in listed:
        for columns in (heads, ("phase", "batch", "kv_len")):
            sides.setdefault(group(case, columns), set()).add(split(case))
    for case in listed:
        whole = [sides[group(case, columns)] == {"held_out"} for columns in (heads, ("phase", "batch", "kv_len"))]
        assert (split(case) == "held_out") == any(whole), case


def test_the_split_ignores_what_is_not_the_shape():
    case: case_files.Case = {"op": "gemm", "format": "bf16", "m": 7, "n": 4096, "k": 7168}
    for other in ({"m": 9000}, {"format": "fp8"}, {"direction": "forward"}, {"us": 5}):
        assert split(case | other) == split(case)
    assert split(case | {"variant": "wgrad", "m": 4096, "n": 7168, "k": 64}) == split(case)
    assert split(case | {"variant": "dgrad", "m": 64, "n": 7168, "k": 4096}) == split(case)


def test_selection_keeps_order_thins_and_divides():
    chosen = select(ALL, ops="h2d,copy", every=3)
    assert [case["op"] for case in chosen] == ["h2d"] * 3 + ["copy"] * 8
    parts = [select(ALL, shard=f"{i}/3", order="spread") for i in (1, 2, 3)]
    assert sum(len(part) for part in parts) == len({case_key(case) for part in parts for case in part}) == len(ALL)
    first = Counter(str(case["op"]) for case in parts[0][:300])
    assert len(first) > 20
    with pytest.raises(ValueError, match="shard: i/n"):
        select(ALL, shard="3/2")


def test_cases_survive_a_csv(tmp_path: Path):
    path = tmp_path / "cases.csv"
    case_files.write_cases(path, ALL)
    assert case_files.read_cases(path) == ALL
    with path.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == case_files.CASE_COLUMNS


def test_one_small_case_of_every_kernel():
    small = case_files.smallest_of_each(ALL)
    assert {case["op"] for case in small} == {case["op"] for case in ALL}
    assert len(small) < 80
    wide = [case for case in small if case["op"] == "gemm" and case.get("format") == "bf16" and "variant" not in case]
    assert len(wide) == 1 and wide[0]["m"] == 1


def test_duration_grows_with_work_and_budget():
    """16 times the rows of a product of half a millisecond cost more; so does ten times the budget of a small one."""
    case: case_files.Case = {"op": "gemm", "format": "bf16", "m": 2048, "n": 8192, "k": 8192}
    assert duration.seconds(case | {"m": 32768}, 2e4) > 2.0 * duration.seconds(case, 2e4)
    small: case_files.Case = {"op": "add", "n_tokens": 1, "hidden": 128}
    assert duration.seconds(small, 2e5) == pytest.approx(duration.seconds(small, 2e4) + 0.18)
    table = duration.lines(ALL, 2e4)
    assert table[-1].split()[:3] == ["in", "all", str(len(ALL))]
