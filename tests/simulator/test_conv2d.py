"""Convolutions: work counted product by product, and times that are those of matrix products where they must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Cluster, Device, KernelFit, Memory, Num, Op

_COEFFICIENTS = {
    "launch_s": 1.3e-6, "math_share": 0.9, "load_ratio": 6.8, "fill_s": 1.2e-6, "hbm_share": 0.88, "ramp_s": 1e-6,
    "exposed": 0.3, "step_s": 4.5e-10, "l2_warm": 0.24, "reduce_s": 2.6e-6,
}  # fmt: skip
_MOVING = {"efficiency": 0.9, "write_cost": 1.1, "l2_share": 0.3, "l2_speedup": 2.0, "floor_s": 2e-6}
DEVICE = Device(
    name="round", peak_flops_per_s={"bf16": 1e15}, n_sms=132.0, l2_bytes=50e6, launch_s=2e-6, power_w=700.0,
    price_usd_per_h=2.0, memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3e12)},
    kernels={
        "gemm_bf16": KernelFit(coefficients=_COEFFICIENTS, low=0.9, high=1.1, provenance="fitted"),
        "memory": KernelFit(coefficients=_MOVING, low=0.9, high=1.1, provenance="fitted"),
    },
)  # fmt: skip
CLUSTER = Cluster(name="one", device=DEVICE, n_devices=1.0, tiers={})
GRADIENTS = ("", "dgrad", "wgrad")
COUNTS = st.integers(1, 64).map(float)


def conv(variant: str = "", **dims: Num) -> Op:
    shape = {
        "n_images": 4.0, "height": 48.0, "width": 48.0, "in_channels": 256.0, "out_channels": 512.0, "kernel": 3.0,
        "stride": 1.0,
    }  # fmt: skip
    return operator("conv2d", "convolution", "bf16", {**shape, **dims}, variant=variant)


@given(images=COUNTS, side=COUNTS, inputs=COUNTS, outputs=COUNTS, stride=st.sampled_from([1.0, 2.0]))
def test_work_is_that_of_every_output_pixel(images, side, inputs, outputs, stride):
    """Each of them sums kernel x kernel x inputs products; each tensor crosses the bus once, in two bytes."""
    op = conv(
        n_images=images, height=side, width=2.0 * side, in_channels=inputs, out_channels=outputs, stride=stride,
        kernel=5.0,
    )  # fmt: skip
    written = images * side * (2.0 * side) * outputs
    read = images * (stride * side) * (stride * 2.0 * side) * inputs
    assert op.flops == 2.0 * written * 25.0 * inputs
    assert op.traffic_bytes["hbm"] == 2.0 * (read + 25.0 * inputs * outputs + written)


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_are_those_that_torch_counts_forward_and_backward(stride):
    """On the meta device; the three variants are the three products of a training step."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        layer = torch.nn.Conv2d(6, 10, 3, stride=stride, padding=1)
        image = torch.zeros(2, 6, 16, 16, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter:
        layer(image).sum().backward()
    side = 16.0 / stride
    shape = dict(n_images=2.0, height=side, width=side, in_channels=6.0, out_channels=10.0, stride=float(stride))
    assert counter.get_total_flops() == sum(conv(variant, **shape).flops for variant in GRADIENTS)


@pytest.mark.parametrize(("variant", "places"), [("", "mnk"), ("dgrad", "mkn"), ("wgrad", "nkm")])
def test_a_kernel_of_one_pixel_takes_the_time_of_its_product(variant, places):
    """And its gradients those of that one's. Nothing is found in the cache, where activations differ."""
    fit = replace(DEVICE.kernels["gemm_bf16"], coefficients={**_COEFFICIENTS, "l2_warm": 0.0})
    cold = replace(CLUSTER, device=replace(DEVICE, kernels={"gemm_bf16": fit}))
    sizes = {"m": 4.0 * 48.0**2, "n": 512.0, "k": 256.0}
    product = operator("gemm", "product", "bf16", dict(zip("mnk", (sizes[p] for p in places), strict=True)))
    found, expected = estimate(conv(variant, kernel=1.0), cold), estimate(product, cold)
    assert found.seconds == pytest.approx(expected.seconds, rel=1e-12)


@pytest.mark.parametrize("variant", GRADIENTS)
@given(images=COUNTS, side=COUNTS, channels=COUNTS, kernel=st.sampled_from([1.0, 3.0, 7.0]))
def test_nothing_is_faster_than_the_device(variant, images, side, channels, kernel):
    """FLOPs over the peak, bytes over the bandwidth."""
    op = conv(
        variant, n_images=images, height=side, width=side, in_channels=8.0 * channels, out_channels=16.0, kernel=kernel
    )
    seconds = estimate(op, CLUSTER).seconds
    assert seconds >= op.flops / 1e15
    assert seconds >= op.traffic_bytes["hbm"] / 3e12


def test_a_depthwise_kernel_takes_the_time_of_moving_its_image():
    """A channel sees itself alone: 49 products per output of a 7 x 7 kernel, in and out once."""
    op = conv("depthwise", in_channels=512.0, kernel=7.0)
    elements = 4.0 * 48.0**2 * 512.0
    assert op.flops == 2.0 * 49.0 * elements
    copied = operator("memory", "copy", "bf16", {"read_bytes": 2.0 * elements, "write_bytes": 2.0 * elements})
    found, moving = estimate(op, CLUSTER), estimate(copied, CLUSTER)
    assert found.seconds == moving.seconds
    assert found.provenance == "assumed"
    assert found.low < moving.low
    assert found.high > moving.high


@pytest.mark.parametrize("variant", GRADIENTS)
def test_unmeasured_times_say_so(variant):
    """Assumed, with an interval wider than that of the products it rests on (0.9 to 1.1)."""
    found = estimate(conv(variant), CLUSTER)
    assert found.provenance == "assumed"
    assert found.low / found.seconds < 0.9
    assert found.high / found.seconds > 1.1


@pytest.mark.parametrize("variant", GRADIENTS)
def test_a_sweep_gives_the_times_of_its_points(variant):
    """Arrays of shape (n_points,) in, the same out."""
    images = np.array([1.0, 3.0, 16.0])
    swept = estimate(conv(variant, n_images=images), CLUSTER)
    single = [float(estimate(conv(variant, n_images=n), CLUSTER).seconds) for n in images]
    assert swept.seconds == pytest.approx(single, rel=1e-12)


def test_without_a_fit_of_products_the_missing_block_is_named():
    """KeyError, as for every kind."""
    with pytest.raises(KeyError, match="gemm"):
        estimate(conv(), replace(CLUSTER, device=replace(DEVICE, kernels={})))
