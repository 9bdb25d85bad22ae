"""Layers of a transformer as lists of operators: attention half and feed-forward half, embedding, head, MTP."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sextant.simulator.kernels import BYTES
from sextant.simulator.kernels.expert_exchange import N_SMS as EXCHANGE_SMS
from sextant.simulator.kernels.imbalance import Skew
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import Recipe
from sextant.workloads.ops import attention, engram, feedforward, gpt, hyperconnection
from sextant.workloads.ops.linear import cast, linear
from sextant.workloads.ops.memory import Place, moved, norm, residual_norm
from sextant.workloads.ops.table_rows import EVERY, Access
from sextant.workloads.parameters import has_experts, has_streams
from sextant.workloads.traffic import BALANCED

#: Modes of the expert-exchange kernels: throughput for training and prefill, low latency for decode.
NORMAL, LOW_LATENCY = 0.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a layer processes on one data-parallel rank: ``batch`` sequences of ``seq`` new tokens that see ``kv_len``.

    ``copies`` is the expected number of devices that receive a routed token, ``n_slots`` the routed experts with
    their redundant copies, ``skew`` how unevenly they are chosen, ``n_comm_sms`` the SMs that run the exchange of
    experts in normal mode, ``exchange`` its kernels, as in ``Plan``. ``n_images`` of ``image_height`` x ``image_width``
    pixels are encoded per sequence. ``engram_tier`` is the memory that holds Engram tables, ``n_devices`` how many
    devices share them in training, ``access`` which of their rows move. ``fused``: attention keeps its scores to
    itself. ``streams``, ``n_stages``: as in ``Place``.
    """

    phase: str
    batch: Num
    seq: Num
    kv_len: Num
    recipe: Recipe
    recompute: tuple[str, ...] = ()
    copies: Num = 1.0
    n_slots: Num = 0.0
    skew: Skew = BALANCED
    n_comm_sms: Num = EXCHANGE_SMS
    exchange: str = "deepep"
    n_images: Num = 0.0
    image_height: Num = 384.0
    image_width: Num = 384.0
    engram_tier: str = "hbm"
    n_devices: Num = 1.0
    fused: bool = True
    streams: str = "fused"
    n_stages: Num = 1.0
    access: Access = EVERY

    @property
    def n_tokens(self) -> Num:
        """New tokens per data-parallel rank."""
        return self.batch * self.seq

    def place(self, part: str, block: str) -> Place:
        """The tags of an operator of that part and block."""
        return Place(
            part=part, block=block, training=self.phase == "training", recompute=self.recompute,
            streams=self.streams, n_stages=self.n_stages,
        )  # fmt: skip


def attention_half(part: str, model, shape: Shape) -> list[Op]:
    """Norm and self-attention of one layer."""
    place, m = shape.place(part, "attention"), shape.n_tokens
    ops = into_sublayer("attention", place, m, model)
    if model.attention == "gqa":
        ops += attention.gqa(place, model, shape.recipe, shape.batch, shape.seq, shape.kv_len)
    elif shape.phase == "decode":
        ops += attention.mla_absorbed(place, model, shape.recipe, shape.batch, shape.kv_len)
    else:
        ops += attention.mla_expanded(place, model, shape.recipe, shape.batch, shape.seq, shape.kv_len)
    return ops + out_of_sublayer("attention", place, m, model)


def into_sublayer(name: str, place: Place, m: Num, model) -> list[Op]:
    """From the residual to the normalised input of a sublayer; with mHC the streams are mixed to one first."""
    if has_streams(model):
        return hyperconnection.pre(f"{name}_streams", place, m, model)
    return residual_norm(f"{name}_norm", place, m, model.hidden_size)


def out_of_sublayer(name: str, place: Place, m: Num, model) -> list[Op]:
    """Back into the residual streams of mHC; a single residual is added by the next norm."""
    return hyperconnection.post(f"{name}_streams", place, m, model) if has_streams(model) else []


