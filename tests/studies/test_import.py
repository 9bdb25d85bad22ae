"""Model files: written by an import, read by scenarios and cards, with faults at their places."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from sextant.simulator.errors import InputError
from sextant.studies import model_file
from sextant.studies.answer import answer, question
from sextant.studies.cli import app
from sextant.workloads import models, parameters

CONFIG = {
    "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 8, "intermediate_size": 3072, "vocab_size": 32000, "rope_theta": 1e6,
}  # fmt: skip
SCENARIO = """
name: a model from a file
model: {base: NAME, n_streams: 2}
cluster: {base: hgx-h800, n_devices: 1}
load: {phase: decode, batch: 4, context_tokens: 1024}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "Some--Tiny-Qwen_config.json"
    path.write_text(json.dumps(CONFIG, indent=1))
    return path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_an_import_tells_sizes_and_writes_nothing(config, tmp_path):
    found = run("import", config)
    assert found.exit_code == 0 and "tiny-qwen, a qwen3 model" in found.output
    assert "not used: rope_theta" in found.output
    assert list(tmp_path.iterdir()) == [config]
    told = json.loads(run("import", config, "--json").output)
    assert told["n_parameters"] == int(parameters.n_parameters(model_file.imported(config).model))
    assert told["unused"] == ["rope_theta"]


def test_a_model_file_is_the_model_again(config, tmp_path):
    """Every field of the record, sources too."""
    out = tmp_path / "mine.yaml"
    assert run("import", config, "--name", "mine", "--out", out).exit_code == 0
    assert model_file.load(out) == model_file.imported(config, "mine").model


def test_a_model_file_is_not_replaced_unasked(config, tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("name: old")
    with pytest.raises(InputError, match="exists; add --force"):
        model_file.write(model_file.imported(config), str(out), force=False)
    assert out.read_text() == "name: old"
    model_file.write(model_file.imported(config), str(out), force=True)
    assert model_file.load(out).name == "tiny-qwen"


def test_scenarios_name_files_beside_themselves(config, tmp_path):
    """YAML or config.json, fixed or swept, changed like any base."""
    run("import", config, "--name", "mine", "--out", tmp_path / "mine.yaml")
    place = tmp_path / "scenario.yaml"
    steps = []
    for name in ("mine.yaml", config.name):
        place.write_text(SCENARIO.replace("NAME", name))
        asked = question(place)
        assert asked.scenario.model.n_streams == 2.0 and asked.scenario.model.qk_norm
        steps.append(answer(asked).columns["step_time_s"][0])
    assert steps[0] == steps[1] > 0
    place.write_text(SCENARIO.replace("NAME", "deepseek-v2") + "axes: {model: [deepseek-coder-1.3b, ./mine.yaml]}\n")
    assert len(answer(question(place)).feasible) == 2


def test_a_model_file_may_change_a_model_of_the_catalogue(tmp_path):
    """And then claims none of its official figures."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: deepseek-vl2\nname: mine\nn_routed_experts: 1e2\nvision: {max_tiles: 4}\n")
    found, base = model_file.load(path), models.model("deepseek-vl2")
    assert found.vision.max_tiles == 4.0 and found.n_routed_experts == 100.0 and not found.official
    assert found.vision.source["max_tiles"] == "mine.yaml:4"
    assert replace(
        found, name=base.name, vision=base.vision, n_routed_experts=72.0, official=base.official, source=base.source
    ) == base  # fmt: skip


def test_a_changed_model_does_not_pass_for_its_base(tmp_path):
    """Its own name, no published figures, and its own lines as the source of what it changes."""
    path = tmp_path / "wide.yaml"
    path.write_text("base: deepseek-v3\nn_routed_experts: 512\nnum_nextn_predict_layers: 2\n")
    found, base = model_file.load(path), models.model("deepseek-v3")
    assert found.name == "wide" and not found.official
    assert found.source[""] == base.source[""]
    assert (
        found.source["n_routed_experts"] == "wide.yaml:2" and found.source["num_nextn_predict_layers"] == "wide.yaml:3"
    )
    assert not any(key.startswith("official") for key in found.source)
    path.write_text("base: deepseek-v3\nsource: {n_group: my notes}\nn_group: 4\nofficial: {n_parameters: 26.7e9}\n")
    found = model_file.load(path)
    assert found.source["n_group"] == "my notes" and found.official == {"n_parameters": 26.7e9}


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("name: x\n", ["system: is missing", "hidden_size: is missing"]),
        ("base: deepseek-v4\n", ["1:7: base: unknown model 'deepseek-v4'; did you mean 'deepseek-v3'"]),
        ("base: deepseek-v3\nhiden_size: 4\n", ["2:13: hiden_size: ", "did you mean 'hidden_size'"]),
        ("base: deepseek-v3\nhidden_size: four\nn_group: 2.5\n", ["2:14: hidden_size: ", "3:10: n_group: counts"]),
        ("base: deepseek-v3\nattention: mha\n", ["2:12: attention: unknown value 'mha'"]),
        ("- a\n", ["expected `field: value` lines, got"]),
        ("base: deepseek-v3\nsource: me\n", ["2:9: source: expected `key: value` lines"]),
        ("base: deepseek-v3\nsource: {n_group: 3}\n", ["2:19: source.n_group: expected text, got 3"]),
        ("base: deepseek-v3\nofficial: {n_parameters: many}\n", ["2:26: official.n_parameters: "]),
        ("base: deepseek-v3\nhidden_size: 1\nhidden_size: 2\n", ["hidden_size"]),
    ],
)  # fmt: skip
def test_faults_of_a_model_file_have_their_places(text, messages, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        model_file.load(path)
    for message in messages:
        assert message in str(raised.value)
    place = tmp_path / "scenario.yaml"
    place.write_text(SCENARIO.replace("NAME", "mine.yaml"))
    with pytest.raises(InputError) as raised:
        question(place)
    assert str(path) in str(raised.value) and messages[0] in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", ":1:2: is not JSON"), (b"\xff\xfe", "is not text"), (b"[1]", "expected the object of a config.json"),
        (b"[" * 100_000, "is not a"),
        (b'{"model_type": "llama",\n "vocab_size": 1,\n "vocab_size": 2}', ":3:2: vocab_size: is given twice"),
        (b'{"model_type": "gpt9"}', ":1:2: model_type: architecture 'gpt9' is not known"),
    ],
)  # fmt: skip
def test_a_broken_config_is_one_clear_error(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        model_file.imported(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_are_not_there_are_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        model_file.imported(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        model_file.imported(tmp_path)
    with pytest.raises(InputError, match=r"ends in \.yaml"):
        model_file.write(None, str(tmp_path / "x.txt"), force=False)
