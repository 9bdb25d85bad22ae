"""Two-dimensional convolutions in bf16, channels last, same padding: image decoders, and depthwise 7x7 of ConvNeXt.

Columns: batch, in_channels, out_channels, height, width (of the input), kernel_size, stride; ``groups`` equal to the
channels makes it depthwise. cuDNN through torch; patches of the result are compared with float64.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, require_close, sizes

#: Side of the compared patches of the output.
PATCH = 6


def _patch(x: Tensor, w: Tensor, *, row: int, col: int, size: tuple[int, int], stride: int, groups: int) -> Tensor:
    """Output rows and columns from (row, col) on, of the first image, in float64."""
    kernel = w.shape[2]
    height, width = ((n - 1) * stride + kernel for n in size)
    padded = F.pad(x[:1], [kernel // 2] * 4)
    part = padded[:, :, row * stride : row * stride + height, col * stride : col * stride + width]
    return F.conv2d(part.double(), w.double(), stride=stride, groups=groups)


def build_conv2d(case: Case, target: Target) -> Prepared:
    """Prepare one convolution without bias; traffic counts input, weights and output once."""
    batch, c_in, c_out, height, width, kernel = sizes(
        case, "batch", "in_channels", "out_channels", "height", "width", "kernel_size"
    )
    stride, groups = (int(case.get(name, 1)) for name in ("stride", "groups"))
    if kernel % 2 == 0 or groups not in (1, c_in):
        raise ValueError(f"kernel_size, groups: odd kernels, one group or one per channel; got {kernel}, {groups}")
    n_out = batch * c_out * (-(-height // stride)) * (-(-width // stride))
    read_bytes = 2.0 * (batch * c_in * height * width + c_out * (c_in // groups) * kernel**2)

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randn((batch, c_in, height, width), dtype=torch.bfloat16, device=target.device)
        w = torch.randn((c_out, c_in // groups, kernel, kernel), dtype=torch.bfloat16, device=target.device)
        return x.contiguous(memory_format=torch.channels_last), w.contiguous(memory_format=torch.channels_last)

    sets = [draw() for _ in range(target.n_sets(read_bytes + 2.0 * n_out))]
    run = partial(F.conv2d, stride=stride, padding=kernel // 2, groups=groups)

    def check() -> float:
        x, w = sets[0]
        out = run(x, w)
        size = (min(PATCH, out.shape[2]), min(PATCH, out.shape[3]))
        errors = []
        for row, col in ((0, 0), (out.shape[2] - size[0], out.shape[3] - size[1])):
            expected = _patch(x, w, row=row, col=col, size=size, stride=stride, groups=groups)
            got = out[:1, :, row : row + size[0], col : col + size[1]]
            errors.append(require_close(got, expected[:, :, : size[0], : size[1]], what="a patch"))
        return max(errors)

    return Prepared(
        calls=tuple(partial(run, *one) for one in sets),
        check=check,
        library=target.library("cudnn_conv"),
        read_bytes=read_bytes,
        write_bytes=2.0 * n_out,
    )


BUILDERS = {"conv2d": build_conv2d}
