"""Plans that cannot exist, and models that have no experts: answered through the command line, never a traceback."""

from pathlib import Path

import pytest

from sextant.simulator.errors import InputError
from sextant.studies.answer import answer, question
from sextant.studies.cli import main

LLAMA = """
name: Llama 405B
model: llama-3.1-405b
cluster: {base: h800-2048, device: h100, n_devices: 16384, tiers.infiniband.n_devices: 2048}
plan: {tensor: 8, pipeline: 16, data: 128, schedule: 1f1b, formats: bf16}
load: {phase: training, batch: 2048, context_tokens: 8192}
"""


@pytest.mark.parametrize("words", [["load.batch=15000"], ["load.batch=1280"], ["load.batch=15000", "engine=analytic"]])
@pytest.mark.parametrize("options", [[], ["--json"], ["--out"]])
def test_a_schedule_that_does_not_exist_is_told(words, options, capsys, monkeypatch, tmp_path: Path):
    """Exit 1 and the reason, also as JSON and with files."""
    options = [*options, str(tmp_path)] if options == ["--out"] else options
    sets = [part for word in words for part in ("--set", word)]
    monkeypatch.setattr("sys.argv", ["sextant", "run", "deepseek_v3_h800_training", *sets, *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert "divisibility: sequences" in out or "DualPipe needs" in out


@pytest.mark.parametrize(
    ("load", "place", "problem"),
    [
        ("{routing: powerlaw}", "2:17", "load.routing: unknown 'powerlaw'; choose balanced, power_law_A"),
        ("{routing: counts, expert_tokens: [1, 2]}", "2:40", "load.expert_tokens: 2 numbers for 256 routed experts"),
    ],
)
def test_a_routing_that_does_not_exist_is_told_at_its_place(load: str, place: str, problem: str, tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"base: deepseek_v3_h800_training\nload: {load}\n")
    with pytest.raises(InputError) as told:
        question(str(path))
    assert f"wrong.yaml:{place}: {problem}" in str(told.value)


@pytest.mark.parametrize("model", ["llama-3.1-405b", "qwen-2.5-72b"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb1p", "interleaved"])
def test_dense_models_train(model, schedule):
    """No experts, no latent attention: every schedule has an answer, and a plausible utilisation."""
    sets = [f"model={model}", f"plan.schedule={schedule}", "load.batch=8192"]
    sets += ["plan.virtual_stages=5"] if schedule == "interleaved" else []
    found = answer(question(LLAMA, sets))
    assert 0.2 < found.columns["mfu_causal"][0] < 0.6


def test_tensor_parallel_messages_are_exposed():
    """They stand in line with compute; more devices that split a layer wait longer for them."""
    found = answer(question(LLAMA, ["axes.plan.tensor=[1,2,4,8]"]))
    exposed = found.columns["exposed_comm_s"]
    assert exposed[0] == 0.0
    assert (exposed[1:] > 0).all()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_dense_models_serve(phase):
    """With the plan's pipeline refused, since serving does not model one."""
    sets = ["plan.pipeline=1", "plan.data=1", f"load.phase={phase}", "load.batch=4", "plan.formats=fp8"]
    assert answer(question(LLAMA, sets)).columns["tokens_per_s"][0] > 0


def test_replicas_that_share_no_node_pay_for_it():
    """Under tensor parallelism over a whole node every replica of a weight lies on another node."""
    steps = answer(question(LLAMA, ["axes.plan.tensor=[1,8]", "plan.data=64"])).columns["optimizer_s"]
    per_byte = steps * [1.0, 8.0]
    assert per_byte[1] > 3 * per_byte[0]
