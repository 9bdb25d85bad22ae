"""Kernels over residual streams: ``mhc_pre``, ``mhc_post``, ``sinkhorn`` of mHC, ``engram_gate`` of Engram.

By default this package's fused Triton kernels run; ``variant`` tile_kernels runs DeepSeek's own (package tile-kernels)
where it is installed. Both compute what the reference below does, in float64. ``mhc_pre`` is the mappings' product with
the mean square beside it, the mappings (sigmoid, Sinkhorn) and the mix of the streams to the layer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, rotated, sizes

BF16, FP32 = torch.bfloat16, torch.float32
Fused = Callable[..., Sequence[Tensor]]
EPS = 1e-6
#: Floor of the magnitude under the gate's root.
CLAMP = 1e-6
TILE_KERNELS = "tile_kernels"
#: Tokens compared with the reference, half of them the first and half the last.
N_CHECKED = 512


def projected(m: Tensor, n_iterations: int, eps: float = EPS) -> Tensor:
    """Sinkhorn's projection of m [..., n, n]: softmax of rows, columns, then both n_iterations - 1 times."""
    m = m.softmax(-1) + eps
    m = m / (m.sum(-2, keepdim=True) + eps)
    for _ in range(n_iterations - 1):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m


def mixed_in(x: Tensor, w: Tensor, scale: Tensor, base: Tensor, *, n_iterations: int) -> tuple[Tensor, ...]:
    """Reference of ``mhc_pre``: layer input, H_post, H_res of x [tokens, n, hidden]; w [n^2 + 2 n, n hidden]."""
    n = x.shape[1]
    x, w, scale, base = x.double(), w.double(), scale.double(), base.double()
    flat = x.flatten(1)
    maps = flat @ w.t() * torch.rsqrt(flat.square().mean(1, keepdim=True) + EPS)
    maps = maps * torch.cat((scale[:1].expand(n), scale[1:2].expand(n), scale[2:].expand(n * n))) + base
    pre, post, res = maps[:, :n].sigmoid() + EPS, 2.0 * maps[:, n : 2 * n].sigmoid(), maps[:, 2 * n :]
    return (pre.unsqueeze(2) * x).sum(1), post, projected(res.unflatten(1, (n, n)), n_iterations)


def mixed_out(f: Tensor, x: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor]:
    """Reference of ``mhc_post``: post[t, i] f[t] + sum over j of res[t, j, i] x[t, j]."""
    carried = res.double().transpose(1, 2) @ x.double()
    return (post.double().unsqueeze(2) * f.double().unsqueeze(1) + carried,)


def gated(x: Tensor, k: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor]:
    """Reference of ``engram_gate``: x + sigmoid(signed root of <norm x, w norm k> / sqrt(hidden)) v."""
    x, k, v, w = x.double(), k.double(), v.double(), w.double()
    norms = (x.square().mean(-1) + EPS) * (k.square().mean(-1) + EPS) * x.shape[-1]
    dot = (x * k * w).sum(-1) / norms.sqrt()
    gate = (dot.abs().clamp(min=CLAMP).sqrt() * dot.sign()).sigmoid()
    return (x + gate.unsqueeze(-1) * v.unsqueeze(1),)


