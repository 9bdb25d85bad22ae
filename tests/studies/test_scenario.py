"""Scenario files: text becomes typed records, layers merge, every field knows its source, same file same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.types import Scenario
from sextant.studies.provenance import canonical, resolved
from sextant.studies.scenario import Catalogue, load
from sextant.studies.yaml_source import parse

PLAIN = """\
model: deepseek-v3
cluster: h800-2048
load: {phase: decode, batch: 128, context_tokens: 4096}
"""


def sources(text: str, catalogue: Catalogue, *sets: str) -> dict[str, str]:
    """The source of every field of ``text``, which is called a.yaml."""
    return {leaf.path: leaf.source for leaf in resolved(load(parse(text, "a.yaml"), sets=sets, catalogue=catalogue))}


def test_the_shortest_scenario_is_the_named_records(catalogue: Catalogue) -> None:
    scenario = load(PLAIN, catalogue=catalogue).scenario
    assert scenario.model == catalogue.models("deepseek-v3")
    assert scenario.cluster == catalogue.clusters("h800-2048")
    assert (scenario.load.phase, scenario.load.batch, scenario.load.context_tokens) == ("decode", 128.0, 4096.0)
    assert (scenario.engine, scenario.seed, scenario.axes, scenario.constraints) == ("analytic", 0, {}, {})


def test_a_full_scenario_becomes_si_records(good: str, catalogue: Catalogue) -> None:
    question = load(good, catalogue=catalogue)
    scenario = question.scenario
    assert scenario.name == "expert counts"
    assert scenario.model.attention.q_lora_rank == 768  # type: ignore[attr-defined]
    assert scenario.cluster.device.memories["host"].bandwidth_bytes_per_s == 55e9
    assert scenario.cluster.device.launch_s == pytest.approx(2e-6, rel=1e-15)
    assert scenario.plan.placement == {"engram": "host"}
    assert scenario.plan.recompute == ("mlp", "norm")
    assert scenario.constraints == {"tpot_s": {"max": 0.05}}
    assert scenario.objectives == {"tokens_per_s_per_device": "max", "usd_per_million_tokens": "min"}
    assert (question.published, question.description) == (("figure-5",), "how many experts to route")


@pytest.mark.parametrize(
    "block",
    [
        "{base: h800-2048, device.memories.hbm.bandwidth_bytes_per_s: 4 TB/s}",
        "{base: h800-2048, device: {memories.hbm: {bandwidth_bytes_per_s: 4 TB/s}}}",
        "{base: h800-2048, device: {memories: {hbm: {bandwidth_bytes_per_s: 4e12}}}}",
        "{device.memories: {hbm.bandwidth_bytes_per_s: 32 Tbit/s}, base: h800-2048}",
    ],
)
def test_dotted_and_nested_spellings_mean_the_same(block: str, catalogue: Catalogue) -> None:
    scenario = load(PLAIN.replace("cluster: h800-2048", f"cluster: {block}"), catalogue=catalogue).scenario
    path = "device.memories.hbm.bandwidth_bytes_per_s"
    assert scenario.cluster == paths.put(catalogue.clusters("h800-2048"), path, 4e12)


def test_a_key_of_a_rate_mapping_takes_the_unit_of_the_mapping(catalogue: Catalogue) -> None:
    text = PLAIN.replace("h800-2048", "{base: h800-2048, device.peak_flops_per_s.bf16: 800 TFLOP/s}")
    assert load(text, catalogue=catalogue).scenario.cluster.device.peak_flops_per_s["bf16"] == 800e12


def test_types_follow_the_record(catalogue: Catalogue) -> None:
    fields = "{base: deepseek-v3, hidden_size: 4096, n_routed_experts: 64, tie_word_embeddings: true, hash_sizes: [7]}"
    model = load(PLAIN.replace("deepseek-v3", fields), catalogue=catalogue).scenario.model
    found = [paths.get(model, p) for p in ("hidden_size", "n_routed_experts", "tie_word_embeddings", "hash_sizes")]
    assert found == [4096, 64.0, True, (7,)]
    assert [type(v) for v in found] == [int, float, bool, tuple]


def test_an_optional_field_takes_null_and_no_other_does(catalogue: Catalogue) -> None:
    text = PLAIN.replace("deepseek-v3", "{base: deepseek-v3, attention.q_lora_rank: null}")
    assert load(text, catalogue=catalogue).scenario.model.attention.q_lora_rank is None  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has no value; give it one or remove the key"):
        load(PLAIN.replace("deepseek-v3", "{base: deepseek-v3, hidden_size: null}"), catalogue=catalogue)


def test_device_replaces_the_whole_gpu_and_fields_below_it_come_after(catalogue: Catalogue) -> None:
    block = "{device.memories.host.capacity_bytes: 1 TB, base: h800-2048, device: h200}"
    with pytest.raises(InputError, match="unknown GPU 'h2000'"):
        load(PLAIN.replace("h800-2048", block.replace("h200}", "h2000}")), catalogue=catalogue)
    device = load(PLAIN.replace("h800-2048", block), catalogue=catalogue).scenario.cluster.device
    assert device == paths.put(catalogue.gpus("h200"), "memories.host.capacity_bytes", 1e12)
    based = "{base: h800-2048, device: {base: h200, memories.host.capacity_bytes: 1 TB}}"
    assert load(PLAIN.replace("h800-2048", based), catalogue=catalogue).scenario.cluster.device == device


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_base_is_inherited_and_the_child_wins(catalogue: Catalogue, tmp_path: Path) -> None:
    write(
        tmp_path,
        root="name: root\n"
        + PLAIN
        + "plan: {tensor: 2, expert: 8}\nseed: 5\naxes: {load.batch: [1, 2], plan.data: [1, 2]}\n",
        middle="base: root.yaml\nplan: {expert: 16}\nconstraints: {tpot_s: {max: 1 s, min: 1 ms}}\n",
        leaf="base: middle.yaml\nplan:\n  pipeline: 4\nconstraints: {tpot_s: {max: 2 s}}\naxes: {load.batch: [3]}\n",
    )
    question = load(tmp_path / "leaf.yaml", catalogue=catalogue)
    plan = question.scenario.plan
    assert (plan.tensor, plan.expert, plan.pipeline) == (2.0, 16.0, 4.0)
    assert (question.scenario.name, question.scenario.seed) == ("root", 5)
    assert question.scenario.constraints == {"tpot_s": {"max": 2.0, "min": 1e-3}}
    assert question.scenario.axes == {"load.batch": (3.0,), "plan.data": (1.0, 2.0)}
    where = {leaf.path: leaf.source for leaf in resolved(question)}
    assert where["plan.tensor"] == f"{tmp_path}/root.yaml:5"
    assert where["plan.expert"] == f"{tmp_path}/middle.yaml:2"
    assert where["plan.pipeline"] == f"{tmp_path}/leaf.yaml:3"


def test_a_shipped_scenario_is_a_base_by_its_name(catalogue_of, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    write(shipped, decoding=PLAIN)
    write(tmp_path, mine="base: decoding\nload: {batch: 7}\n", wrong="base: decodin\n")
    catalogue = catalogue_of(shipped)
    assert load(tmp_path / "mine.yaml", catalogue=catalogue).scenario.load.batch == 7.0
    assert load("decoding", catalogue=catalogue).scenario.name == "decoding"
    with pytest.raises(InputError, match=r"wrong\.yaml:1:7: base: unknown scenario 'decodin'; did you mean 'decoding'"):
        load(tmp_path / "wrong.yaml", catalogue=catalogue)


def test_problems_of_a_base_and_of_its_child_come_together(catalogue: Catalogue, tmp_path: Path) -> None:
    write(tmp_path, root=PLAIN + "plan: {tensr: 2}\n", leaf="base: root.yaml\nplan: {experts: 16}\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "leaf.yaml", catalogue=catalogue)
    assert [(Path(p.path).name, p.line, p.column) for p in caught.value.problems] == [
        ("root.yaml", 4, 8),
        ("leaf.yaml", 2, 8),
    ]


def test_a_set_wins_over_every_file(good: str, catalogue: Catalogue) -> None:
    sets = [
        "plan.expert=4",
        "plan.expert=16",
        "cluster.device.memories.host.bandwidth_bytes_per_s=64 GB/s",
        "model=deepseek-v2",
        "axes.plan.schedule=[1f1b]",
        "axes.load.batch={logspace: [1, 64, 7]}",
        "constraints.tpot_s.max=20 ms",
        "seed=9",
        "plan.placement.engram=hbm",
    ]
    scenario = load(good, sets=sets, catalogue=catalogue).scenario
    assert scenario.plan.expert == 16.0
    assert scenario.cluster.device.memories["host"].bandwidth_bytes_per_s == 64e9
    assert (scenario.model.name, scenario.model.attention.q_lora_rank) == ("deepseek-v2", 768)  # type: ignore[attr-defined]
    assert scenario.axes["plan.schedule"] == ("1f1b",)
    assert scenario.axes["load.batch"] == (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    assert (scenario.constraints["tpot_s"]["max"], scenario.seed) == (0.02, 9)
    assert scenario.plan.placement == {"engram": "hbm"}


def test_a_set_can_give_what_the_file_lacks(catalogue: Catalogue) -> None:
    text = PLAIN.replace("model: deepseek-v3\n", "")
    assert load(text, sets=["model=deepseek-v2"], catalogue=catalogue).scenario.model == catalogue.models("deepseek-v2")


def test_every_leaf_has_a_source(good: str, catalogue: Catalogue) -> None:
    where = sources(good, catalogue, "plan.data=4")
    expected = {
        "name": "a.yaml:1",
        "seed": "a.yaml:18",
        "model": "a.yaml:3",
        "model.attention.q_lora_rank": "a.yaml:3",
        "model.hidden_size": "base deepseek-v3 (a report)",
        "model.n_routed_experts": "a.yaml:13",
        "cluster.device.launch_s": "a.yaml:8",
        "cluster.device.power_w": "base h800-2048 (a product brief)",
        "cluster.device.n_sms": "base h800-2048",
        "cluster.device.memories.hbm.capacity_bytes": "base h800-2048 (a datasheet)",
        "cluster.device.memories.host.bandwidth_bytes_per_s": "a.yaml:6",
        "plan.data": "--set plan.data=4",
        "plan.pipeline": "default",
        "plan.placement.engram": "a.yaml:9",
        "constraints.tpot_s.max": "a.yaml:15",
        "objectives.usd_per_million_tokens": "a.yaml:16",
    }
    assert {p: where[p] for p in expected} == expected
    assert all(where.values())
    scenario = load(good, catalogue=catalogue).scenario
    leaves = [
        f"{top}.{p}" for top in ("model", "cluster", "plan", "load") for p in paths.leaves(getattr(scenario, top))
    ]
    assert {p for p in leaves if "source" not in p.split(".")} <= set(where)


def test_a_replaced_gpu_is_the_source_of_its_fields(catalogue: Catalogue) -> None:
    where = sources(PLAIN.replace("h800-2048", "{base: h800-2048, device: h200}"), catalogue)
    assert where["cluster.device"] == "a.yaml:2"
    assert where["cluster.device.n_sms"] == "base h200"
    assert where["cluster.n_devices"] == "base h800-2048"


def test_values_are_shown_with_units(good: str, catalogue: Catalogue) -> None:
    text = {leaf.path: leaf.text for leaf in resolved(load(good, catalogue=catalogue))}
    assert text["cluster.device.memories.host.bandwidth_bytes_per_s"] == "55 GB/s"
    assert text["cluster.device.memories.hbm.bandwidth_bytes_per_s"] == "2 TB/s ... 4 TB/s (5 values)"
    assert text["cluster.device.peak_flops_per_s.bf16"] == "989 TFLOP/s"
    assert text["constraints.tpot_s.max"] == "50 ms"
    assert text["model.n_routed_experts"] == "[64, 128, 256]"
    assert text["model.tie_word_embeddings"] == "false"


def test_the_same_file_gives_the_same_bytes(good: str, catalogue: Catalogue) -> None:
    first, second = (load(parse(good, "a.yaml"), catalogue=catalogue) for _ in range(2))
    assert repr(first.scenario) == repr(second.scenario)
    assert resolved(first) == resolved(second)
    assert canonical(first) == canonical(second)


@pytest.mark.parametrize("sets", [(), ("cluster.device=h200", "axes.model=[deepseek-v3, deepseek-v2]")])
def test_the_canonical_text_asks_the_same_question(good: str, catalogue: Catalogue, sets: tuple[str, ...]) -> None:
    question = load(good, sets=sets, catalogue=catalogue)
    again = load(canonical(question), catalogue=catalogue)
    assert again.scenario == question.scenario
    assert (again.description, again.published) == (question.description, question.published)
    assert canonical(again) == canonical(question)


NUMERIC = [
    "device.launch_s",
    "device.memories.hbm.capacity_bytes",
    "device.peak_flops_per_s.fp8",
    "tiers.nvlink.link.latency_s",
]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(NUMERIC), st.floats(1e-9, 1e15)), name=st.text(min_size=1, max_size=20))
def test_any_numbers_and_names_survive_the_round_trip(
    values: dict[str, float], name: str, catalogue: Catalogue
) -> None:
    lines = "".join(f"  {path}: {value!r}\n" for path, value in values.items())
    text = PLAIN.replace("cluster: h800-2048\n", f"cluster:\n  base: h800-2048\n{lines}")
    quoted = "name: '" + "".join(c for c in name if c.isprintable()).replace("'", "''") + "x'\n"
    question = load(quoted + text, catalogue=catalogue)
    assert {p: paths.get(question.scenario.cluster, p) for p in values} == values
    assert load(canonical(question), catalogue=catalogue).scenario == question.scenario


def experts_divide(scenario: Scenario) -> Iterator[tuple[tuple[str, ...], str]]:
    """The routed experts are divided over the expert degree."""
    n_experts = scenario.model.n_routed_experts  # type: ignore[attr-defined]
    if n_experts % scenario.plan.expert:
        message = f"{n_experts:g} experts do not divide by {scenario.plan.expert:g}; write a divisor"
        yield ("plan.expert", "model.n_routed_experts"), message


def devices_match(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """The degrees multiply to the devices of the cluster."""
    plan = scenario.plan
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    if used != scenario.cluster.n_devices:
        message = f"the degrees use {used:g} of {scenario.cluster.n_devices:g} devices; change a degree or n_devices"
        yield "plan.data", message


def test_checks_are_reported_at_the_place_of_the_field_they_blame(catalogue: Catalogue) -> None:
    text = PLAIN + "plan:\n  expert: 7\n  tensor: 8\n"
    with pytest.raises(InputError) as caught:
        load(parse(text, "a.yaml"), catalogue=catalogue, checks=[experts_divide, devices_match])
    assert [str(p) for p in caught.value.problems] == [
        "a.yaml:4:1: plan.data: the degrees use 8 of 2048 devices; change a degree or n_devices",
        "a.yaml:5:11: plan.expert: 256 experts do not divide by 7; write a divisor",
    ]
    with pytest.raises(InputError, match=r"^--set plan\.expert=9: plan\.expert: 256 experts do not divide by 9"):
        load(text, sets=["plan.expert=9"], catalogue=catalogue, checks=[experts_divide])


def test_a_plan_that_fits_passes_the_checks(catalogue: Catalogue) -> None:
    text = PLAIN + "plan: {expert: 8, tensor: 8, data: 256}\n"
    assert load(text, catalogue=catalogue, checks=[experts_divide, devices_match]).scenario.plan.data == 256.0


@pytest.mark.parametrize("axis", ["plan.expert: [7, 8]", "model.n_routed_experts: [100, 256]", "model: [deepseek-v3]"])
def test_what_an_axis_sweeps_is_not_checked(axis: str, catalogue: Catalogue) -> None:
    text = PLAIN + f"plan: {{expert: 7}}\naxes: {{{axis}}}\n"
    load(text, catalogue=catalogue, checks=[experts_divide])


def test_a_swept_field_need_not_be_given_elsewhere(catalogue: Catalogue) -> None:
    text = (
        "cluster: h800-2048\nload: {phase: decode, context_tokens: 4096}\n"
        "axes: {model.n_routed_experts: [64], load.batch: [8, 16], model: [deepseek-v2, deepseek-v3]}\n"
    )
    scenario = load(text, catalogue=catalogue).scenario
    assert (scenario.model.name, scenario.load.batch) == ("deepseek-v2", 8.0)  # type: ignore[attr-defined]
    assert list(scenario.axes) == ["model.n_routed_experts", "load.batch", "model"]


def test_every_swept_base_must_have_the_fields_set_below_it(catalogue: Catalogue) -> None:
    text = PLAIN + "plan: {tensor: 1}\naxes: {cluster.device: [h800, h200], cluster: [h800-2048, h200-2048]}\n"
    edited = text.replace("h800-2048\nload", "{base: h800-2048, device.memories.nvme.capacity_bytes: 1 TB}\nload")
    load(text, catalogue=catalogue)
    with pytest.raises(InputError) as caught:
        load(edited, catalogue=catalogue)
    assert [p.key for p in caught.value.problems] == ["cluster.device.memories.nvme.capacity_bytes"]


@pytest.mark.parametrize(
    ("text", "value"), [("80 GiB", 80 * 2**30), ("640 Gbit", 80e9), ("80e9", 80e9), ("80_000_000_000", 80e9)]
)
def test_sizes_may_be_written_in_any_unit_of_size(text: str, value: float, catalogue: Catalogue) -> None:
    block = f"{{base: h800-2048, device.memories.hbm.capacity_bytes: {text}}}"
    scenario = load(PLAIN.replace("h800-2048", block), catalogue=catalogue).scenario
    assert scenario.cluster.device.memories["hbm"].capacity_bytes == value
