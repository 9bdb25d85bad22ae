"""Parts on pipeline stages: every layer of every shipped training scenario lies on one, and costs its time."""

from collections import Counter

import pytest

from sextant.studies import catalogue, stages, training
from sextant.studies.answer import answer, question

TRAINING = [name for name in catalogue.scenario_names() if "training" in name]


@pytest.mark.parametrize("name", TRAINING)
def test_every_part_lies_on_one_stage(name):
    """What a chunk forgets would cost nothing."""
    scenario = question(name).scenario
    timed = training.timed_step(scenario)
    ((_, found),) = stages.layouts(scenario, timed, 1)
    assert Counter(part for chunk in found.chunks for part in chunk) == {
        p: int(n) for p, n in timed.step.layers.items()
    }


@pytest.mark.parametrize("name", [name for name in TRAINING if "janus" in name or "vl" in name])
def test_images_in_a_sequence_take_time_and_memory(name):
    """The encoder runs on the stage of the first layer; pixels cost, the language model's tokens stay as many."""
    fewer, more = (answer(question(name, [f"load.n_images={n}"])).columns for n in (1, 2))
    assert (more["step_time_s"] > 1.003 * fewer["step_time_s"]).all()
    assert (more["hbm_bytes"] > fewer["hbm_bytes"]).all()