def dense_layer(model, shape: Shape, part: str = "dense_layer") -> list[Op]:
    """Attention and a dense gated feed-forward of ``intermediate_size``."""
    place, m = shape.place(part, "mlp"), shape.n_tokens
    if model.hidden_act == "gelu":
        return gpt_layer(model, shape, part)
    ops = attention_half(part, model, shape)
    ops += into_sublayer("mlp", place, m, model)
    ops += feedforward.gated("mlp", place, m, model.hidden_size, model.intermediate_size, shape.recipe)
    ops += out_of_sublayer("mlp", place, m, model)
    return ops + _forward_again(ops, shape)


def gpt_layer(model, shape: Shape, part: str = "dense_layer") -> list[Op]:
    """Attention and a plain GELU feed-forward, with LayerNorm, biases and dropout."""
    attn, mlp = shape.place(part, "attention"), shape.place(part, "mlp")
    ops = gpt.attention_half(attn, model, shape.recipe, shape.batch, shape.seq, shape.kv_len, fused=shape.fused)
    ops += gpt.feedforward_half(mlp, model, shape.recipe, shape.n_tokens)
    return ops + _forward_again(ops, shape)


def moe_layer(model, shape: Shape, part: str = "moe_layer") -> list[Op]:
    """Attention, router, expert exchange, shared and routed experts."""
    m, recipe = shape.n_tokens, shape.recipe
    attn, mlp = shape.place(part, "attention"), shape.place(part, "mlp")
    ops = attention_half(part, model, shape)
    # Router and norm belong to the attention block: they must be done before the dispatch can start.
    # Its normalised input is made again where its products' gradients need it.
    norms = into_sublayer("mlp", attn, m, model)
    ops += [replace(op, block="mlp") if op.name == "mlp_norm_recompute" else op for op in norms]
    ops += feedforward.router(attn, m, model)
    if recipe.quantised:
        ops.append(feedforward.cast("dispatch_cast", attn, m * model.hidden_size))
    if shape.phase == "training":
        ops += _around_experts(attn, mlp, m * model.hidden_size, recipe)
    mode = LOW_LATENCY if shape.phase == "decode" else NORMAL
    first = 1.0 if shape.exchange == "deepep_2025_02" else 0.0
    ops += feedforward.exchange(mlp, model, recipe, m, mode, first, shape.n_slots, shape.n_comm_sms, shape.skew)
    if bool(model.n_shared_experts > 0):
        width = model.n_shared_experts * model.moe_intermediate_size
        ops += feedforward.gated("shared_expert", mlp, m, model.hidden_size, width, recipe, exchanged=True)
    ops += feedforward.routed(mlp, model, recipe, m, shape.copies, shape.n_slots, shape.skew)
    # The streams take the layer's output up when the combine has brought it, whatever else the layer still does.
    ops += out_of_sublayer("mlp", shape.place(part, "streams"), m, model)
    return ops + _forward_again(ops, shape)


def _around_experts(attn: Place, mlp: Place, elements: Num, recipe: Recipe) -> list[Op]:
    """What the backward pass of a MoE layer runs besides, on a residual of so many elements.

    The sum of the router's and the experts' input gradients. In FP8 also the cast of the output gradient before it is
    sent, on the stream that sends it; and that of a normalised input that is made again, to FP8 and back, so that the
    weight gradient sees what the product saw.
    """
    size, fp8 = 2.0 * elements, BYTES["fp8_block"] * elements
    ops = [moved("mlp_input_gradient_sum", attn, 2.0 * size, size, "backward_input", sharded=())]
    if not recipe.quantised:
        return ops
    sent = cast("combine_backward_cast", attn, elements, "backward_input")
    ops.append(replace(sent, block="combine_backward", stream="communication"))
    if "norm" in mlp.recompute:
        ops.append(cast("mlp_input_cast_recompute", mlp, elements, "backward_input"))
        ops.append(moved("mlp_input_load", mlp, fp8, size, "backward_input", sharded=()))
    return ops


