"""What the shipped fits of attention obey with their corrections: physics and growth; that no correction jumps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant.hwmodels import device
from sextant.simulator.kernels import estimate, operator, peak
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Cluster, Op

RANDOM = np.random.default_rng(11)
N = 20_000
PREFILL = ("forward", "forward_flash", "backward", "backward_flash")
LATENT = ("decode", "decode_bmm")


def one(name: str) -> Cluster:
    return Cluster(name="one", device=replace(device(name), clock_under_load=1.0), n_devices=1.0, tiers={})


GPUS = {name: one(name) for name in ("h100", "h200")}


def drawn(kind: str, variant: str) -> Op:
    """Shapes inside what was measured, each dimension on a logarithmic scale."""

    def power(low: float, high: float) -> np.ndarray:
        return np.floor(2.0 ** RANDOM.uniform(low, high, N))

    if kind == "mla":
        shape = {
            "batch": power(0, 8), "heads": 16.0 * power(0, 3.9), "q_len": np.ones(N), "kv_len": 64.0 * power(2, 9),
            "kv_lora_rank": np.full(N, 512.0), "qk_rope_head_dim": np.full(N, 64.0),
        }  # fmt: skip
        return operator("mla", "mla", "bf16", shape, variant=variant)
    length = 64.0 * power(1, 8)
    kv_heads = power(1, 5.9)
    decode = variant.startswith("decode")
    shape = {
        "batch": power(0, 5), "heads": kv_heads * np.floor(RANDOM.uniform(1, 8.99, N)), "kv_heads": kv_heads,
        "q_len": np.ones(N) if decode else length, "kv_len": length, "head_dim": np.full(N, 128.0),
        "v_head_dim": np.full(N, 128.0), "causal": np.ones(N),
    }  # fmt: skip
    return operator("attention", "attention", "bf16", shape, variant=variant.replace("decode", "forward"))


CASES = [("attention", variant) for variant in (*PREFILL, "decode")] + [("mla", variant) for variant in LATENT]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_never_below_the_datasheet(gpu: str, kind: str, variant: str) -> None:
    op, cluster = drawn(kind, variant), GPUS[gpu]
    found = estimate(op, cluster)
    bandwidth = cluster.device.memories["hbm"].bandwidth_bytes_per_s
    least = np.maximum(
        op.flops / peak(cluster.device, "bf16"), (op.traffic_bytes["hbm"] - cluster.device.l2_bytes) / bandwidth
    )
    assert np.isfinite(found.seconds).all()
    assert (found.seconds >= least * (1 - 1e-12)).all()
    assert (found.low <= found.seconds).all() and (found.seconds <= found.high).all()


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("kind", "variant"), CASES)
@pytest.mark.parametrize("name", ["batch", "kv_len"])
def test_twice_the_work_takes_longer(gpu: str, kind: str, variant: str, name: str) -> None:
    """Twice the sequences or the tokens: no correction turns that around by more than 4%."""
    op, cluster = drawn(kind, variant), GPUS[gpu]
    more = {name: 2.0 * op.shape[name]}
    if name == "kv_len" and kind == "attention" and variant != "decode":
        more["q_len"] = 2.0 * op.shape["q_len"]
    before = np.asarray(estimate(op, cluster).seconds)
    after = np.asarray(estimate(replace(op, shape={**op.shape, **more}), cluster).seconds)
    assert (after >= 0.96 * before).all(), float((after / before).min())


@pytest.mark.parametrize("gpu", GPUS)
def test_no_correction_jumps(gpu: str) -> None:
    """A size one percent larger changes no shipped correction by more than 3%, wherever between its centres."""
    fits = {name: fit for name, fit in GPUS[gpu].device.kernels.items() if fit.correction is not None}
    assert len(fits) > 20
    for name, fit in fits.items():
        assert fit.correction is not None
        centres = fit.correction.centres
        low, high = centres.min(axis=0) - 1.0, centres.max(axis=0) + 1.0
        points = RANDOM.uniform(low, high, (2000, len(low)))
        for axis in range(len(low)):
            moved = points.copy()
            moved[:, axis] += np.log2(1.01)
            one, other = (
                np.asarray(correction(fit, dict(zip(fit.correction.features, x.T, strict=True))))
                for x in (points, moved)
            )
            assert np.abs(other / one - 1.0).max() < 0.03, (name, fit.correction.features[axis])
