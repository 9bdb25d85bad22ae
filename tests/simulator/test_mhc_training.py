"""Training kernels of residual streams, DeepSeek's and fused ones: as measured on an H100, and bounded by physics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.hwmodels import FITS, device, own_fits
from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, mhc_training, module, operator, with_sms
from sextant.simulator.types import Cluster, Estimate, Num
from sextant.validate.fit import read_rows
from sextant.validate.fit_mhc_training import fit_mhc_backward, fit_mhc_training, part_s
from sextant.validate.solver import column, columns, errors

MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
ROWS, FUSED_ROWS = (read_rows(MEASURED / f"h100_stream_{name}.csv") for name in ("training", "gradients"))
ON = {
    name: Cluster(name="one", device=replace(device(name), clock_under_load=1.0), n_devices=1.0, tiers={})
    for name in ("h100", "h800", "h20", "h200")
}
H100 = ON["h100"]
BANDWIDTH = "device.memories.hbm.bandwidth_bytes_per_s"
#: By block the operator and variant whose rows it is fitted to, and the mean error of hidden sizes that no fit saw.
RELEASED = {
    "mhc_post_training_backward": ("mhc_post", "training_backward", 0.08),
    "mhc_pre_training": ("mhc_pre", "training", 0.035),
    "mhc_pre_training_backward": ("mhc_pre", "training_backward", 0.03),
}
FUSED = {
    "mhc_post_backward": ("mhc_post", "backward", 0.03), "mhc_pre_backward": ("mhc_pre", "backward", 0.025),
}  # fmt: skip
BLOCKS = {**RELEASED, **FUSED}
VARIANTS = [(kind, variant) for kind, variant, _ in BLOCKS.values()]
SIDES = {"m": st.integers(1, 2**20), "width": st.integers(64, 20480), "n": st.integers(2, 8)}


def time(kind: str, variant: str, m: Num, width: Num, n: Num = 4.0, iterations: Num = 20.0, on=H100) -> Estimate:
    shape = {"n_tokens": m, "hidden": width, "n_streams": n, "sinkhorn_iters": iterations}
    return estimate(operator(kind, kind, "bf16", shape, variant=variant), on)


def rows_of(kind: str, variant: str):
    if variant == "backward":
        return [row for row in FUSED_ROWS if row["op"] == kind]
    direction = "backward" if variant.endswith("backward") else "forward"
    return [row for row in ROWS if (row["op"], row["direction"]) == (kind, direction)]


def predicted(name: str) -> tuple[dict[str, Num], np.ndarray, Estimate]:
    """Sides, measured microseconds and estimates of the rows of a block."""
    kind, variant, _ = BLOCKS[name]
    rows = rows_of(kind, variant)
    sides = columns(rows, "mhc_pre")
    n, iterations = sides["n_streams"], sides["sinkhorn_iters"]
    return sides, column(rows, "us"), time(kind, variant, sides["n_tokens"], sides["hidden"], n, iterations)


@pytest.mark.parametrize(("blocks", "rows", "fit"), [
    (RELEASED, ROWS, fit_mhc_training), (FUSED, FUSED_ROWS, fit_mhc_backward)
], ids=["released", "fused"])  # fmt: skip
def test_shipped_coefficients_come_from_the_committed_rows_and_have_the_errors_they_claim(blocks, rows, fit) -> None:
    fitted = {one.name: one for one in fit(rows, H100.device)}
    assert list(fitted) == list(blocks)
    for name, (kind, variant, most) in blocks.items():
        one, shipped = fitted[name], own_fits("h100")[name]
        assert one.fit.coefficients == pytest.approx(dict(shipped.coefficients), rel=1e-4, abs=1e-12)
        assert (one.fit.low, one.fit.high) == pytest.approx((shipped.low, shipped.high), rel=1e-3)
        assert shipped.held_out["n_rows"] == len(rows_of(kind, variant)) >= 25
        assert shipped.held_out["mape"] == pytest.approx(one.held_out.mape, abs=1e-3)
        assert one.held_out.mape < most
        assert "whole hidden sizes held out" in shipped.source


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_measured_times_of_released_kernels(name: str) -> None:
    """Over all rows; 1,920 is left out of the bound on single rows: the only width that is no multiple of 256, its
    kernels reach 16% less of the bandwidth than those of 2,560."""
    sides, us, found = predicted(name)
    off = 1e6 * np.asarray(found.seconds) / us - 1.0
    assert np.abs(off).mean() < 0.04
    assert np.abs(off[(sides["hidden"] != 1920) & (sides["n_tokens"] >= 2048)]).max() < 0.09
    assert np.mean((1e6 * np.asarray(found.low) <= us) & (us <= 1e6 * np.asarray(found.high))) >= 0.9
    assert found.provenance == "fitted"


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize(("n", "most"), [(2, 0.08), (4, 0.08), (8, 0.09)])
def test_measured_times_of_fused_gradients(name: str, n: int, most: float) -> None:
    """Two, four and eight streams by the same coefficients, every row."""
    sides, us, found = predicted(name)
    off = 1e6 * np.asarray(found.seconds) / us - 1.0
    assert np.abs(off).mean() < 0.025
    assert np.abs(off[sides["n_streams"] == n]).max() < most
    assert np.mean((1e6 * np.asarray(found.low) <= us) & (us <= 1e6 * np.asarray(found.high))) >= 0.85
    assert found.provenance == "fitted"


def test_the_mappings_iterations_cost_more_once_their_sums_leave_the_registers() -> None:
    """Of 4,096 tokens ten iterations more take 3 us up to 20, and 10 us beyond."""
    c = own_fits("h100")["mhc_pre_backward"].coefficients
    shape = {"n_tokens": 4096.0, "hidden": 2560.0, "n_streams": 4.0}
    us = [
        1e6 * float(mhc_training.fused_backward({**shape, "sinkhorn_iters": n}, c, H100.device).sinkhorn)
        for n in (10.0, 20.0, 30.0, 40.0)
    ]
    assert np.diff(us) == pytest.approx([3.0, 10.0, 12.0], abs=1.5)


def test_streams_between_those_measured_have_a_wider_interval_and_are_assumed() -> None:
    for kind in ("mhc_pre", "mhc_post"):
        there, between = (time(kind, "backward", 4096.0, 2560.0, n) for n in (4.0, 5.0))
        assert there.provenance == "fitted" and between.provenance == "assumed"
        assert between.low / between.seconds == pytest.approx(0.75 * there.low / there.seconds)
        assert between.high / between.seconds == pytest.approx(1.33 * there.high / there.seconds)


def test_fused_gradients_were_compared_with_a_reference() -> None:
    """BF16 gradients of the residual to a bit of their largest value, TF32 and FP32 ones of the weights."""
    assert max(float(row["error_residual"]) for row in FUSED_ROWS) < 2.0**-8
    assert max(float(row["error_weights"]) for row in FUSED_ROWS) < 2.0**-10


@pytest.mark.parametrize(("name", "compute", "limits"), [
    ("mhc_pre_training", mhc_training.forward, {"product": 0.05, "apply": 0.08, "sinkhorn": 0.05, "small": 0.05}),
    ("mhc_pre_training_backward", mhc_training.backward,
     {"product": 0.05, "apply": 0.08, "sinkhorn": 0.05, "small": 0.05}),
    ("mhc_pre_backward", mhc_training.fused_backward, {"product": 0.04, "apply": 0.025, "sinkhorn": 0.05}),
])  # fmt: skip
def test_every_part_is_as_measured(name: str, compute, limits) -> None:
    kind, variant, _ = BLOCKS[name]
    rows = rows_of(kind, variant)
    parts = compute(columns(rows, kind), own_fits("h100")[name].coefficients, H100.device)
    for part, most in limits.items():
        measured_s = np.array([part_s(row)[part] for row in rows])
        predicted_s = np.broadcast_to(np.asarray(getattr(parts, part)), measured_s.shape)
        assert errors(predicted_s, measured_s).mape < most, part


def test_small_kernels_of_the_backward_pass_take_the_same_whatever_the_width() -> None:
    """4,096 tokens, released: Sinkhorn 22 us, reductions and the rest 27 us; fused, one kernel of 14 us."""
    for name, compute, us in (
        ("mhc_pre_training_backward", mhc_training.backward, 49.0),
        ("mhc_pre_backward", mhc_training.fused_backward, 14.0),
    ):
        for width in (1280.0, 7168.0):
            shape = {"n_tokens": 4096.0, "hidden": width, "n_streams": 4.0, "sinkhorn_iters": 20.0}
            parts = compute(shape, own_fits("h100")[name].coefficients, H100.device)
            assert 1e6 * (parts.sinkhorn + parts.small) == pytest.approx(us, rel=0.04)


@pytest.mark.parametrize("on", sorted(ON))
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
@given(factor=st.floats(1.0, 8.0), **SIDES)
def test_more_is_never_faster_and_more_machine_never_slower(on, kind, variant, m, width, n, factor) -> None:
    sides, cluster, slack = (float(m), float(width), float(n)), ON[on], 1.0 - 1e-12
    seconds, rate = time(kind, variant, *sides, on=cluster).seconds, float(paths.get(cluster, BANDWIDTH))
    for i in range(3):
        more = [float(np.ceil(side * factor)) if i == axis else side for axis, side in enumerate(sides)]
        assert time(kind, variant, *more, on=cluster).seconds >= seconds * slack
    assert time(kind, variant, *sides, 40.0, on=cluster).seconds >= seconds * slack
    faster = paths.put(cluster, BANDWIDTH, rate * factor)
    assert time(kind, variant, *sides, on=faster).seconds <= seconds / slack
    fewer = replace(cluster, device=with_sms(cluster.device, 60.0))
    assert time(kind, variant, *sides, on=fewer).seconds >= seconds * slack


@pytest.mark.parametrize("on", sorted(ON))
@given(**SIDES)
def test_a_backward_pass_takes_longer_than_its_bytes_allow(on, m, width, n) -> None:
    """Those that L2 cannot hold: of mhc_pre both readings of the residual's gradient may meet there."""
    rate, l2 = float(paths.get(ON[on], BANDWIDTH)), float(ON[on].device.l2_bytes)
    for kind, variant, tensors in (("mhc_post", "backward", 3 * n + 2), ("mhc_pre", "backward", 2 * n + 1),
                                   ("mhc_pre", "training_backward", 2 * n + 1),
                                   ("mhc_post", "training_backward", 3 * n + 2)):  # fmt: skip
        least_s = (2.0 * tensors * m * width - l2) / rate
        assert time(kind, variant, float(m), float(width), float(n), on=ON[on]).seconds > least_s * (1.0 - 1e-12)


