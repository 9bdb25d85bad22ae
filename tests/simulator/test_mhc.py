"""The kernels of mHC and Engram's gate: never below the physical bound, monotone, and as measured on an H100."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.hwmodels import device
from sextant.simulator import paths
from sextant.simulator.kernels import estimate, module, operator, with_sms
from sextant.simulator.types import Cluster, Estimate, Num
from sextant.validate.fit_mhc import fit_mhc, mhc_op
from sextant.validate.solver import column, errors

SHARED = Path(__file__).resolve().parents[3] / "shared"
H100 = Cluster(name="one", device=replace(device("h100"), clock_under_load=1.0), n_devices=1.0, tiers={})
BANDWIDTH = "device.memories.hbm.bandwidth_bytes_per_s"
KINDS = ("mhc_pre", "mhc_post", "engram_gate", "sinkhorn")
CASES = [(kind, variant) for kind in KINDS for variant in ("", "backward")]
TOKENS, WIDTHS = st.integers(1, 2**20), st.integers(64, 20480)


def time(kind: str, variant: str, m: Num, width: Num, n: Num = 4.0, iterations: Num = 20.0, on=H100) -> Estimate:
    shape = {"n_tokens": m, "hidden": width, "n_streams": n, "sinkhorn_iters": iterations}
    return estimate(operator(kind, kind, "bf16", shape, variant=variant), on)


@cache
def measured() -> tuple[dict[str, str], ...]:
    path = SHARED / "measured" / "h100_sxm" / "mhc.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path.name} is absent from a shared folder beside the repository")
    with gzip.open(path, "rt") as lines:
        return tuple(csv.DictReader(lines))


@pytest.mark.parametrize(("kind", "variant"), CASES)
@given(m=TOKENS, width=WIDTHS, n=st.integers(2, 16), factor=st.floats(1.0, 8.0))
def test_more_of_anything_is_never_faster_and_more_machine_never_slower(kind, variant, m, width, n, factor) -> None:
    seconds = time(kind, variant, float(m), float(width), float(n)).seconds
    assert np.isfinite(seconds)
    slack = 1.0 - 1e-12
    assert time(kind, variant, float(np.ceil(m * factor)), float(width), float(n)).seconds >= seconds * slack
    assert time(kind, variant, float(m), float(np.ceil(width * factor)), float(n)).seconds >= seconds * slack
    assert time(kind, variant, float(m), float(width), float(np.ceil(n * factor))).seconds >= seconds * slack
    assert time(kind, variant, float(m), float(width), float(n), 40.0).seconds >= seconds * slack
    faster = paths.put(H100, BANDWIDTH, 3.35e12 * factor)
    assert time(kind, variant, float(m), float(width), float(n), on=faster).seconds <= seconds / slack
    fewer = replace(H100, device=with_sms(H100.device, 100.0))
    assert time(kind, variant, float(m), float(width), float(n), on=fewer).seconds >= seconds * slack


@pytest.mark.parametrize(("kind", "variant"), CASES)
@given(m=TOKENS, width=WIDTHS)
def test_never_faster_than_hbm_moves_what_the_l2_cannot_hold(kind, variant, m, width) -> None:
    """Of mhc_pre's bytes the second reading may come from L2: its distinct tensors are n C read and C written."""
    n, elements = 4.0, float(m) * width
    tensors = {
        ("mhc_pre", ""): n + 1, ("mhc_pre", "backward"): 2 * n + 1, ("mhc_post", ""): 2 * n + 1,
        ("mhc_post", "backward"): 3 * n + 2, ("engram_gate", ""): 3 * n + 1, ("engram_gate", "backward"): 5 * n + 2,
    }  # fmt: skip
    least = 2.0 * tensors.get((kind, variant), 0.0) * elements
    assert time(kind, variant, float(m), float(width)).seconds > (least - H100.device.l2_bytes) / 3.35e12


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_an_array_is_its_scalars(kind, variant) -> None:
    m, width = np.logspace(0, 6, 40).round(), np.linspace(512, 16384, 40).round()
    whole = time(kind, variant, m, width)
    singles = [time(kind, variant, float(a), float(b)) for a, b in zip(m, width, strict=True)]
    assert np.allclose(whole.seconds, [float(one.seconds) for one in singles], rtol=1e-12)
    assert list(whole.bound) == [str(one.bound) for one in singles]
    assert np.all(whole.low < whole.seconds) and np.all(whole.seconds < whole.high)


