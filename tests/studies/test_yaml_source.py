"""YAML reading: plain data with positions, and one clear problem for everything that is no scenario text."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.errors import InputError, Problem
from sextant.studies.yaml_source import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse, read

TEXT = """\
# a comment
plan:
  pipeline: 8
  placement: {engram: host}
axes:
  model.n: [64,
            128]
"""


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        parse(text, "a.yaml")
    return caught.value.problems


def the_problem(text: str) -> str:
    (problem,) = problems_of(text)
    return str(problem)


@pytest.mark.parametrize(
    ("keys", "key_place", "value_place"),
    [
        (("plan",), (2, 1), (3, 3)),
        (("plan", "pipeline"), (3, 3), (3, 13)),
        (("plan", "placement", "engram"), (4, 15), (4, 23)),
        (("axes", "model.n"), (6, 3), (6, 12)),
        (("axes", "model.n", 1), (7, 13), (7, 13)),
        ((), (2, 1), (2, 1)),
        (("plan", "absent"), (2, 1), (2, 1)),
        (("absent", "deeper"), (2, 1), (2, 1)),
    ],
)
def test_every_key_and_value_knows_its_place(keys: tuple[str | int, ...], key_place: Any, value_place: Any) -> None:
    source = parse(TEXT, "a.yaml")
    assert source.where(keys) == key_place
    assert source.where(keys, value=True) == value_place


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1e9),
        ("3.35e12", 3.35e12),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("-2", -2),
        ("+3", 3),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("2E-6", 2e-6),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("null", None),
        ("~", None),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("2024-01-01", "2024-01-01"),
        ("4.8 TB/s", "4.8 TB/s"),
        ("'8'", "8"),
        ('"true"', "true"),
        ("1e", "1e"),
        ("nan", "nan"),
        ("=", "="),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: 1, b: }", {"a": 1, "b": None}),
    ],
)
def test_a_scalar_becomes_what_it_says(text: str, value: Any) -> None:
    data = parse(f"key: {text}", "a.yaml").data["key"]
    assert data == value
    assert type(data) is type(value)


def test_infinity_and_nan_are_numbers_for_the_reader_to_judge() -> None:
    data = parse("[.inf, -.INF, .nan, .NaN]").data
    assert data[:2] == [math.inf, -math.inf]
    assert all(math.isnan(x) for x in data[2:])


def test_every_duplicate_key_is_reported_with_both_places() -> None:
    found = [str(p) for p in problems_of("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")]
    assert found == [
        "a.yaml:4:3: b.c: given twice, first at line 3 column 3; keep one of them",
        "a.yaml:5:1: a: given twice, first at line 1 column 1; keep one of them",
    ]


@pytest.mark.parametrize(
    ("text", "place", "phrase"),
    [
        ("", "1:1", "is empty"),
        ("  \n\n", "1:1", "is empty"),
        ("# note\n", "1:1", "only comments"),
        ("a: &x 1\n", "1:4", "'&x': anchors and aliases are not read; use `base:`"),
        ("a: 1\nb: *x\n", "2:4", "'*x': anchors and aliases are not read"),
        ("a:\n  <<: {b: 1}\n", "2:3", "merge keys are not read; use `base:`"),
        ("a: !!python/name:os.system\n", "1:4", "the tag '!!python/name:os.system' is not read"),
        ("a: !mine [1]\n", "1:4", "the tag '!mine' is not read"),
        ("a: !!str 5\n", "1:4", "the tag '!!str' is not read"),
        ("a:\n\tb: 1\n", "2:1", "a tab cannot indent YAML; use spaces"),
        ("a: [1, 2\n", "1:4", "the bracket opened here is never closed"),
        ("a: 1\n b: 2\n", "2:3", "mapping values are not allowed here"),
        ("a: 'open\n", "2:1", "quoted scalar"),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document starts here"),
        ("5: 1\n", "1:1", "a key must be a name, got '5'"),
        ("true: 1\n", "1:1", "a key must be a name, got 'true'"),
        ("? [a]\n: 1\n", "1:3", "a key must be a name, got a list or a mapping"),
        ("a: \x00\n", "1:4", "the file is binary"),
        ("\ufeffa: 1\n", "1:1", "byte order mark; save it as UTF-8 without BOM"),
        ("a: b\x07\n", "1:5", "character U+0007 is not allowed; remove it"),
        ('a: "\\e[0m"\n', "1:4", "control character; remove it"),
        ('a: "\\ud800"\n', "1:4", "control character; remove it"),
        ('a: "\\UFFFFFFFF"\n', "1:7", "out of range"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1\n", "1:7", "out of range"),
        ("a: " + "9" * 5000, "1:4", "a number of more than 300 digits"),
        ("a: @b\n", "1:4", "cannot start any token; correct the YAML here, or put the text in quotes"),
    ],
)
def test_what_is_not_read_gives_one_problem_at_its_place(text: str, place: str, phrase: str) -> None:
    problem = the_problem(text)
    assert problem.startswith(f"a.yaml:{place}: ")
    assert phrase in problem


def test_nesting_is_accepted_to_the_limit_and_refused_beyond() -> None:
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH).data
    deeper = MAX_DEPTH + 1
    assert f"a.yaml:1:{deeper}: nested deeper than {MAX_DEPTH} levels" in the_problem("[" * deeper + "]" * deeper)


@pytest.mark.parametrize("piece", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_of_any_kind_is_refused_fast(piece: str) -> None:
    start = time.perf_counter()
    assert f"nested deeper than {MAX_DEPTH} levels" in the_problem(piece * (MAX_BYTES // len(piece) - 1))
    assert time.perf_counter() - start < 2.0


def test_ten_megabytes_of_brackets_are_refused_fast(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("[" * 10_000_000)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"deep\.yaml: larger than 1 MB"):
        read(file)
    with pytest.raises(InputError, match="larger than 1 MB"):
        parse("[" * 10_000_000)
    assert time.perf_counter() - start < 1.0


def test_too_many_values_are_refused() -> None:
    assert f"more than {MAX_NODES:,} values; use linspace" in the_problem("[" + "1," * (MAX_NODES + 1) + "]")


@pytest.mark.parametrize(
    ("data", "place", "phrase"),
    [
        (b"a: caf\xe9\n", ":1:7", "byte 0xe9 is not UTF-8"),
        (b"a: 1\n\xff\xd8\xff\xe0", ":2:1", "byte 0xff is not UTF-8"),
        (b"\x7fELF\x00\x01", ":1:5", "the file is binary"),
        ("a: 1\n".encode("utf-16"), ":1:1", "the file is UTF-16; save it as UTF-8"),
        (b"\xef\xbb\xbfa: 1\n", ":1:1", "byte order mark"),
    ],
)
def test_a_file_that_is_no_utf8_text_is_refused(tmp_path: Path, data: bytes, place: str, phrase: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}{place}: ")
    assert phrase in str(caught.value)


def test_an_absent_file_offers_the_nearest_names(tmp_path: Path) -> None:
    (tmp_path / "engram.yaml").write_text("a: 1\n")
    with pytest.raises(InputError, match=r"engam\.yaml: there is no such file; did you mean 'engram\.yaml'\?"):
        read(tmp_path / "engam.yaml")
    with pytest.raises(InputError, match=r"no directory .*none.* either; correct the path"):
        read(tmp_path / "none" / "a.yaml")
    with pytest.raises(InputError, match="is a file, not a directory"):
        read(tmp_path / "engram.yaml" / "a.yaml")


def test_a_directory_is_refused_and_a_file_in_it_offered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a directory, not a file; name a file in it .it holds no YAML file."):
        read(tmp_path)
    (tmp_path / "engram.yaml").write_text("a: 1\n")
    with pytest.raises(InputError, match=r"name a file in it, such as 'engram\.yaml'"):
        read(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\n")
    file.chmod(0)
    with pytest.raises(InputError, match=r"cannot be read .*; check the path and its permissions"):
        read(file)


@pytest.mark.parametrize("path", ["a\0b.yaml", "x" * 5000 + ".yaml"])
def test_an_impossible_path_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read|there is no such file"):
        read(path)


def test_line_ends_of_any_system_count_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"a: 1\r\nb:\r\n  c: 2\r\n")
    source = read(file)
    assert source.data == {"a": 1, "b": {"c": 2}}
    assert source.where(("b", "c"), value=True) == (3, 6)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner),
    max_leaves=8,
)


def spelled(data: Any) -> str:
    """``data`` as YAML flow text, written without the reader's own rules."""
    if isinstance(data, dict):
        return "{" + ", ".join(f"'{k}': {spelled(v)}" for k, v in data.items()) + "}"
    if isinstance(data, list):
        return "[" + ", ".join(map(spelled, data)) + "]"
    return "null" if data is None else str(data).lower() if isinstance(data, bool) else repr(data)


@given(PLAIN)
def test_plain_data_reads_back_as_written(data: Any) -> None:
    assert parse(spelled(data)).data == data


@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-?&*!|>'\"%@`#\n\t ab1.", max_size=60))
def test_any_text_gives_data_or_an_input_error(text: str) -> None:
    try:
        parse(text)
    except InputError as error:
        assert all(p.message for p in error.problems)


@given(st.binary(max_size=60))
def test_any_bytes_give_data_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(data)
    try:
        read(file)
    except InputError as error:
        assert all(p.message for p in error.problems)