def _in_bf16(reference: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
    """The reference as the fall-back where Triton cannot run: its first output in bf16."""

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        first, *others = reference(*tensors)
        return first.to(BF16), *(other.to(FP32) for other in others)

    return run


def _ours(case: Case, target: Target):
    """This package's device code where it can run; None on the CPU, or where another library is asked for."""
    if case.get("variant", "") not in ("", TILE_KERNELS):
        raise ValueError(f"variant: {case['op']} is measured with '' or {TILE_KERNELS}, got {case['variant']!r}")
    if not target.fused or case.get("variant") == TILE_KERNELS:
        return None
    from sextant.validate.kernels import triton_streams

    return triton_streams


def _theirs(case: Case, target: Target) -> bool:
    """Whether tile-kernels is asked for; raises ``ValueError`` where it cannot run."""
    if case.get("variant") != TILE_KERNELS:
        return False
    if not target.cuda:
        raise ValueError("variant: tile_kernels needs a GPU")
    try:
        import tile_kernels  # noqa: F401
    except Exception as error:  # a version that does not fit fails in many ways
        raise ValueError(f"variant: tile_kernels cannot be imported here ({type(error).__name__}: {error})") from error
    return True


def _prepared(
    case: Case,
    target: Target,
    *,
    inputs: Callable[[], tuple[Tensor, ...]],
    fused: Callable[..., Sequence[Tensor]] | None,
    reference: Callable[..., Sequence[Tensor]],
    per_token: Sequence[int],
    read_bytes: float,
    write_bytes: float,
) -> Prepared:
    """Prepare one of the four; ``per_token`` names the inputs that have a row per token."""

    def some(tensor: Tensor) -> Tensor:
        half = N_CHECKED // 2
        return tensor if tensor.shape[0] <= N_CHECKED else torch.cat((tensor[:half], tensor[-half:]))

    eager = _in_bf16(reference)
    return rotated(
        target,
        inputs=inputs,
        fused=fused or eager,
        eager=eager,
        reference=lambda *given: reference(*(some(t) if i in per_token else t for i, t in enumerate(given))),
        checked=lambda outputs: [some(out) for out in outputs],
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        library=TILE_KERNELS if case.get("variant") == TILE_KERNELS else "triton",
    )


def _randn(target: Target, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=target.device)


def build_mhc_pre(case: Case, target: Target) -> Prepared:
    """From the residual [n_tokens, n_streams, hidden] to the layer's input and the mappings; two kernels."""
    n_tokens, hidden, n, iterations = sizes(case, "n_tokens", "hidden", "n_streams", "sinkhorn_iters")
    n_maps = n * (n + 2)
    code = _ours(case, target)
    fused: Fused | None = partial(code.mhc_pre, n_iterations=iterations, eps=EPS, n_sms=target.n_sms) if code else None
    if _theirs(case, target):
        from tile_kernels.modeling.mhc.ops import mhc_pre_big_fuse  # type: ignore[import-not-found]

        def theirs(x: Tensor, w: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, ...]:
            post, res, y = mhc_pre_big_fuse(x, w, scale, base, EPS, EPS, EPS, 2.0, iterations)
            return y, post.squeeze(-1), res

        fused = theirs

    weights = _randn(target, n_maps, n * hidden, dtype=FP32) * (n * hidden) ** -0.5
    scale, base = (_randn(target, size, dtype=FP32) for size in (3, n_maps))
    return _prepared(
        case,
        target,
        inputs=lambda: (_randn(target, n_tokens, n, hidden), weights, scale, base),
        fused=fused,
        reference=partial(mixed_in, n_iterations=iterations),
        per_token=(0,),
        read_bytes=2.0 * n_tokens * n * hidden + 4.0 * n_maps * n * hidden,
        write_bytes=n_tokens * (2.0 * hidden + 4.0 * n * (n + 1)),
    )


def build_mhc_post(case: Case, target: Target) -> Prepared:
    """The layer's output and the residual's streams mixed to the new residual; one kernel."""
    n_tokens, hidden, n = sizes(case, "n_tokens", "hidden", "n_streams")
    code = _ours(case, target)
    fused: Fused | None = code.mhc_post if code else None
    if _theirs(case, target):
        from tile_kernels.modeling.mhc.ops import mhc_post_fwd  # type: ignore[import-not-found]

        def theirs(f: Tensor, x: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor]:
            sized = (tensor.unsqueeze(0) for tensor in (f, x, post.unsqueeze(-1), res))
            return (mhc_post_fwd(*sized, None).squeeze(0),)

        fused = theirs

    def inputs() -> tuple[Tensor, ...]:
        res = torch.rand((n_tokens, n, n), device=target.device)
        return _randn(target, n_tokens, hidden), _randn(target, n_tokens, n, hidden), 2.0 * res[:, 0].clone(), res

    moved = 2.0 * n_tokens * n * hidden
    return _prepared(
        case,
        target,
        inputs=inputs,
        fused=fused,
        reference=mixed_out,
        per_token=(0, 1, 2, 3),
        read_bytes=moved + n_tokens * (2.0 * hidden + 4.0 * n * (n + 1)),
        write_bytes=moved,
    )


def build_sinkhorn(case: Case, target: Target) -> Prepared:
    """The projection of one fp32 matrix per token; one kernel."""
    n_tokens, n, iterations = sizes(case, "n_tokens", "n_streams", "sinkhorn_iters")
    code = _ours(case, target)
    fused: Fused | None = partial(code.sinkhorn, n_iterations=iterations, eps=EPS) if code else None
    if _theirs(case, target):
        from tile_kernels.modeling.mhc.ops import sinkhorn_normalize  # type: ignore[import-not-found]

        def theirs(m: Tensor) -> tuple[Tensor]:
            return (sinkhorn_normalize(m, iterations, EPS),)

        fused = theirs

    size = 4.0 * n_tokens * n * n
    return _prepared(
        case,
        target,
        inputs=lambda: (_randn(target, n_tokens, n, n, dtype=FP32),),
        fused=fused,
        reference=lambda m: (projected(m.double(), iterations),),
        per_token=(0,),
        read_bytes=size,
        write_bytes=size,
    )


def build_engram_gate(case: Case, target: Target) -> Prepared:
    """Streams plus the gated value; keys per stream, one value per token; one kernel."""
    n_tokens, hidden, n = sizes(case, "n_tokens", "hidden", "n_streams")
    code = _ours(case, target)
    fused: Fused | None = partial(code.engram_gate, eps=EPS, clamp=CLAMP) if code else None
    if _theirs(case, target):
        from tile_kernels.engram import engram_gate_fwd  # type: ignore[import-not-found]

        def theirs(x: Tensor, k: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor]:
            return (engram_gate_fwd(x, k, v, w, EPS, CLAMP, False)[0],)

        fused = theirs

    weights = _randn(target, n, hidden, dtype=FP32)
    wide = 2.0 * n_tokens * n * hidden
    return _prepared(
        case,
        target,
        inputs=lambda: (
            _randn(target, n_tokens, n, hidden),
            _randn(target, n_tokens, n, hidden),
            _randn(target, n_tokens, hidden),
            weights,
        ),
        fused=fused,
        reference=gated,
        per_token=(0, 1, 2),
        read_bytes=2.0 * wide + 2.0 * n_tokens * hidden + 4.0 * n * hidden,
        write_bytes=wide,
    )


BUILDERS = {
    "mhc_pre": build_mhc_pre,
    "mhc_post": build_mhc_post,
    "sinkhorn": build_sinkhorn,
    "engram_gate": build_engram_gate,
}