def _forward_again(ops: list[Op], shape: Shape) -> list[Op]:
    """Under recompute ``full`` a layer keeps only its input, and runs forward again before its backward pass."""
    if shape.phase != "training" or "full" not in shape.recompute:
        return []
    messages = {"dispatch": "dispatch_backward", "combine": "combine_backward"}
    return [
        replace(op, name=f"{op.name}_recompute", phase="backward_input", block=messages.get(op.block, op.block))
        for op in ops
        if op.phase == "forward"
    ]


def embedding(model, shape: Shape) -> list[Op]:
    """Lookup of (n_tokens, hidden_size) rows; the gradient scatters FP32 rows."""
    place, size = shape.place("embedding", "embedding"), 2.0 * shape.n_tokens * model.hidden_size
    if model.hidden_act == "gelu":
        return gpt.embedding(place, model, shape.n_tokens)
    ops = [moved("embedding", place, size, size)]
    if place.training:
        ops.append(moved("embedding_backward", place, 3 * size, 2 * size, "backward_weight"))
    if has_streams(model):
        ops += hyperconnection.expand(place, shape.n_tokens, model)
    return ops


def engram_module(model, shape: Shape) -> list[Op]:
    """The n-gram memory in front of one layer: rows fetched, projected, gated, convolved, added to the residual."""
    place = shape.place("engram", "engram")
    return engram.operators(
        place, model, shape.n_tokens, shape.phase, shape.engram_tier, shape.n_devices, shape.recipe, shape.access
    )


def vision(model, shape: Shape) -> list[Op]:
    """The image encoders and the projector into the language model's embedding space."""
    place = shape.place("vision", "vision")
    n_images = shape.batch * shape.n_images
    return model.vision.operators(place, n_images, shape.image_height, shape.image_width, model.hidden_size)


def generation(model, shape: Shape) -> list[Op]:
    """What a sampling step of the image generator runs beside the language model's layers, with the final norm."""
    place, rows = shape.place("generation", "generation"), shape.batch
    ops = hyperconnection.merge(place, shape.n_tokens, model) if has_streams(model) else []
    ops += norm("final_norm", place, shape.n_tokens, model.hidden_size)
    return ops + model.generation.step_operators(place, rows, model.hidden_size)


def head(model, shape: Shape, part: str = "head") -> list[Op]:
    """Final norm, vocabulary projection in the recipe's head format, and in training softmax cross-entropy.

    Prefill and decode need the logits of the last token of each sequence only.
    """
    place, recipe = shape.place(part, "head"), shape.recipe
    m = shape.n_tokens if place.training else shape.batch
    ops = hyperconnection.merge(place, m, model) if has_streams(model) else []
    ops += norm("final_norm", place, m, model.hidden_size)
    ops += linear("lm_head", place, m, model.vocab_size, model.hidden_size, recipe, split="n", format=recipe.head)
    logits = 1.0 * m * model.vocab_size
    if place.training:
        # Softmax in FP32: convert, maximum, sum of exponentials; backward the gradient in place, then BF16 again.
        ops.append(moved("cross_entropy", place, (2.0 + 4.0 + 4.0) * logits, 4.0 * logits))
        ops.append(moved("cross_entropy_backward", place, (4.0 + 4.0) * logits, (4.0 + 2.0) * logits, "backward_input"))
    return ops


def mtp(model, shape: Shape) -> list[Op]:
    """One multi-token-prediction module: two norms, a (2 hidden to hidden) projection, a layer, the shared head."""
    part, m, recipe = "mtp", shape.n_tokens, shape.recipe
    place = shape.place(part, "head")
    ops = [replace(op, part=part, block="head") for op in embedding(model, shape)]
    ops += norm("mtp_hidden_norm", place, m, model.hidden_size) + norm("mtp_embed_norm", place, m, model.hidden_size)
    ops += linear("mtp_proj", place, m, model.hidden_size, 2 * model.hidden_size, recipe)
    layer = moe_layer if has_experts(model) else dense_layer
    return ops + layer(model, shape, part) + head(model, shape, part)
