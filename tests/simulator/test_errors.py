"""Errors: the place, the key and the remedy, all problems at once."""

from __future__ import annotations

import pytest

from sextant.simulator.errors import InputError, Problem, nearest


def test_a_problem_reads_path_line_column_key_message() -> None:
    problem = Problem(path="a.yaml", line=3, column=7, key="plan.tensor", message="wrong; do better")
    assert str(problem) == "a.yaml:3:7: plan.tensor: wrong; do better"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem(message="m"), "m"),
        (Problem(message="m", path="a"), "a: m"),
        (Problem(message="m", key="k"), "k: m"),
        (Problem(message="m", path="--set a=1", key="a"), "--set a=1: a: m"),
        (Problem(message="m", line=3, column=1), ":3:1: m"),
    ],
)
def test_what_is_unknown_is_left_out(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_an_input_error_lists_every_problem_on_its_own_line() -> None:
    error = InputError("first", Problem(message="second", path="b.yaml", line=1, column=2))
    assert str(error) == "first\nb.yaml:1:2: second"
    assert [p.message for p in error.problems] == ["first", "second"]
    assert isinstance(error, ValueError)


def test_the_nearest_names_are_offered_nearest_first() -> None:
    assert nearest("bandwith", ["bandwidth", "latency"]) == "did you mean 'bandwidth'?"
    assert nearest("deepseek-v4", ["deepseek-v2", "h800"]).startswith("did you mean 'deepseek-v2'")


def test_all_names_are_offered_when_none_is_near() -> None:
    assert nearest("zzz", ["b", "a"]) == "choose one of a, b"


def test_an_empty_catalogue_says_so() -> None:
    assert nearest("x", []) == "there is nothing to choose from"
