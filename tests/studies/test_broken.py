"""Every broken scenario in ``broken/`` is refused with all its problems, each at its place, saying what to do.

A new fault: add a file to ``broken/`` and its expected problems to ``EXPECTED``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sextant.simulator.errors import InputError, Problem
from sextant.simulator.types import Scenario
from sextant.studies.scenario import Catalogue, load
from sextant.studies.yaml_source import parse

BROKEN = Path(__file__).parent / "broken"

#: File -> its problems: line, column and a phrase; the file's own name if the problem is in another one.
EXPECTED: dict[str, list[tuple[int, int, str] | tuple[int, int, str, str]]] = {
    "alias_bomb": [(1, 4, "'&a': anchors and aliases are not read; use `base:` to inherit")],
    "ambiguous_unit": [
        (2, 72, "cluster.device.memories.host.bandwidth_bytes_per_s: 'Gb/s' may mean bits or bytes, got"),
    ],
    "axis_outside": [(5, 3, "axes.seed: an axis is a dotted path into model, cluster, plan or load")],
    "bad_escape": [
        (4, 10, "an escape or a number in a directive is out of range (Python int too large to convert to"),
    ],
    "bare_constraint": [
        (4, 23, "constraints.tpot_s: expected a bound, got '50 ms'; write {max: value} or {min: value}"),
    ],
    "base_is_a_number": [(1, 8, "model: expected a catalogue name or fields, got 3")],
    "base_is_absent": [(4, 7, "base: 'self_bas.yaml': there is no such file")],
    "binary": [(2, 7, "the file is binary (it holds a NUL byte); a scenario is UTF-8 text")],
    "bool_for_number": [(3, 30, "load.batch: expected a number, got true; write one such as 1")],
    "byte_order_mark": [(1, 1, "the file starts with a byte order mark; save it as UTF-8 without BOM")],
    "constraint_wrong_unit": [(4, 29, "constraints.tpot_s.max: expected seconds, got '50 MB', which is bytes")],
    "control_byte": [(4, 8, "character U+0007 is not allowed; remove it")],
    "control_character": [(4, 7, "name: the text holds a control character; remove it")],
    "conversion_after_unknown": [
        (1, 1, "modle: unknown key; did you mean 'model'"),
        (1, 1, "model: no base is given; write `model: NAME` or `model: {base: NAME, ...}`"),
        (3, 30, "load.batch: counts something and must be a whole number, got 1.5; write 2"),
    ],
    "cyclic_base_a": [
        (1, 7, "base: the bases go in a circle: cyclic_base_a.yaml -> cyclic_base_b.yaml ->", "cyclic_base_b"),
    ],
    "cyclic_base_b": [
        (1, 7, "base: the bases go in a circle: cyclic_base_b.yaml -> cyclic_base_a.yaml ->", "cyclic_base_a"),
    ],
    "decimal_comma": [
        (2, 45, "cluster.device.launch_s: expected a number such as \"2 us\", got '3,5 us'; write it so"),
    ],
    "duplicate_dotted_path": [(6, 5, "cluster.device.launch_s: given twice, first at line 4 column 3; keep one")],
    "duplicate_key": [(5, 1, "plan: given twice, first at line 4 column 1; keep one of them")],
    "efficiency_over_one": [
        (2, 58, "cluster.tiers.nvlink.link.efficiency: is a share between 0 and 1, got 80; write 0.5 or 50"),
    ],
    "empty": [(1, 1, "the file is empty; a scenario needs at least model, cluster and load")],
    "empty_axis": [(5, 16, "axes.plan.tensor: has no values; list at least one or remove the axis")],
    "fault_in_the_base": [
        (5, 3, "plan.pipelin: 'plan' has no field 'pipelin'; did you mean 'pipeline'?", "unknown_plan_field"),
    ],
    "fractional_count": [(4, 16, "plan.tensor: counts something and must be a whole number, got 2.5; write 2")],
    "infinite": [(2, 71, "cluster.device.memories.hbm.bandwidth_bytes_per_s: expected a finite number, got inf;")],
    "key_is_a_list": [(4, 8, "plan: a key must be a name, got a list or a mapping")],
    "key_is_a_number": [(4, 8, "plan: a key must be a name, got '8'; name a field, in quotes if need be")],
    "linspace_fractional_count": [(5, 34, "axes.plan.tensor: counts something, but linspace gives 3.33333")],
    "linspace_no_points": [(5, 46, "axes.model.engram_fraction: expected a number of points, got 0")],
    "linspace_two_numbers": [
        (5, 37, "axes.model.engram_fraction: expected three values, got 2 values; write {linspace: [from,"),
    ],
    "load_without_batch": [(3, 1, "load: the load needs more; add batch: 128")],
    "logspace_from_zero": [
        (5, 37, "axes.model.engram_fraction: logspace needs end values above zero; raise them or use"),
    ],
    "merge_key": [(5, 3, "plan: merge keys are not read; use `base:` to inherit another scenario")],
    "min_above_max": [(6, 10, "constraints.tpot_s.min: min 60 ms is above max 50 ms, so no point can meet both")],
    "missing_base": [(1, 1, "model: no base is given; write `model: NAME` or `model: {base: NAME, ...}`")],
    "negative_size": [
        (2, 64, "cluster.device.memories.hbm.capacity_bytes: must not be negative, got -80 GB; write a"),
    ],
    "no_load": [(1, 1, "load: the load needs more")],
    "no_model": [(1, 1, "model: no base is given; write `model: NAME` or `model: {base: NAME, ...}`")],
    "not_a_number": [(3, 30, "load.batch: expected a finite number, got nan; write a value such as 1")],
    "not_divisible": [(5, 11, "plan.tensor: 128 attention heads do not divide by 3; write a divisor of 128")],
    "not_utf8": [(2, 10, "byte 0xe9 is not UTF-8: the file is binary or in another encoding")],
    "nothing_for_number": [(3, 29, "load.batch: has no value; give it one or remove the key")],
    "number_for_text": [(5, 12, "plan.overlap: expected text, got 3; write '3' in quotes")],
    "objective_neither": [(4, 28, "objectives.tokens_per_s: unknown value 'most'; choose one of max, min")],
    "only_comments": [(1, 1, "the file holds only comments")],
    "overflowing_number": [
        (2, 45, "cluster.device.launch_s: expected a finite number, got inf; write a value such as 2 us"),
    ],
    "path_below_a_number": [
        (1, 28, "model.hidden_size.rows: 'model.hidden_size' has no fields of its own, so no 'rows'"),
    ],
    "plan_is_a_list": [(4, 7, "plan: expected a mapping, got ['tensor', 'expert']")],
    "plan_is_blank": [(4, 6, "plan: has no value; give it one or remove the key")],
    "published_is_text": [(4, 12, "published: expected a list, got 'figure-5'; write ['figure-5']")],
    "python_object": [(4, 7, "the tag '!!python/object/apply:os.system' is not read")],
    "quoted_number": [(3, 30, "load.batch: expected a number, got the text '128'; remove the quotes")],
    "record_as_number": [
        (2, 45, "cluster.device.memories: expected fields, got '80 GB'; set one of its own fields (hbm,"),
    ],
    "refused_by_the_record": [(1, 41, "model.hidden_size: hidden_size must be even, got 7167; correct the value")],
    "replaced_by_an_axis": [(4, 18, "plan.pipeline: expected a number, got 'many'; write digits only")],
    "scalar_axis": [(5, 16, "axes.plan.tensor: expected the values of an axis, got 8")],
    "scalar_for_list": [(4, 19, "plan.recompute: expected a list, got 'mlp'; write ['mlp']")],
    "seed_is_negative": [(4, 7, "seed: must not be negative, got -1; write 0 or more")],
    "seed_is_text": [(4, 7, "seed: expected a whole number, got 'lucky'")],
    "self_base": [(4, 7, "base: the bases go in a circle: self_base.yaml -> self_base.yaml")],
    "solve_an_axis": [
        (6, 3, "solve.model.n_routed_experts: this field is an axis, so it cannot follow from a"),
    ],
    "solve_both_ways": [
        (5, 28, "solve.model.n_routed_experts: n_dips rises and falls with this field, so that it"),
    ],
    "solve_is_a_list": [
        (4, 8, "solve: expected a mapping, got ['model.n_routed_experts']; write its fields below"),
    ],
    "solve_list_field": [
        (5, 3, "solve.model.hash_sizes: expected a field that holds a number, got list; solve another"),
    ],
    "solve_multiple_fractional": [
        (5, 61, "solve.model.n_routed_experts: the field counts something, so it is a whole number, got 2.5; write"),
    ],
    "solve_multiple_of_nothing": [
        (5, 61, "solve.model.n_routed_experts: must be more than zero, got 0; write a number such as 8"),
    ],
    "solve_multiple_too_large": [
        (5, 61, "solve.model.n_routed_experts: a solved field is at most 1e+09, got 2e+09; write less"),
    ],
    "solve_no_size": [
        (4, 33, "solve.model.n_routed_experts: one field follows from one size, got none; write one, such as"),
    ],
    "solve_plan_field": [
        (5, 3, "solve.plan.tensor: sizes follow from fields of model and load only, got"),
    ],
    "solve_record": [
        (5, 3, "solve.model: sizes follow from fields of model and load only, got 'model'; name one, such as"),
    ],
    "solve_refused_by_the_record": [
        (5, 3, "solve.model.hidden_size: not every value can stand in this field (hidden_size must"),
    ],
    "solve_scalar": [
        (4, 33, "solve.model.n_routed_experts: expected a size and its target, got 26700000000.0;"),
    ],
    "solve_target_blank": [
        (5, 41, "solve.model.n_routed_experts: expected a number, got nothing; write one such as 1"),
    ],
    "solve_target_in_bytes": [
        (5, 42, "solve.model.n_routed_experts: expected a bare number, got '26 GB', which is bytes;"),
    ],
    "solve_target_is_text": [
        (5, 42, "solve.model.n_routed_experts: expected a size, got 'bse'; write a number or base"),
    ],
    "solve_target_zero": [
        (5, 42, "solve.model.n_routed_experts: must be more than zero, got 0; write a number or base"),
    ],
    "solve_text_field": [(5, 3, "solve.load.phase: expected a field that holds a number, got text; solve another")],
    "solve_two_sizes": [
        (5, 27, "solve.model.n_routed_experts: one field follows from one size, got n_parameters"),
    ],
    "solve_unknown_field": [
        (5, 3, "solve.model.n_routed_expets: 'model' has no field 'n_routed_expets'; did you mean"),
    ],
    "solve_unknown_size": [
        (5, 28, "solve.model.n_routed_experts: unknown size 'n_paramters'; did you mean 'n_parameters'?"),
    ],
    "solve_unmoved_by_any": [
        (5, 16, "solve.load.batch: n_parameters does not depend on this field; neither does another"),
    ],
    "solve_without_influence": [
        (5, 28, "solve.model.n_routed_experts: kv_bytes_per_token does not depend on this field; hold what it moves"),
    ],
    "tab_indent": [(4, 1, "a tab cannot indent YAML; use spaces")],
    "text_for_number": [(3, 30, "load.batch: expected a number, got 'many'; write digits only")],
    "too_many_points": [(4, 1, "axes: 100,000 x 1,000 = 100,000,000 points, more than 5,000,000")],
    "top_level_list": [(1, 1, "expected `key: value` lines at the top level, got a list")],
    "top_level_text": [(1, 1, "expected `key: value` lines at the top level, got 'just a sentence'")],
    "two_documents": [(4, 1, "a second document starts here")],
    "two_errors": [
        (1, 46, "model.n_routed_experts: must not be negative, got -1; write a positive value"),
        (5, 3, "plan.tensr: 'plan' has no field 'tensr'; did you mean 'tensor'?"),
        (6, 1, "sed: unknown key; did you mean 'seed' or 'base' or 'study'?"),
    ],
    "unclosed_bracket": [(3, 7, "the bracket opened here is never closed; add the closing one")],
    "unit_on_a_count": [(3, 30, "load.batch: expected a bare number, got '128 GB', which is bytes")],
    "unknown_axis_kind": [
        (5, 17, "axes.plan.tensor: unknown kind of axis 'range'; choose one of linspace, logspace"),
    ],
    "unknown_axis_path": [(5, 3, "axes.model.n_routed_expets: 'model' has no field 'n_routed_expets'")],
    "unknown_base": [(1, 15, "model: unknown model 'deepseek-v4'")],
    "unknown_bound": [(4, 24, "constraints.tpot_s.maximum: unknown key; did you mean 'max'?")],
    "unknown_choice_in_axis": [(4, 30, "axes.plan.schedule: unknown value 'dualpip'; did you mean 'dualpipe'?")],
    "unknown_device_path": [
        (4, 3, "cluster.device.memories.hmb.capacity_bytes: 'cluster.device.memories' has no field 'hmb';"),
    ],
    "unknown_engine": [(4, 9, "engine: unknown value 'analytical'; did you mean 'analytic'?")],
    "unknown_figure": [(4, 13, "published: unknown figure 'figure-6'; did you mean 'figure-5'?")],
    "unknown_gpu": [(2, 36, "cluster.device: unknown GPU 'h201'; did you mean 'h200' or 'h800'?")],
    "unknown_metric": [(4, 15, "constraints.tpot: unknown metric 'tpot'; did you mean 'tpot_s'?")],
    "unknown_model": [(1, 8, "model: unknown model 'deepsek-v3'")],
    "unknown_model_field": [(3, 3, "model.n_routed_expert: 'model' has no field 'n_routed_expert'")],
    "unknown_model_in_axis": [(5, 24, "axes.model: unknown value 'deepseek-v4'")],
    "unknown_nested_path": [
        (7, 9, "cluster.device.memories.hbm.bandwith_bytes_per_s: 'cluster.device.memories.hbm' has no"),
    ],
    "unknown_objective": [(4, 14, "objectives.tokens_per_sec: unknown metric 'tokens_per_sec'")],
    "unknown_phase": [(3, 15, "load.phase: unknown value 'decoding'; did you mean 'decode'?")],
    "unknown_plan_field": [(5, 3, "plan.pipelin: 'plan' has no field 'pipelin'; did you mean 'pipeline'?")],
    "unknown_scenario_base": [(4, 7, "base: unknown scenario 'engram-study'")],
    "unknown_top_key": [(1, 1, "cluster: no base is given"), (2, 1, "clustre: unknown key; did you mean 'cluster'?")],
    "unknown_unit": [(2, 45, "cluster.device.launch_s: unknown unit 'usec' in '3 usec'; did you mean 'us'?")],
    "utf16": [(1, 1, "the file is UTF-16; save it as UTF-8")],
    "wrong_unit": [
        (4, 47, "cluster.device.memories.host.bandwidth_bytes_per_s: expected bytes/s, got '55 GB', which"),
    ],
    "wrong_unit_in_axis": [
        (5, 35, "axes.cluster.device.launch_s: expected seconds, got '3 GB', which is bytes; write it such"),
    ],
    "yes_for_flag": [(1, 49, "model.tie_word_embeddings: expected true or false, got 'yes'; write one of the two")],
    "zero_bandwidth": [
        (2, 71, "cluster.device.memories.hbm.bandwidth_bytes_per_s: must be more than zero, got 0; write"),
    ],
    "zero_degree": [(4, 16, "plan.tensor: must be more than zero, got 0; write 1 or more")],
}


def divisible(scenario: Scenario) -> Iterator[tuple[str | tuple[str, ...], str]]:
    """The heads of the model are divided over the tensor degree."""
    heads, tensor = scenario.model.attention.num_attention_heads, scenario.plan.tensor  # type: ignore[attr-defined]
    if heads % tensor:
        yield (
            ("plan.tensor", "model.attention.num_attention_heads"),
            (f"{heads} attention heads do not divide by {tensor:g}; write a divisor of {heads}"),
        )


def problems_of(file: Path, catalogue: Catalogue) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        load(file, catalogue=catalogue, checks=[divisible])
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_broken_scenario_is_refused_at_its_place(name: str, catalogue: Catalogue) -> None:
    problems = problems_of(BROKEN / f"{name}.yaml", catalogue)
    expected = EXPECTED[name]
    files = [BROKEN / f"{e[3] if len(e) > 3 else name}.yaml" for e in expected]
    assert [(p.path, p.line, p.column) for p in problems] == [
        (str(f), e[0], e[1]) for f, e in zip(files, expected, strict=True)
    ]
    for problem, case in zip(problems, expected, strict=True):
        assert case[2] in f"{problem.key}: {problem.message}"


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_problem_says_what_to_do_on_one_short_line(name: str, catalogue: Catalogue) -> None:
    for problem in problems_of(BROKEN / f"{name}.yaml", catalogue):
        what, _, remedy = problem.message.partition("; ")
        assert what and remedy
        assert "\n" not in str(problem) and str(problem).isprintable()
        assert len(problem.message) < 300


def test_every_file_is_expected_and_every_expectation_has_a_file() -> None:
    assert sorted(f.stem for f in BROKEN.glob("*.yaml")) == sorted(EXPECTED)


def test_an_absent_file_and_a_directory_are_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    (absent,) = problems_of(BROKEN / "emty.yaml", catalogue)
    assert absent.message.startswith("there is no such file; did you mean 'empty.yaml'")
    (directory,) = problems_of(tmp_path, catalogue)
    assert directory.message.startswith("is a directory, not a file")
    (named,) = problems_of(Path("engram"), catalogue)
    assert (named.path, named.line) == ("engram", 0)


def test_a_big_nested_file_is_one_problem(catalogue: Catalogue, tmp_path: Path) -> None:
    file = tmp_path / "nested.yaml"
    file.write_text("model: " + "[" * 10_000_000)
    (problem,) = problems_of(file, catalogue)
    assert "larger than 1 MB" in problem.message
    file.write_text("model: " + "[" * 500_000)
    (problem,) = problems_of(file, catalogue)
    assert (problem.line, problem.column) == (1, 57)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plan.pipelin=8", "plan.pipelin: 'plan' has no field 'pipelin'; did you mean 'pipeline'?"),
        ("plan.pipeline", "expected path=value; write for example plan.pipeline=8"),
        ("=8", "expected path=value; write for example plan.pipeline=8"),
        ("plan.pipeline=", "no value after '='; write one"),
        ("plan.pipeline=many", "plan.pipeline: expected a number, got 'many'; write digits only"),
        ("plan.pipeline=[8", "plan.pipeline: the bracket opened here is never closed; add the closing one"),
        ("plan.pipeline=8 GB", "plan.pipeline: expected a bare number, got '8 GB', which is bytes; "
                               "write the number without a unit"),
        ("plan.schedule=zb1p", "plan.schedule: an axis sweeps this field; "
                               "write --set 'axes.plan.schedule=[zb1p]' to hold it fixed"),
        ("model=deepseek-v4", "model: unknown model 'deepseek-v4'; did you mean 'deepseek-v3' or 'deepseek-v2'?"),
        ("pln.tensor=2", "pln: unknown key; did you mean 'plan'?"),
        ("engine=evnt", "engine: unknown value 'evnt'; did you mean 'event'?"),
        ("base=other.yaml", "base cannot be set here; run that scenario instead"),
        ("constraints.tpot.max=1", "constraints.tpot: unknown metric 'tpot'; did you mean 'tpot_s'?"),
        ("axes.plan.tensor=8", "axes.plan.tensor: expected the values of an axis, got 8; "
                               "write [a, b, ...], {linspace: [from, to, n]} or {logspace: [from, to, n]}"),
        ("load.batch=-1", "load.batch: must not be negative, got -1; write a positive value"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_named_in_full(word: str, text: str, good: str, catalogue: Catalogue) -> None:
    with pytest.raises(InputError) as caught:
        load(good, sets=[word], catalogue=catalogue)
    assert str(caught.value).splitlines() == [f"--set {word}: {text}"]


def test_problems_of_files_and_sets_come_together(good: str, catalogue: Catalogue) -> None:
    with pytest.raises(InputError) as caught:
        load(good.replace("seed: 7", "sed: 7"), sets=["plan.pipelin=8", "load.bach=2"], catalogue=catalogue)
    assert [p.key for p in caught.value.problems] == ["sed", "plan.pipelin", "load.bach"]


def answers(text: str, catalogue: Catalogue, sets: tuple[str, ...] = ()) -> None:
    """Load ``text``; anything but a question or an InputError with remedies fails the test."""
    try:
        load(parse(text), sets=sets, catalogue=catalogue, checks=[divisible])
    except InputError as error:
        assert error.problems
        assert all(str(p).isprintable() for p in error.problems)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SNIPPETS = st.sampled_from(
    [
        "", " ", "\n", ":", "-", "[", "]", "{", "}", ",", "0", "-1", ".inf", ".nan", "1e999", "null", "true", "'", '"',
        "&a", "*a", "!!x", "#", "---\n", "\t", "base", "model", "axes", "linspace", "GB", "Gb", "9" * 400, "\u00e9",
        "\u2028", "\0", "[[1]]", "{a: 1}", "name: x\n", "plan: 3\n", "cluster.device: h200", "5 %", "<<", "? ", "| ",
    ]
)  # fmt: skip


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 12), SNIPPETS), min_size=1, max_size=4))
def test_no_mutation_of_a_good_scenario_gives_anything_but_an_input_error(
    edits, good: str, catalogue: Catalogue
) -> None:
    text = good
    for at, cut, put in edits:
        text = text[:at] + put + text[at + cut :]
    answers(text, catalogue)


@FUZZ
@given(text=st.text(max_size=80))
def test_no_text_gives_anything_but_an_input_error(text: str, catalogue: Catalogue) -> None:
    answers(text, catalogue)


VALUES = st.recursive(
    st.sampled_from(
        [None, True, 0, -1, 2.5, "x", "", "80 GB", "deepseek-v3", "h800", float("nan"), float("inf"), 10**20]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["base", "max", "linspace", "a.b", "", "device", "hidden_size", "n_parameters", "multiple_of"]
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=4,
)
PLACES = [
    "name", "base", "description", "model", "cluster", "plan", "load", "axes", "constraints", "objectives", "engine",
    "seed", "published", "model.base", "model.attention", "model.hash_sizes", "cluster.device", "plan.placement",
    "plan.recompute", "plan.placement.engram", "load.phase", "axes.model", "axes.plan.tensor", "axes.cluster.device",
    "solve", "solve.model.n_routed_experts", "solve.model.hidden_size", "solve.load.context_tokens",
    "axes.plan.recompute", "axes.model.attention.q_lora_rank", "constraints.tpot_s", "objectives.tokens_per_s",
    "cluster.device.memories.hbm", "model.tie_word_embeddings", "axes.plan.placement.engram",
]  # fmt: skip


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(PLACES), VALUES, min_size=1, max_size=3))
def test_no_value_anywhere_gives_anything_but_an_input_error(changes, good: str, catalogue: Catalogue) -> None:
    answers(good, catalogue, tuple(f"{path}={flow(value)}" for path, value in changes.items()))


def flow(value: object) -> str:
    """``value`` as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"'{k}': {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    special = {None: "null", True: "true", float("inf"): ".inf"}
    if value is None or value is True or value == float("inf"):
        return special[value]  # type: ignore[index]
    return ".nan" if value != value else repr(value)
