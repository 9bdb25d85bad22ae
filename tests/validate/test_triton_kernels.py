"""This package's Triton kernels beside their references, where Triton is installed: on a GPU, or on the CPU by its
interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from sextant.validate.stream_gradients import off  # noqa: E402
from sextant.validate.whole.kernels import EPS, Kernels  # noqa: E402
from sextant.validate.whole.triton_convolution import convolved  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("n", "iterations"), [(2, 10), (4, 1), (4, 20), (8, 3)])
def test_fused_gradients_of_streams(n: int, iterations: int) -> None:
    """BF16 gradients of residual and layer output to a bit of their largest value, the others to TF32's."""
    errors = off(320, n, iterations, DEVICE)
    assert set(errors) == {"mhc_pre", "mhc_post"}
    bf16 = {"mhc_pre": 1, "mhc_post": 2}
    for op, found in errors.items():
        assert max(found[: bf16[op]]) < 2.0**-7 and max(found[bf16[op] :]) < 2.0**-10, op


@pytest.mark.parametrize(
    ("batch", "seq", "taps", "dilation", "step"),
    [(2, 70, 4, 3, False), (1, 33, 2, 2, False), (3, 1, 4, 3, True), (6, 1, 3, 3, True)],
)
def test_engrams_convolution(batch: int, seq: int, taps: int, dilation: int, step: bool) -> None:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE)

    torch.manual_seed(0)
    n, hidden = 4, 320
    x, y = (random(batch * seq, n, hidden).bfloat16() for _ in range(2))
    w, tap = random(n, hidden), random(taps, n, hidden)
    earlier = random(batch, (taps - 1) * dilation, n, hidden).bfloat16() if step else None
    found = convolved(x, y, w, tap, earlier, seq=seq, dilation=dilation, eps=EPS).float()
    right = Kernels.convolve(None, x, y, w, tap, earlier, seq=seq, dilation=dilation).float()  # type: ignore[arg-type]
    assert float((found - right).abs().max() / right.abs().max()) < 2.0**-7
