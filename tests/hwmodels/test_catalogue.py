"""The hardware catalogue: every GPU and cluster loads, is sourced field by field, and agrees with itself."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from sextant import hwmodels
from sextant.hwmodels.gpus import Transfer
from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.types import Device, KernelFit

GPUS = ("a100-40gb", "a100-80gb", "b200", "h100", "h20", "h200", "h800")
CLUSTERS = ("h800-2048", "selene", *(f"hgx-{gpu}" for gpu in GPUS))
FIT = KernelFit(coefficients={"a": 1.0}, low=0.9, high=1.2, provenance="fitted", source="a table")


def test_names_are_file_names() -> None:
    """A new file is a new name, and nothing else is one."""
    assert hwmodels.device_names() == GPUS
    assert set(hwmodels.cluster_names()) == set(CLUSTERS)
    files = {p.stem.replace("_", "-") for p in Path(hwmodels.__file__).parent.glob("gpus/*.py")} - {"--init--"}
    assert files == set(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_device_is_positive_and_named_after_its_file(name: str) -> None:
    device = hwmodels.device(name)
    assert device.name == name
    assert device is hwmodels.device(name)
    assert {"bf16", "tf32"} <= set(device.peak_flops_per_s)
    assert {"hbm", "host", "nvme"} <= set(device.memories)
    ignored = ("name", "source.", "kernels.")
    may_be_zero = ("latency_s", "energy_j_per_byte", "price_usd", "clock_spread", "n_held_sms", "remote_fraction")
    for path, value in paths.leaves(device).items():
        if path.startswith(ignored) or path.endswith(".source") or path in ("source", "kernels"):
            continue
        assert value >= 0, path
        assert value > 0 or path.endswith(may_be_zero), path


@pytest.mark.parametrize("name", GPUS)
def test_every_field_has_a_source(name: str) -> None:
    """A field's dotted path has a source of its own, or lies in a memory that has one."""
    device = hwmodels.device(name)
    for memory in device.memories.values():
        assert len(memory.source) > 20
    for path in paths.leaves(device):
        if path.startswith(("name", "source", "memories.", "kernels")):
            continue
        assert len(device.source.get(path, "")) > 2, path
    known = set(paths.leaves(device)) | {"kernels"}
    assert not [path for path in device.source if path not in known], "a source for a field that does not exist"


@pytest.mark.parametrize("name", GPUS)
def test_sources_speak_of_publications(name: str) -> None:
    """No internal figure number, and what is not published says so at the start of its text or of a part of it."""
    device = hwmodels.device(name)
    texts = [*device.source.values(), *(m.source for m in device.memories.values())]
    assert not any("F05" in text or "/work" in text for text in texts)
    assert "measured" in device.source["launch_s"]
    if name != "h800":
        assert device.source["price_usd_per_h"].startswith("assumed:")


def clock_hz(device: Device, flops_per_clock_per_sm: float) -> float:
    return float(device.peak_flops_per_s["bf16"]) / float(device.n_sms) / flops_per_clock_per_sm


@pytest.mark.parametrize("name", ["h100", "h800", "h200"])
def test_full_hopper_peak_is_a_clock_it_runs_at(name: str) -> None:
    """4096 dense BF16 FLOP per clock and SM give a clock between 1.83 GHz (tensor work) and 1.98 GHz (the most)."""
    assert 1.83e9 * 0.999 <= clock_hz(hwmodels.device(name), 4096) <= 1.98e9


@pytest.mark.parametrize("name", ["a100-80gb", "a100-40gb"])
def test_a100_peak_is_its_boost_clock(name: str) -> None:
    """2048 dense BF16 FLOP per clock and SM at 1.41 GHz; it has no FP8."""
    device = hwmodels.device(name)
    assert clock_hz(device, 2048) == pytest.approx(1.41e9, rel=0.002)
    assert "fp8" not in device.peak_flops_per_s


def test_b200_peak_is_its_tensor_clock() -> None:
    """8192 dense BF16 FLOP per clock and SM at 1.86 GHz."""
    assert clock_hz(hwmodels.device("b200"), 8192) == pytest.approx(1.86e9, rel=0.005)


