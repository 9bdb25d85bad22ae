"""The predictions that Sextant is judged by, as they stand: a change of any of them must be meant."""

import pytest

from sextant.studies.answer import answer, question
from sextant.validate import published


@pytest.mark.parametrize(
    ("scenario", "figure", "within"),
    [
        ("deepseek_v3_h800_training", "deepseek_v3_training.mpft.step_time_s", 0.10),
        ("deepseek_v3_h800_decode_ep128", "profile_data.decode.tokens_per_s_per_device", 0.05),
        ("deepseek_v3_h800_prefill", "profile_data.prefill.tokens_per_s_per_device", 0.10),
        ("deepseek_v3_h800_decode_online", "online_serving.decode.tpot_s", 0.05),
    ],
)
def test_published_systems_are_predicted(scenario, figure, within):
    """Nothing is fitted to these figures."""
    judge = published.figure(figure)
    predicted = answer(question(scenario)).columns[judge.metric][0]
    assert predicted == pytest.approx(judge.value, rel=within)


def test_the_published_step_lies_in_the_interval():
    """The 90% interval is wide enough to hold what is missing from the model."""
    columns = answer(question("deepseek_v3_h800_training")).columns
    judge = published.figure("deepseek_v3_training.mpft.step_time_s").value
    assert columns["step_time_low_s"][0] < judge < columns["step_time_high_s"][0]
