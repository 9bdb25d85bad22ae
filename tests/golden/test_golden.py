"""Answers of the shipped scenarios, as they were when last written by ``python -m tests.golden``.

They say nothing of what is right, only that something changed: review the diff, and commit it with its cause.
"""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("golden_results", FOLDER / "__main__.py")
golden = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden)


def test_every_shipped_scenario_has_golden_results():
    """And no file is left over from one that is gone."""
    assert {path.stem for path in FOLDER.glob("*.json")} == set(golden.scenario_names())


@pytest.mark.parametrize("scenario", golden.scenario_names())
def test_answers_are_as_they_were(scenario):
    """Every metric to 1e-9, on both engines; the same metrics, the same limits."""
    written = json.loads((FOLDER / f"{scenario}.json").read_text(encoding="utf-8"))
    now = golden.metrics(scenario)
    assert now.keys() == written.keys()
    for engine, found in now.items():
        assert found["limits"] == written[engine]["limits"]
        assert found["metrics"] == pytest.approx(written[engine]["metrics"], rel=1e-9, abs=1e-15), engine