def test_h20_tensor_rate_is_cut() -> None:
    """An H20 SM does less than a quarter of an H100 SM's work: the reason why H100 fits transfer badly."""
    per_sm = clock_hz(hwmodels.device("h20"), 4096) / clock_hz(hwmodels.device("h100"), 4096)
    assert per_sm < 0.26


@pytest.mark.parametrize("name", [gpu for gpu in GPUS if not gpu.startswith("a100")])
def test_fp8_is_twice_bf16(name: str) -> None:
    peaks = hwmodels.device(name).peak_flops_per_s
    assert peaks["fp8"] / peaks["bf16"] == pytest.approx(2.0, rel=0.001)


def test_memories_are_ordered() -> None:
    """HBM is faster than the host, the host faster than NVMe; what a program sees is within 7% of the label."""
    labels_gb = {"h800": 80, "h100": 80, "h200": 141, "h20": 96, "a100-80gb": 80, "a100-40gb": 40, "b200": 180}
    for name, label_gb in labels_gb.items():
        label = label_gb * 1e9
        memories = hwmodels.device(name).memories
        rates = [memories[tier].bandwidth_bytes_per_s for tier in ("hbm", "host", "nvme")]
        assert rates == sorted(rates, reverse=True)
        assert label <= memories["hbm"].capacity_bytes < label * 1.07


def test_h800_memory_is_what_the_trace_reports() -> None:
    assert hwmodels.device("h800").memories["hbm"].capacity_bytes == 84_943_110_144


def test_host_is_limited_by_pcie_and_by_dram() -> None:
    """A device gets the smaller of its DRAM share and its PCIe link, whichever that is."""
    from sextant.hwmodels import links, memories

    narrow = memories.host(8 * 10e9, links.PCIE5_X16, 1e12, "x")
    assert narrow.bandwidth_bytes_per_s == 10e9
    assert memories.host(8 * 1e12, links.PCIE5_X16, 1e12, "x").bandwidth_bytes_per_s == 64e9
    assert memories.HOST_DDR5_PCIE5.bandwidth_bytes_per_s == 64e9
    assert pytest.approx(614.4e9) == memories.DDR5_4800_NODE_BYTES_PER_S


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_tiers_multiply(name: str) -> None:
    """The tiers, innermost first, multiply to the devices; each link is sourced and no faster than HBM."""
    cluster = hwmodels.cluster(name)
    assert cluster.name == name
    assert tuple(cluster.tiers) == ("nvlink", "infiniband")
    assert math.prod(float(tier.n_devices) for tier in cluster.tiers.values()) == cluster.n_devices
    nvlink, network = (tier.link for tier in cluster.tiers.values())
    hbm = cluster.device.memories["hbm"].bandwidth_bytes_per_s
    assert hbm > nvlink.bandwidth_bytes_per_s > network.bandwidth_bytes_per_s > 0
    for link in (nvlink, network):
        assert 0 < link.efficiency <= 1
        assert 0 < link.latency_s < 1e-4
        assert "latency:" in link.source
        assert "efficiency:" in link.source
    assert {"n_devices", "tiers.nvlink", "tiers.infiniband"} == set(cluster.source)
    assert cluster.device is hwmodels.device(cluster.device.name)


def test_v3_cluster() -> None:
    """2048 H800 in 256 nodes; effective 160 GB/s inside a node and 40 GB/s between nodes, as published."""
    cluster = hwmodels.cluster("h800-2048")
    assert (cluster.n_devices, cluster.device.name) == (2048, "h800")
    assert (cluster.tiers["nvlink"].n_devices, cluster.tiers["infiniband"].n_devices) == (8, 256)
    effective = [tier.link.bandwidth_bytes_per_s * tier.link.efficiency for tier in cluster.tiers.values()]
    assert effective == pytest.approx([160e9, 40e9])


def test_a_field_may_become_an_axis() -> None:
    """A dotted path reaches a cluster's nodes and its host bandwidth, also with an array."""
    cluster = paths.put(hwmodels.cluster("hgx-h100"), "tiers.infiniband.n_devices", 12.0)
    assert cluster.tiers["infiniband"].n_devices == 12
    rates = np.array([32e9, 64e9])
    swept = paths.put(cluster, "device.memories.host.bandwidth_bytes_per_s", rates)
    assert swept.device.memories["host"].bandwidth_bytes_per_s is rates
    assert hwmodels.device("h100").memories["host"].bandwidth_bytes_per_s == 64e9


