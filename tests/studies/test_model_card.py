"""The card of a model: it adds up, its text is compact, and it claims nothing as published that is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sextant.simulator.errors import InputError
from sextant.studies import card_table, cards, model_card, report
from sextant.workloads import models, parameters

NAMES = sorted(models.catalogue())
CONTRACT = ["name", "system", "n_parameters", "n_activated_parameters", "convention", "official", "source"]


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    return {name: model_card.card(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_add_up(name: str, found) -> None:
    card = found[name]
    sizes = card["parameters"]
    parts = {part: row for part, row in sizes["by_part"].items() if part != "mtp"}
    for rows in (parts, sizes["by_piece"]):
        assert sum(row["parameters"] for row in rows.values()) == card["n_parameters"]
        assert sum(row["activated"] for row in rows.values()) == pytest.approx(
            card["n_activated_parameters"], rel=1e-12
        )
        assert sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
        assert all(row["activated"] <= row["parameters"] for row in rows.values())
    mtp = sizes["by_part"].get("mtp", {"parameters": 0})["parameters"]
    assert sizes["with_mtp"] == card["n_parameters"] + mtp
    assert card["memory"]["weights_bytes"]["bf16"] == pytest.approx(2 * card["n_parameters"], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_work_adds_up_and_takes_a_side(name: str, found) -> None:
    work = found[name]["work"]
    assert {"training_forward", "training_backward", "prefill", "decode_1", "decode_128"} <= set(work["phases"])
    for phase in work["phases"].values():
        for key in ("flops_per_token", "hbm_bytes_per_token", "host_bytes_per_token"):
            assert sum(row[key] for row in phase["blocks"].values()) == pytest.approx(phase[key], rel=1e-12)
        for row in (phase, *phase["blocks"].values()):
            ratio = row["flops_per_token"] / row["hbm_bytes_per_token"]
            assert row["flops_per_byte"] == pytest.approx(ratio)
            assert row["side"] == ("compute" if ratio >= work["ridge_flops_per_byte"] else "memory")
    one, many = work["phases"]["decode_1"], work["phases"]["decode_128"]
    assert one["flops_per_token"] == pytest.approx(many["flops_per_token"], rel=1e-12)
    assert one["hbm_bytes_per_token"] > many["hbm_bytes_per_token"]
    assert one["side"] == "memory"


@pytest.mark.parametrize("name", NAMES)
def test_image_phases_are_of_models_that_have_them(name: str, found) -> None:
    model, phases = models.model(name), found[name]["work"]["phases"]
    for phase, part in (("image_understanding", "vision"), ("image_generation", "generation")):
        assert (phase in phases) == (getattr(model, part) is not None)
        if phase in phases:
            assert phases[phase]["blocks"][part]["flops_per_token"] > 0
            assert found[name]["parameters"]["by_part"][part]["parameters"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_compact_and_the_json_whole(name: str, found) -> None:
    card = found[name]
    assert json.loads(report.dumps(card)) == card
    assert list(card)[: len(CONTRACT)] == CONTRACT
    assert {key: card[key] for key in CONTRACT} == model_card.row(models.model(name))
    lines = card_table.card(card).splitlines()
    assert lines[0] == f"{name} ({card['system']})"
    body = lines[: lines.index("sources")]
    assert len(body) <= 72 and max(map(len, lines)) <= 160
    # The widest table is that of the phases; text is wrapped.
    assert max(map(len, body)) <= 125
    assert f"{card['n_parameters']:,}" in "\n".join(lines)
    assert len(lines) - len(body) - 1 == len(set(card["source"].values()))


def test_published_figures_stand_beside_ours(found) -> None:
    rows = {row["quantity"]: row for row in found["deepseek-v3"]["published"]}
    assert rows["n_parameters"]["figure"] == 671_000_000_000 and rows["n_parameters"]["ours"] == 671_026_419_200
    assert rows["mtp_parameters"]["ours"] == 11_610_068_224
    activated = rows["n_activated_parameters"]
    assert activated["difference"] == pytest.approx(36_625_618_432 / 37e9 - 1)
    assert "input embedding" in activated["convention"] and "2412.19437" in activated["source"]
    text = card_table.card(found["deepseek-v3"])
    assert "37.00 B" in text and "-1.01%" in text


def test_published_figures_of_parts_and_pieces_are_counted(found) -> None:
    for name in NAMES:
        assert [row["quantity"] for row in found[name]["published"] if row["ours"] is None] == [], name


def test_what_no_source_confirms_is_never_shown_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    base = models.model("deepseek-v3")
    source = {**base.source, "official.n_activated_parameters": "unconfirmed: a talk"}
    monkeypatch.setattr(models, "model", lambda name: replace(base, source=source))
    card = model_card.card("deepseek-v3")
    assert "n_activated_parameters" not in card["official"]
    assert "n_activated_parameters" not in [row["quantity"] for row in card["published"]]
    (row,) = card["unconfirmed"]
    assert row["quantity"] == "n_activated_parameters" and row["figure"] == 37_000_000_000
    (line,) = [line for line in card_table.card(card).splitlines() if "37.00 B" in line]
    assert "unconfirmed, not published: 37.00 B" in line


def test_the_known_sizes_of_deepseek_v3(found) -> None:
    card = found["deepseek-v3"]
    memory = card["memory"]
    assert memory["kv_bytes_per_token"] == 61 * 576 * 2
    assert memory["kv_bytes_128k"] == 131072 * 61 * 576 * 2
    assert {name: state["bytes_per_parameter"] for name, state in memory["training_state"].items()} == {
        "bf16": 18.0, "fp16": 18.0, "fp8": 14.0,
    }  # fmt: skip
    weights = memory["weights_bytes"]
    assert 1.0 < weights["fp8"] / card["n_parameters"] < 1.005
    model = models.model("deepseek-v3")
    assert card["work"]["training_flops_per_token_causal"] == parameters.training_flops_per_token(model, 4096.0)
    blocks = card["work"]["phases"]["prefill"]["blocks"]
    # Eight routed experts and a shared one in 58 layers, three products each.
    assert blocks["experts"]["flops_per_token"] == pytest.approx(58 * 9 * 2 * 3 * 7168 * 2048, rel=1e-12)
    assert "mtp" not in blocks and "mtp" in card["work"]["phases"]["training_forward"]["blocks"]


def test_fields_that_say_nothing_are_left_out(found) -> None:
    dense = found["llama-3.1-405b"]
    assert {"kv_lora_rank", "n_routed_experts", "engram_rows", "n_streams", "vision"} <= set(dense["fields_unused"])
    assert "num_key_value_heads" not in dense["fields_unused"]
    text = card_table.card(dense)
    assert "hidden_size=16384" in text and "engram" not in text and "n_group" not in text


def test_a_changed_model_has_a_card_of_its_own() -> None:
    card = model_card.card("deepseek-v3", ["num_hidden_layers=30", "model.n_streams=4"])
    assert card["fields"]["num_hidden_layers"] == 30 and card["fields"]["n_streams"] == 4
    assert (
        card["parameters"]["by_part"]["moe_layer"]["n"] == 27 and "hyper_connection" in card["parameters"]["by_piece"]
    )
    assert card["published"] == [] and card["official"] == {}
    assert not any("official" in path for path in card["source"])
    title = card_table.card(card).splitlines()[0]
    assert title == "deepseek-v3 (DeepSeek-V3), changed: num_hidden_layers=30, model.n_streams=4"


def test_what_cannot_be_changed_is_told() -> None:
    with pytest.raises(InputError, match=r"has no field 'n_strems'; did you mean 'n_streams'"):
        model_card.card("deepseek-v3", ["n_strems=4"])
    with pytest.raises(InputError, match="unknown model 'deepsek-v3'; did you mean 'deepseek-v3'"):
        model_card.card("deepsek-v3", ["n_streams=4"])
    with pytest.raises(InputError, match="--set changes the card of a model or topology, not of a gpu"):
        cards.card("gpu", "h800", ["n_sms=4"])


def test_text_of_users_is_never_obeyed_by_a_terminal(found) -> None:
    card = {**found["deepseek-v2"], "system": "x\x1b[31m", "changed": ["a=\x07"], "source": {"": "\x1b]0;t"}}
    text = card_table.card(card)
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[31m" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, ""), (452_480.0, "452 k"), (4.6e10, "46.0 G"), (999.6e6, "1.00 G"), (12.0, "12.0"), (1.5, "1.50"),
     (3.2e12, "3.20 T"), (142_841_085_952.0, "143 G")],
)  # fmt: skip
def test_quantities_in_three_digits(value: float, text: str) -> None:
    assert card_table.prefixed(value) == text


def test_blocks_have_rows() -> None:
    assert model_card.block_name("moe_layer", "mlp") == "experts"
    assert model_card.block_name("dense_layer", "mlp") == "dense_mlp"
    assert model_card.block_name("moe_layer", "combine_backward") == "exchange"
    assert model_card.block_name("mtp", "attention") == "mtp"
    assert model_card.block_name("head", "head") == model_card.block_name("embedding", "embedding")


def test_a_card_is_written_with_its_figure(tmp_path: Path, found) -> None:
    files = cards.write(found["deepseek-v2"], tmp_path, figure=True)
    assert [file.name for file in files] == ["card.json", "model.png", "model.svg"]
    assert json.loads((tmp_path / "card.json").read_text()) == found["deepseek-v2"]
    files = cards.write(cards.card("gpu", "h800"), tmp_path, figure=False)
    assert [file.name for file in files] == ["card.json"]
