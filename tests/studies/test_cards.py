"""Listings and cards of the catalogue."""

from __future__ import annotations

import json

import pytest

from sextant import hwmodels
from sextant.simulator.errors import InputError
from sextant.studies import cards, catalogue, report, tables
from sextant.workloads import models

KINDS = ("models", "gpus", "clusters", "ops", "studies", "scenarios")


@pytest.mark.parametrize("kind", KINDS)
def test_every_listing_is_a_table_and_json(kind: str) -> None:
    rows = cards.listing(kind)
    assert json.loads(report.dumps(rows)) == rows
    lines = tables.listing(rows).splitlines()
    assert [line.split()[0] for line in lines[1 : len(rows) + 1]] == [row["name"] for row in rows]
    assert max(map(len, lines)) <= 160


def test_models_are_listed_with_the_contract_fields() -> None:
    rows = {row["name"]: row for row in cards.listing("models")}
    assert set(rows) == set(models.catalogue())
    v3 = rows["deepseek-v3"]
    assert list(v3) == ["name", "system", "n_parameters", "n_activated_parameters", "convention", "official", "source"]
    assert (v3["system"], v3["n_parameters"]) == ("DeepSeek-V3", 671_026_419_200)
    assert isinstance(v3["n_parameters"], int) and v3["official"]["n_parameters"] == 671_000_000_000
    assert "input embedding" in v3["convention"] and v3["source"]


@pytest.mark.parametrize("name", hwmodels.device_names())
def test_a_gpu_card_sums_up_its_kernels(name: str) -> None:
    card = cards.card("gpu", name)
    device = hwmodels.device(name)
    assert set(card["kernels"]) == set(device.kernels)
    for kernel, text in card["kernels"].items():
        assert text.startswith(f"{device.kernels[kernel].provenance}, ") and device.kernels[kernel].source in text
    text = tables.card(card)
    assert "inf" not in text.replace("infer", "").replace("Infer", "").replace("infiniband", "").split()
    fitted = {str(value) for fit in device.kernels.values() for value in fit.coefficients.values()}
    assert not any(value in text for value in fitted if len(value) > 10)
    assert len(text.splitlines()) < 70 + len(device.kernels)
    assert "unlimited" in text
    assert card["peak_flops_per_s"]["bf16"] == device.peak_flops_per_s["bf16"]
    json.loads(report.dumps(card))


def test_every_cluster_op_and_scenario_has_a_card() -> None:
    for name in hwmodels.cluster_names():
        card = cards.card("cluster", name)
        assert card["device"]["name"] == hwmodels.cluster(name).device.name
        assert set(card["tiers"]) and "kernels" not in card
        assert name in tables.card(card)
    for row in cards.listing("ops"):
        assert set(cards.card("op", row["name"])["coefficients by GPU"]) == set(hwmodels.device_names())
    for name in catalogue.scenario_names():
        card = cards.card("scenario", name)
        assert card["yaml"] == catalogue.scenario_path(name).read_text()
        assert all(line in tables.card(card).splitlines() for line in card["yaml"].splitlines())


def test_singular_and_plural_kinds_and_near_names() -> None:
    assert cards.card("models", "deepseek-v3") == cards.card("model", "deepseek-v3")
    for kind, name in (("model", "deepseek-v33"), ("gpu", "h8oo"), ("cluster", "h800"), ("op", "gemmm")):
        with pytest.raises(InputError, match=r"unknown .*; did you mean"):
            cards.card(kind, name)