def test_what_was_not_measured_says_so() -> None:
    found = {(kind, variant): time(kind, variant, 4096.0, 2560.0).provenance for kind, variant in CASES}
    assert [key for key, value in found.items() if value == "fitted"] == [("mhc_pre", ""), ("mhc_post", "")]
    assert set(found.values()) == {"fitted", "assumed"}


def test_an_absent_block_is_named() -> None:
    with pytest.raises(KeyError, match="mhc_post"):
        time("mhc_post", "", 1.0, 1.0, on=paths.put(H100, "device.kernels", {}))


def test_bytes_per_token_are_those_of_the_published_kernels() -> None:
    """mHC s4.3.1 and Table 2 at C = 7168 and four streams: (3n + 1) C read and (n + 1) C written per sublayer, 258 KB;
    TileKernels reads and writes 14 h in post's backward, 17 h + 8 h in pre's."""
    shape = {"n_tokens": 1e6, "hidden": 7168.0, "n_streams": 4.0, "sinkhorn_iters": 20.0}

    def elements(kind: str, variant: str = "") -> float:
        return module(kind).work(shape, "bf16", variant).traffic_bytes["hbm"] / 2.0 / 7168.0 / 1e6

    assert elements("mhc_pre") + elements("mhc_post") == pytest.approx(18.0, rel=0.003)
    assert elements("mhc_post", "backward") == pytest.approx(14.0, rel=0.003)
    assert elements("mhc_pre", "backward") == pytest.approx(25.0, rel=0.003)
    assert elements("engram_gate") == pytest.approx(13.0, rel=0.003)
    assert module("sinkhorn").work(shape, "fp32", "").traffic_bytes["hbm"] == 2 * 16 * 4.0 * 1e6


def test_the_product_of_the_mappings_is_counted() -> None:
    shape = {"n_tokens": 10.0, "hidden": 2560.0, "n_streams": 4.0, "sinkhorn_iters": 20.0}
    forward = module("mhc_pre").work(shape, "bf16", "").flops
    assert forward == 10 * (2 * 10240 * 24 + 2 * 10240)
    assert module("mhc_pre").work(shape, "bf16", "backward").flops == 2 * forward


def test_many_streams_become_bound_by_mathematics() -> None:
    assert str(time("mhc_pre", "", 65536.0, 2560.0, 4.0).bound) == "memory"
    assert str(time("mhc_pre", "", 65536.0, 2560.0, 64.0).bound) == "math"


@pytest.mark.parametrize(("kind", "most"), [("mhc_pre", 0.03), ("mhc_post", 0.03)])
def test_shipped_coefficients_give_the_measured_times(kind: str, most: float) -> None:
    rows = [row for row in measured() if row["op"] == kind]
    found = estimate(mhc_op(rows, kind), H100)
    us = column(rows, "us") * 1e-6
    assert errors(np.asarray(found.seconds), us).mape < most
    assert np.mean((found.low <= us) & (us <= found.high)) >= 0.85


def test_a_fit_predicts_a_hidden_size_it_never_saw() -> None:
    pre, post = fit_mhc(measured(), H100.device, "rows")
    assert pre.held_out.mape < 0.05 and post.held_out.mape < 0.04
    assert pre.held_out.n_rows == 70 and post.held_out.n_rows == 68
    assert "whole hidden sizes held out" in pre.fit.source


def test_known_coefficients_are_found_again() -> None:
    m, width = (
        values.ravel() for values in np.meshgrid([1, 64, 200, 300, 400, 500, 3000, 20000], [2048, 4096, 7168.0])
    )
    seconds = np.asarray(time("mhc_post", "", m, width).seconds)
    rows = [
        {"op": "mhc_post", "n_tokens": a, "hidden": b, "us": 1e6 * t} for a, b, t in zip(m, width, seconds, strict=True)
    ]
    (found,) = fit_mhc(rows, H100.device)
    for name, value in H100.device.kernels["mhc_post"].coefficients.items():
        assert found.fit.coefficients[name] == pytest.approx(value, rel=0.02), name
