"""The dimensions of the published systems that decide their kernels.

As published: configurations and reports of DeepSeek-V3 and V2, DeepSeek-Coder (arXiv:2401.14196 Table 2), DeepSeek-VL
and VL2, Janus-Pro and JanusFlow, Engram (arXiv:2601.07372 Table 5) and mHC (arXiv:2512.24880 App. A.1). What a report
leaves out only adds a shape to measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: their width, how many there are, how many a token takes, over how many devices."""

    hidden: int
    expert_ffn: int
    n_experts: int
    top_k: int
    expert_parallel: Sequence[int] = (1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """An image encoder: heads, their size, tokens that attend to each other and how many such windows an image has."""

    heads: int
    head_dim: int
    tokens: int
    windows: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What one system's kernels are shaped by; sites are (outputs n, inputs k) of its products."""

    sites: Mapping[str, tuple[int, int]]
    hidden: int
    norm_widths: Sequence[int] = ()
    gated_widths: Sequence[int] = ()
    layernorm_widths: Sequence[int] = ()
    gelu_widths: Sequence[int] = ()
    heads: Sequence[tuple[int, int]] = ()
    latent_heads: Sequence[int] = ()
    experts: Experts | None = None
    encoders: Sequence[Encoder] = ()
    streams: Sequence[int] = ()
    row_dims: Sequence[int] = ()
    trained: bool = False
    fp8: bool = True
    convolutions: Sequence[tuple[int, int, int, int]] = field(default=())
    depthwise: Sequence[tuple[int, int]] = ()

    @property
    def expert_sites(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the grouped products, gate and up in one."""
        e = self.experts
        return [] if e is None else [(2 * e.expert_ffn, e.hidden), (e.hidden, e.expert_ffn)]


def _latent(
    *, hidden: int, heads: int, q_rank: int, dense: int, experts: int, vocab: int
) -> dict[str, tuple[int, int]]:
    """Sites of a layer with latent attention: rank 512, head parts 128 and 64, values 128."""
    query = {"q": (heads * 192, hidden)} if q_rank == 0 else {"q_a": (q_rank, hidden), "q_b": (heads * 192, q_rank)}
    return query | {
        "kv_a": (576, hidden),
        "kv_b": (heads * 256, 512),
        "o": (hidden, heads * 128),
        "dense_up": (2 * dense, hidden),
        "dense_down": (hidden, dense),
        "router": (experts, hidden),
        "head": (vocab, hidden),
    }


def _gated(*, hidden: int, qkv: int, ffn: int, vocab: int) -> dict[str, tuple[int, int]]:
    return {
        "qkv": (qkv, hidden),
        "o": (hidden, hidden),
        "up": (2 * ffn, hidden),
        "down": (hidden, ffn),
        "head": (vocab, hidden),
    }


def _plain(name: str, hidden: int, ffn: int) -> dict[str, tuple[int, int]]:
    """Sites of an encoder's block: fused query, key and value; a feed-forward layer without gate."""
    return {
        f"{name}_qkv": (3 * hidden, hidden),
        f"{name}_o": (hidden, hidden),
        f"{name}_up": (ffn, hidden),
        f"{name}_down": (hidden, ffn),
    }


_SIGLIP_L = Encoder(heads=16, head_dim=64, tokens=576)
_SIGLIP_SO400M = Encoder(heads=16, head_dim=72, tokens=729)
#: Residual blocks and steps of width of the decoder of the VQ tokenizer: in, out, pixels, kernel.
_VQ = (
    (256, 512, 24, 3), (512, 512, 24, 3), (512, 512, 48, 3), (512, 256, 48, 3), (256, 256, 48, 3), (256, 256, 96, 3),
    (256, 128, 192, 3), (128, 128, 192, 3), (128, 128, 384, 3), (128, 3, 384, 3), (512, 256, 48, 1), (256, 128, 192, 1),
)  # fmt: skip
_SDXL_VAE = (
    (4, 512, 48, 3), (512, 512, 48, 3), (512, 512, 96, 3), (512, 512, 192, 3), (512, 256, 192, 3), (256, 256, 192, 3),
    (256, 256, 384, 3), (256, 128, 384, 3), (512, 256, 192, 1),
)  # fmt: skip


def _mhc(hidden: int, heads: int, dense: int, expert_ffn: int, n_experts: int) -> System:
    return System(
        sites=_latent(hidden=hidden, heads=heads, q_rank=0, dense=dense, experts=n_experts, vocab=129280),
        hidden=hidden,
        norm_widths=(512, hidden),
        gated_widths=(expert_ffn,),
        latent_heads=(heads,),
        experts=Experts(hidden=hidden, expert_ffn=expert_ffn, n_experts=n_experts, top_k=6),
        streams=(4,),
        trained=True,
    )


SYSTEMS: dict[str, System] = {
    "deepseek-v3": System(
        sites=_latent(hidden=7168, heads=128, q_rank=1536, dense=18432, experts=256, vocab=129280),
        hidden=7168,
        norm_widths=(512, 1536, 7168),
        gated_widths=(2048, 18432),
        latent_heads=(16, 64, 128),
        experts=Experts(hidden=7168, expert_ffn=2048, n_experts=256, top_k=8, expert_parallel=(8, 32, 64)),
        streams=(2, 4),
        trained=True,
    ),
    "deepseek-v2": System(
        sites=_latent(hidden=5120, heads=128, q_rank=1536, dense=12288, experts=160, vocab=102400),
        hidden=5120,
        norm_widths=(512, 1536, 5120),
        gated_widths=(1536, 12288),
        latent_heads=(128,),
        experts=Experts(hidden=5120, expert_ffn=1536, n_experts=160, top_k=6, expert_parallel=(8, 16)),
        trained=True,
    ),
    "deepseek-v2-lite": System(
        sites=_latent(hidden=2048, heads=16, q_rank=0, dense=10944, experts=64, vocab=102400),
        hidden=2048,
        norm_widths=(512, 2048),
        gated_widths=(1408,),
        latent_heads=(16,),
        experts=Experts(hidden=2048, expert_ffn=1408, n_experts=64, top_k=6),
        trained=True,
    ),
    "deepseek-coder-1.3b": System(
        sites=_gated(hidden=2048, qkv=3 * 2048, ffn=5504, vocab=32256),
        hidden=2048,
        norm_widths=(2048,),
        gated_widths=(5504,),
        heads=((16, 16),),
    ),
    "deepseek-coder-6.7b": System(
        sites=_gated(hidden=4096, qkv=3 * 4096, ffn=11008, vocab=32256),
        hidden=4096,
        norm_widths=(4096,),
        gated_widths=(11008,),
        heads=((32, 32),),
        trained=True,
    ),
    "deepseek-coder-33b": System(
        sites=_gated(hidden=7168, qkv=(56 + 16) * 128, ffn=19200, vocab=32256),
        hidden=7168,
        norm_widths=(7168,),
        gated_widths=(19200,),
        heads=((56, 8),),
        trained=True,
    ),
    "deepseek-vl-7b": System(
        sites=_gated(hidden=4096, qkv=3 * 4096, ffn=11008, vocab=102400) | _plain("sam", 768, 3072),
        hidden=4096,
        norm_widths=(4096,),
        layernorm_widths=(768,),
        gelu_widths=(3072,),
        heads=((32, 32),),
        encoders=(
            Encoder(heads=12, head_dim=64, tokens=4096),
            Encoder(heads=12, head_dim=64, tokens=196, windows=25),
        ),
        convolutions=((256, 512, 96, 3), (512, 1024, 48, 3), (256, 256, 64, 3)),
        fp8=False,
    ),
    "deepseek-vl2": System(
        sites=_latent(hidden=2560, heads=32, q_rank=0, dense=12288, experts=72, vocab=129280)
        | _plain("siglip", 1152, 4304)
        | {"projector": (2560, 4608)},
        hidden=2560,
        norm_widths=(512, 2560),
        gated_widths=(1536, 12288),
        layernorm_widths=(1152,),
        gelu_widths=(4304,),
        latent_heads=(32,),
        experts=Experts(hidden=2560, expert_ffn=1536, n_experts=72, top_k=6),
        encoders=(_SIGLIP_SO400M,),
    ),
    "deepseek-vl2-tiny": System(
        sites=_gated(hidden=1280, qkv=3 * 1280, ffn=6848, vocab=129280) | {"router": (64, 1280)},
        hidden=1280,
        norm_widths=(1280,),
        gated_widths=(896,),
        heads=((10, 10),),
        experts=Experts(hidden=1280, expert_ffn=896, n_experts=64, top_k=6),
    ),
    "janus-pro-1b": System(
        sites=_gated(hidden=2048, qkv=3 * 2048, ffn=5632, vocab=102400) | _plain("siglip", 1024, 4096),
        hidden=2048,
        norm_widths=(2048,),
        gated_widths=(5632,),
        layernorm_widths=(1024,),
        gelu_widths=(4096,),
        heads=((16, 16),),
        encoders=(_SIGLIP_L,),
        convolutions=_VQ,
        fp8=False,
    ),
    "janus-pro-7b": System(
        sites=_gated(hidden=4096, qkv=3 * 4096, ffn=11008, vocab=102400)
        | {"aligner": (4096, 1024), "generation_head": (16384, 4096)},
        hidden=4096,
        norm_widths=(4096,),
        gated_widths=(11008,),
        layernorm_widths=(1024,),
        heads=((32, 32),),
        encoders=(_SIGLIP_L,),
        convolutions=_VQ,
        fp8=False,
    ),
    "janusflow-1.3b": System(
        sites={"in": (2048, 768), "out": (768, 2048), "next_up": (3072, 768), "next_down": (768, 3072)},
        hidden=2048,
        norm_widths=(2048,),
        layernorm_widths=(768,),
        gelu_widths=(3072,),
        encoders=(_SIGLIP_L,),
        convolutions=_SDXL_VAE,
        depthwise=((768, 24), (1536, 24)),
        fp8=False,
    ),
    "engram-27b": System(
        sites=_latent(hidden=2560, heads=32, q_rank=0, dense=12288, experts=55, vocab=129280)
        | {"keys_value": (5 * 2560, 1280)},
        hidden=2560,
        norm_widths=(512, 2560),
        gated_widths=(1536,),
        latent_heads=(32,),
        experts=Experts(hidden=2560, expert_ffn=1536, n_experts=55, top_k=6),
        streams=(4,),
        row_dims=(64, 80, 128, 160, 320, 640, 1280),
        trained=True,
    ),
    "mhc-3b": _mhc(1280, 16, 6848, 896, 64),
    "mhc-9b": _mhc(1920, 24, 10240, 1280, 64),
    "mhc-27b": _mhc(2560, 32, 12288, 1536, 72),
}
#: Other names of the same dimensions.
ALIASES = {"deepseek-coder-v2": "deepseek-v2", "deepseek-coder-v2-lite": "deepseek-v2-lite"}