@pytest.mark.parametrize(
    ("load", "wrong", "near"),
    [
        (hwmodels.device, "h-100", "h100"),
        (hwmodels.device, "a100", "a100-80gb"),
        (hwmodels.cluster, "hgx_h800", "hgx-h800"),
    ],
)
def test_unknown_name_offers_the_nearest(load, wrong: str, near: str) -> None:
    with pytest.raises(InputError, match=near) as caught:
        load(wrong)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("name", ["__init__", "../h100", "", "h100.py"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        hwmodels.device(name)


def test_transfer_widens_and_says_so() -> None:
    """The interval's factors are multiplied; provenance changes only where the transfer is a guess."""
    cautious = hwmodels.transferred(FIT, Transfer(gpu="h100", low=0.95, high=1.05, reason="same die"))
    assert (cautious.low, cautious.high) == pytest.approx((0.855, 1.26))
    assert cautious.provenance == "fitted"
    assert cautious.source.startswith("a table; taken over from h100")
    guess = hwmodels.transferred(FIT, Transfer(gpu="h100", low=0.8, high=1.35, reason="?", provenance="assumed"))
    assert (guess.provenance, guess.coefficients) == ("assumed", FIT.coefficients)


def test_own_fits_come_before_transferred_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel measured on the GPU itself is used as it is; the others are taken over; no fits at all is no kernels."""
    own = KernelFit(coefficients={"a": 2.0}, low=0.97, high=1.03, provenance="fitted", source="own")
    files = {"h100": {"gemm": FIT, "copy": FIT}, "h200": {"gemm": own}}
    monkeypatch.setattr(hwmodels, "_read", lambda name: files.get(name, {}))
    assert hwmodels.fits_of("h100") == files["h100"]  # what h200 lends is also h100's own
    kernels = hwmodels.fits_of("h200")
    assert kernels["gemm"] is own
    assert kernels["copy"].low == pytest.approx(0.81)
    assert {fit.provenance for fit in hwmodels.fits_of("b200").values()} == {"assumed"}
    monkeypatch.setattr(hwmodels, "_read", lambda name: {})
    assert hwmodels.fits_of("h800") == {}


@pytest.mark.parametrize("name", GPUS)
def test_transfers_name_real_gpus_and_never_narrow(name: str) -> None:
    transfer: Transfer | None = importlib.import_module(f"sextant.hwmodels.gpus.{name.replace('-', '_')}").FIT
    assert transfer is not None
    assert transfer.gpu in GPUS
    assert transfer.gpu != name
    assert transfer.low < 1 < transfer.high
    assert len(transfer.reason) > 20
    assert (transfer.provenance == "assumed") == (name in ("h20", "b200", "a100-80gb", "a100-40gb"))
    assert transfer.reason in hwmodels.device(name).source["kernels"]


def test_gpus_that_lend_to_each_other_end() -> None:
    """H100 and H200 each measured kernels that the other one did not; both end up with all of them, and what is lent
    has the wider interval of the same block."""
    h100, h200 = hwmodels.fits_of("h100"), hwmodels.fits_of("h200")
    assert set(h100) == set(h200)
    for lender, borrower, block in ((h100, h200, "moe_fp8_block"), (h200, h100, "memory_rmsnorm")):
        assert borrower[block].coefficients == lender[block].coefficients
        assert borrower[block].low < lender[block].low and borrower[block].high > lender[block].high


@pytest.mark.parametrize("name", GPUS)
def test_device_carries_its_fits(name: str) -> None:
    """The loaded device has exactly the kernels of the fit files, with intervals that hold the prediction."""
    device = hwmodels.device(name)
    assert device.kernels == hwmodels.fits_of(name)
    assert set(hwmodels.fits_of("h100")) <= set(device.kernels)
    for kernel, fit in device.kernels.items():
        assert 0 < fit.low < fit.high, kernel