@pytest.mark.parametrize("on", ["h100", "h800", "h20"])
def test_released_kernels_are_never_faster_than_fused_ones(on: str) -> None:
    """Four streams, from 256 tokens on. On an H200 the fused forward kernels are this package's own, which are slower
    than the released ones; the gradients of mhc_post come within 2% of each other on the few SMs of an H20."""
    m, width = np.meshgrid(2.0 ** np.arange(8.0, 18.0), 256.0 * np.arange(4.0, 33.0))
    post = [("mhc_post", "backward", "training_backward")] if on != "h20" else []
    for kind, fused, released in (("mhc_pre", "", "training"), ("mhc_pre", "backward", "training_backward"), *post):
        one, other = (time(kind, variant, m, width, on=ON[on]) for variant in (fused, released))
        assert (np.asarray(other.seconds) >= np.asarray(one.seconds)).all()


def test_bytes_and_flops_are_those_of_the_kernels() -> None:
    """Forward the same; backward the released ones read the gradients of the residual twice and write them twice."""
    shape = {"n_tokens": 4096.0, "hidden": 2560.0, "n_streams": 4.0, "sinkhorn_iters": 20.0}
    work = module("mhc_pre").work
    assert work(shape, "bf16", "") == work(shape, "bf16", "training")
    fused, released = (work(shape, "bf16", variant) for variant in ("backward", "training_backward"))
    assert fused.flops == released.flops
    spared = released.traffic_bytes["hbm"] - fused.traffic_bytes["hbm"]
    assert spared == 2.0 * 4096.0 * (2.0 * 4.0 - 1.0) * 2560.0


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_other_gpus_take_them_over_and_say_so(name: str) -> None:
    """Nobody measured them there; an H200's own kernels do not stand in for them."""
    own = own_fits("h100")[name]
    for gpu in ("h800", "h20", "h200"):
        fit = device(gpu).kernels[name]
        assert fit.coefficients == own.coefficients and "taken over from h100" in fit.source
        assert fit.low < own.low and fit.high > own.high
        assert fit.provenance == ("assumed" if gpu == "h20" else "fitted")


def test_an_absent_block_is_named() -> None:
    blocks = {name: fit for name, fit in H100.device.kernels.items() if name in ("mhc_pre", "mhc_post")}
    bare = paths.put(H100, "device.kernels", blocks)
    for (kind, variant), absent in zip(VARIANTS, BLOCKS, strict=True):
        with pytest.raises(KeyError, match=absent):
            time(kind, variant, 1.0, 1.0, on=bare)


def test_rows_that_cannot_be_fitted_are_told() -> None:
    pre = rows_of("mhc_pre", "training")
    with pytest.raises(InputError, match="'direction'"):
        fit_mhc_training([{**row, "direction": ""} for row in ROWS], H100.device)
    with pytest.raises(InputError, match="no time of apply"):
        fit_mhc_training([{**row, "kernels": row["kernels"].replace("apply_mix", "x")} for row in pre], H100.device)
    with pytest.raises(InputError, match="same hidden sizes"):
        fit_mhc_training([row for row in pre if row["hidden"] == "2560"], H100.device)
    with pytest.raises(InputError, match="'direction'"):
        fit_mhc_backward([], H100.device)
