"""Axes: all combinations in the order of nested loops, every point in exactly one group, arrays where numbers vary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.studies.axes import MAX_POINTS, columns, groups, is_numeric, n_points
from sextant.studies.scenario import Catalogue, Question, load

PLAIN = """\
model: {base: deepseek-v3, attention.q_lora_rank: 512}
cluster: h800-2048
load: {phase: decode, batch: 128, context_tokens: 4096}
"""
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ask(catalogue: Catalogue, *axes: str, max_points: int = MAX_POINTS) -> Question:
    """A question whose axes are the lines ``axes``."""
    return load(
        PLAIN + "".join(["axes:\n", *(f"  {a}\n" for a in axes)] if axes else []),
        catalogue=catalogue,
        max_points=max_points,
    )


def values(question: Question, path: str) -> tuple[object, ...]:
    return tuple(question.scenario.axes[path])


def test_without_axes_there_is_one_point_of_scalars(catalogue: Catalogue) -> None:
    question = ask(catalogue)
    ((index, scenario),) = groups(question)
    assert index.tolist() == [0]
    assert scenario == question.scenario
    assert n_points(question.scenario.axes) == 1
    assert columns({}, index) == {}


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("plan.tensor: [1, 2, 8]", (1.0, 2.0, 8.0)),
        ("model.engram_fraction: {linspace: [0.0, 0.6, 4]}", (0.0, 0.2, 0.4, 0.6)),
        ("model.engram_fraction: {linspace: [60 %, 0, 3]}", (0.6, 0.3, 0.0)),
        ("load.batch: {logspace: [1, 1024, 11]}", tuple(2.0**i for i in range(11))),
        ("load.batch: {linspace: [8, 32, 4]}", (8.0, 16.0, 24.0, 32.0)),
        ("cluster.device.launch_s: [1 us, 2e-6, 3 ms]", (1e-6, 2e-6, 3e-3)),
        ("cluster.device.memories.hbm.bandwidth_bytes_per_s: {logspace: [1 TB/s, 4 TB/s, 3]}", (1e12, 2e12, 4e12)),
    ],
)
def test_numeric_axes_become_si_floats(axis: str, expected: tuple[float, ...], catalogue: Catalogue) -> None:
    found = values(ask(catalogue, axis), axis.partition(":")[0])
    assert found == pytest.approx(expected, rel=1e-12)
    assert all(type(v) is float for v in found)


def test_the_ends_of_a_space_are_exact_and_counts_are_whole(catalogue: Catalogue) -> None:
    batch = values(ask(catalogue, "load.batch: {logspace: [1, 1000, 4]}"), "load.batch")
    assert batch == (1.0, 10.0, 100.0, 1000.0)
    rate = "cluster.device.memories.hbm.bandwidth_bytes_per_s"
    swept = values(ask(catalogue, f"{rate}: {{logspace: [1.1 TB/s, 3.35 TB/s, 9]}}"), rate)
    assert (swept[0], swept[-1]) == (1.1e12, 3.35e12)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("plan.schedule: [1f1b, zb1p]", ("1f1b", "zb1p")),
        ("model: [deepseek-v3, deepseek-v2]", ("deepseek-v3", "deepseek-v2")),
        ("model.base: [deepseek-v2]", ("deepseek-v2",)),
        ("cluster.device: [h200, h800]", ("h200", "h800")),
        ("plan.recompute: [[], [mlp], [mlp, norm]]", ((), ("mlp",), ("mlp", "norm"))),
        ("model.tie_word_embeddings: [true, false]", (True, False)),
        ("model.attention.q_lora_rank: [null, 1536]", (None, 1536)),
        ("plan.placement.engram: [hbm, host]", ("hbm", "host")),
    ],
)
def test_other_axes_are_structural(axis: str, expected: tuple[object, ...], catalogue: Catalogue) -> None:
    question = ask(catalogue, axis)
    path = axis.partition(":")[0].removesuffix(".base")
    assert values(question, path) == expected
    assert not is_numeric(expected)
    found = list(groups(question))
    assert [index.tolist() for index, _ in found] == [[i] for i in range(len(expected))]
    if path == "model":
        assert [s.model.name for _, s in found] == list(expected)  # type: ignore[attr-defined]
    elif path == "cluster.device":
        assert [s.cluster.device for _, s in found] == [catalogue.gpus(str(name)) for name in expected]
    else:
        assert [paths.get(s, path) for _, s in found] == list(expected)


def test_what_is_set_below_a_base_holds_for_every_swept_base(catalogue: Catalogue) -> None:
    question = ask(catalogue, "model: [deepseek-v3, deepseek-v2]", "model.n_routed_experts: [64, 128]")
    found = [s.model for _, s in groups(question)]
    assert [m.hidden_size for m in found] == [7168, 5120]  # type: ignore[attr-defined]
    assert [m.attention.q_lora_rank for m in found] == [512, 512]  # type: ignore[attr-defined]
    for model in found:
        assert model.n_routed_experts.tolist() == [64.0, 128.0]  # type: ignore[attr-defined]


def test_points_are_numbered_like_nested_loops(catalogue: Catalogue) -> None:
    axes = ("plan.tensor: [1, 2]", "plan.schedule: [1f1b, zb1p]", "load.batch: [8, 16, 32]")
    question = ask(catalogue, *axes)
    expected = list(itertools.product([1.0, 2.0], ["1f1b", "zb1p"], [8.0, 16.0, 32.0]))
    table = columns(question.scenario.axes, np.arange(n_points(question.scenario.axes)))
    assert list(zip(*(c.tolist() for c in table.values()), strict=True)) == expected
    assert [c.dtype for c in table.values()] == [np.float64, object, np.float64]


STRUCTURAL = ("plan.tensor", "plan.pipeline", "load.batch", "model.n_routed_experts", "cluster.device.launch_s")


@QUICK
@given(
    lists=st.dictionaries(st.sampled_from(STRUCTURAL), st.lists(st.integers(1, 5), min_size=1, max_size=5), min_size=1),
    schedules=st.lists(st.sampled_from(["1f1b", "zb1p"]), max_size=3),
    structural=st.sets(st.sampled_from(STRUCTURAL)),
    chunk=st.integers(1, 40),
)
def test_every_point_is_in_one_group_with_its_own_values(
    lists, schedules, structural, chunk, catalogue: Catalogue
) -> None:
    axes = {**lists, **({"plan.schedule": schedules} if schedules else {})}
    question = ask(catalogue, *(f"{p}: [{', '.join(map(str, v))}]" for p, v in axes.items()))
    expected = list(itertools.product(*axes.values()))
    seen: dict[int, tuple[object, ...]] = {}
    for index, scenario in groups(question, structural=structural, chunk=chunk):
        assert 0 < len(index) <= chunk
        assert index.tolist() == sorted(index.tolist())
        for path in axes:
            value = paths.get(scenario, path)
            if path in structural or path == "plan.schedule":
                assert np.ndim(value) == 0
            else:
                assert value.dtype == np.float64 and value.shape == index.shape
        for at, number in enumerate(index.tolist()):
            assert number not in seen
            found = (paths.get(scenario, path) for path in axes)
            seen[number] = tuple(v[at] if isinstance(v, np.ndarray) else v for v in found)
    assert [seen[i] for i in range(len(expected))] == expected


def test_a_structural_number_keeps_the_type_of_its_field(catalogue: Catalogue) -> None:
    question = ask(catalogue, "model.num_hidden_layers: [4, 8, 4]", "plan.pipeline: [1, 2]")
    found = list(groups(question, structural={"model.num_hidden_layers", "plan.pipeline"}))
    assert [(i.tolist(), s.model.num_hidden_layers, s.plan.pipeline) for i, s in found] == [  # type: ignore[attr-defined]
        ([0, 4], 4, 1.0),
        ([1, 5], 4, 2.0),
        ([2], 8, 1.0),
        ([3], 8, 2.0),
    ]
    assert all(type(s.model.num_hidden_layers) is int for _, s in found)  # type: ignore[attr-defined]


def test_large_groups_are_cut_into_chunks(catalogue: Catalogue) -> None:
    question = ask(
        catalogue, "model.engram_fraction: {linspace: [0, 0.5, 300]}", "load.batch: {linspace: [1, 200, 200]}"
    )
    sizes = [len(index) for index, _ in groups(question)]
    assert sizes == [16384, 16384, 16384, 60000 - 3 * 16384]


def test_too_many_points_are_refused_before_any_is_made(catalogue: Catalogue) -> None:
    axes = ("model.engram_fraction: {linspace: [0, 0.5, 1000000000]}", "load.batch: [1, 2]")
    with pytest.raises(
        InputError, match="1,000,000,000 x 2 = 2,000,000,000 points, more than 5,000,000; shorten an axis"
    ):
        ask(catalogue, *axes)
    assert n_points(ask(catalogue, "load.batch: [1, 2]", "plan.tensor: [1, 2]", max_points=4).scenario.axes) == 4
    with pytest.raises(InputError, match="2 x 2 = 4 points, more than 3"):
        ask(catalogue, "load.batch: [1, 2]", "plan.tensor: [1, 2]", max_points=3)


def test_the_scenario_of_a_question_is_its_first_point(catalogue: Catalogue) -> None:
    question = ask(catalogue, "plan.tensor: [4, 2]", "cluster.device: [h200, h800]")
    assert question.scenario.plan.tensor == 4.0
    assert question.scenario.cluster.device == catalogue.gpus("h200")


def test_a_point_of_any_field_can_be_asked(catalogue: Catalogue) -> None:
    question = ask(catalogue, "plan.tensor: [4, 2]")
    assert question.at({"plan.tensor": 2.0, "load.batch": 7}).load.batch == 7.0
    with pytest.raises(InputError, match="'plan' has no field 'tensr'; did you mean 'tensor'"):
        question.at({"plan.tensr": 2.0})
