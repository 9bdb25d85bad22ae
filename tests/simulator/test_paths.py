"""Dotted paths: one field of a tree of records is read or replaced, and nothing else moves."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.types import Device, Memory, Plan

DEVICE = Device(
    name="d", peak_flops_per_s={"bf16": 1e15, "fp8": 2e15}, n_sms=100.0,
    memories={"hbm": Memory(capacity_bytes=1e9, bandwidth_bytes_per_s=1e12),
              "host": Memory(capacity_bytes=1e12, bandwidth_bytes_per_s=5e10)},
    l2_bytes=5e7, launch_s=3e-6, power_w=700.0, price_usd_per_h=2.0,
)  # fmt: skip
HBM_RATE = "memories.hbm.bandwidth_bytes_per_s"
NUMBERS = [p for p, v in paths.leaves(DEVICE).items() if isinstance(v, float)]


def test_get_steps_through_records_and_mappings() -> None:
    assert paths.get(DEVICE, HBM_RATE) == 1e12
    assert paths.get(DEVICE, "peak_flops_per_s.fp8") == 2e15
    assert paths.get(DEVICE, "memories.host") is DEVICE.memories["host"]


def test_put_replaces_one_field_and_leaves_the_original() -> None:
    changed = paths.put(DEVICE, HBM_RATE, 4e12)
    assert paths.get(changed, HBM_RATE) == 4e12
    assert paths.get(DEVICE, HBM_RATE) == 1e12
    assert changed.memories["host"] is DEVICE.memories["host"]
    with pytest.raises(FrozenInstanceError):
        changed.name = "other"  # type: ignore[misc]


@given(path=st.sampled_from(NUMBERS), value=st.floats(allow_nan=False))
def test_put_changes_exactly_the_leaf_it_names(path: str, value: float) -> None:
    before, after = paths.leaves(DEVICE), paths.leaves(paths.put(DEVICE, path, value))
    assert after == {**before, path: value}
    assert list(after) == list(before)


@given(path=st.sampled_from(NUMBERS), value=st.floats(allow_nan=False))
def test_putting_back_what_was_there_restores_the_record(path: str, value: float) -> None:
    assert paths.put(paths.put(DEVICE, path, value), path, paths.get(DEVICE, path)) == DEVICE


def test_leaves_go_by_field_order_and_an_empty_mapping_is_a_leaf() -> None:
    found = paths.leaves(DEVICE)
    assert list(found)[:3] == ["name", "peak_flops_per_s.bf16", "peak_flops_per_s.fp8"]
    assert found["kernels"] == {}
    assert all(paths.get(DEVICE, p) is v for p, v in found.items())


def test_names_of_a_leaf_are_none() -> None:
    assert paths.names(3.0) == paths.names("text") == paths.names((1.0, 2.0)) == ()
    assert paths.names(Plan())[:3] == ("tensor", "expert", "pipeline")


@pytest.mark.parametrize("act", [paths.get, lambda record, path: paths.put(record, path, 1.0)])
@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        ("memories.hmb.capacity_bytes", "this place has no field 'hmb'; did you mean 'hbm'"),
        ("memories.hbm.capacity", "Memory has no field 'capacity'; did you mean 'capacity_bytes'"),
        ("lunch_s", "Device has no field 'lunch_s'; did you mean 'launch_s'"),
        ("name.first", "has no field 'first'; there is nothing to choose from"),
        ("", "Device has no field ''"),
        ("memories..hbm", "this place has no field ''"),
        ("kernels.gemm", "this place has no field 'gemm'"),
    ],
)
def test_a_wrong_path_offers_the_nearest_names(act, path: str, phrase: str) -> None:
    with pytest.raises(InputError) as caught:
        act(DEVICE, path)
    assert phrase in str(caught.value)
