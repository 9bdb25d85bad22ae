"""The card of one model: its parameters, what a token costs in every phase, its memory; plain numbers with stable keys.

Work is counted from the operators themselves, as one device that holds the whole model would run them in BF16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sextant import hwmodels
from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.types import Load, Plan, Step
from sextant.studies import model_file
from sextant.workloads import parameters, residency
from sextant.workloads.formats import RECIPES
from sextant.workloads.intensity import Costs, Key, ridge_flops_per_byte, step_costs, total
from sextant.workloads.transformer import Transformer

#: The sequence length at which a card quotes work per token; the published tables use it.
CONTEXT_TOKENS = 4096.0
#: Contexts at which a card quotes the cache of one request.
_CACHES = {"kv_bytes_32k": 32768.0, "kv_bytes_128k": 131072.0}
#: The GPU whose roofline a card is laid against.
_GPU = "h800"
#: Text beside an image: a question about it, or the prompt it is made from.
_TEXT_TOKENS = 64.0

CONVENTION = "without MTP; activated without the input embedding"

#: Quantities that publishers quote: what they are called, and how they are counted here.
_QUANTITIES = {
    "n_parameters": ("parameters", "all weights, without MTP modules"),
    "n_activated_parameters": ("activated parameters", "of one token, without the input embedding and MTP"),
    "mtp_parameters": ("MTP parameters", "embedding and head are shared, not counted"),
    "n_language_parameters": ("of the language model", "without image encoders and generators"),
    "n_activated_language_parameters": ("activated, language model", "of one token, without the input embedding"),
    "kv_bytes_per_token": ("KV cache per token", "BF16, all layers"),
}
#: Phases of a card: the load, how many rows, and which phases of operators belong to it.
_FORWARD, _BACKWARD = ("forward",), ("backward_input", "backward_weight")
_PHASES: Mapping[str, tuple[str, str, float, float, tuple[str, ...]]] = {
    "training_forward": ("training fwd", "training", 1.0, CONTEXT_TOKENS, _FORWARD),
    "training_backward": ("training bwd", "training", 1.0, CONTEXT_TOKENS, _BACKWARD),
    "prefill": ("prefill", "prefill", 1.0, CONTEXT_TOKENS, _FORWARD),
    "decode_1": ("decode x1", "decode", 1.0, CONTEXT_TOKENS, _FORWARD),
    "decode_128": ("decode x128", "decode", 128.0, CONTEXT_TOKENS, _FORWARD),
    "image_understanding": ("image in", "image_understanding", 1.0, _TEXT_TOKENS, _FORWARD),
    "image_generation": ("image out", "image_generation", 1.0, _TEXT_TOKENS, _FORWARD),
}  # fmt: skip
_NEEDS = {"image_understanding": "vision", "image_generation": "generation"}


def row(model: Transformer) -> dict[str, Any]:
    """The fields that ``list models`` tells of every model."""
    return {
        "name": model.name, "system": model.system, "n_parameters": _count(parameters.n_parameters(model)),
        "n_activated_parameters": _count(parameters.activated_parameters(model)), "convention": CONVENTION,
        "official": {k: _count(v) for k, v in model.official.items() if _published(model, k)},
        "source": dict(model.source),
    }  # fmt: skip


def card(name: str, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The card of a model of the catalogue, after ``sets`` (``field=value``, as in a scenario) changed it.

    InputError offers the nearest names. A changed model is laid beside no published figures, which are of another.
    """
    model = model_file.named(name)
    if sets:
        kept = {path: text for path, text in model.source.items() if not path.startswith("official.")}
        model = replace(_changed(name, sets), official={}, source=kept)
    return {
        **row(model), "changed": list(sets), "published": _beside(model, True), "unconfirmed": _beside(model, False),
        "parameters": _parameters(model), "memory": _memory(model), "work": _work(model), "fields": _fields(model),
        "fields_unused": sorted(_unused(model)),
    }  # fmt: skip


def _changed(name: str, sets: Sequence[str]) -> Transformer:
    """The model as a scenario with these ``--set`` words builds it, with all the checks of a scenario."""
    from sextant.studies import answer

    words = [word if word.startswith("model.") else f"model.{word}" for word in sets]
    text = f"name: a model\nmodel: {name}\ncluster: h800-2048\nload: {{phase: prefill, batch: 1, context_tokens: 1}}\n"
    return answer.question(text, words).scenario.model


def _count(value: Any) -> int | float:
    """A count as a whole number, so that JSON shows all its digits and no exponent."""
    return int(value) if float(value).is_integer() else float(value)


def _source_of(model: Transformer, quantity: str) -> str:
    return model.source.get(f"official.{quantity}", model.source.get("", ""))


def _published(model: Transformer, quantity: str) -> bool:
    """Whether the figure was read in a publication; its source says so where that is not confirmed."""
    return "unconfirmed" not in _source_of(model, quantity).lower()


def _beside(model: Transformer, published: bool) -> list[dict[str, Any]]:
    """The publisher's figures, or those that no source confirms, beside ours."""
    rows = []
    for quantity, figure in model.official.items():
        if _published(model, quantity) != published:
            continue
        label, convention = _QUANTITIES.get(quantity, (quantity.replace("_", " "), ""))
        ours = _ours(model, quantity)
        rows.append({
            "quantity": quantity, "label": label, "figure": _count(figure), "ours": ours,
            "difference": None if ours is None else ours / float(figure) - 1.0, "convention": convention,
            "source": _source_of(model, quantity),
        })  # fmt: skip
    return rows


def _ours(model: Transformer, quantity: str) -> int | float | None:
    """Our count of a published quantity: a function of ``parameters``, or all that one part or piece holds."""
    names = {
        "n_activated_parameters": "activated_parameters", "n_language_parameters": "language_parameters",
        "n_activated_language_parameters": "language_activated_parameters",
    }  # fmt: skip
    function = getattr(parameters, names.get(quantity, quantity), None)
    if callable(function) and not quantity.startswith("_"):
        return _count(function(model))
    counts, sizes = parameters.layer_counts(model), parameters.layer_parameters(model)
    sums = {part: n * sum(sizes[part].values()) for part, n in counts.items()} | dict(parameters.by_piece(model))
    sums["vocabulary"] = sum(sums.get(name, 0.0) for name in ("embedding", "head"))
    # A publication speaks of one table or of its tables.
    part = quantity.removesuffix("_parameters")
    return next((_count(sums[name]) for name in (part, f"{part}s") if name in sums and name != quantity), None)


def _parameters(model: Transformer) -> dict[str, Any]:
    """Parameters by part and by piece, with their shares of all without MTP."""
    counts, sizes = parameters.layer_counts(model), parameters.layer_parameters(model)
    active = _activated(model)
    all_n, all_active = parameters.n_parameters(model), parameters.activated_parameters(model)

    def entry(n: Any, used: Any) -> dict[str, Any]:
        return {
            "parameters": _count(n), "share": float(n / all_n), "activated": _count(used),
            "activated_share": float(used / all_active),
        }  # fmt: skip

    by_part, by_piece = {}, {}
    for part, n in counts.items():
        total_n, used = n * sum(sizes[part].values()), n * sum(active.get(part, {}).values())
        by_part[part] = {"n": _count(n), **entry(total_n, used)}
        for piece, size in sizes[part].items() if part != "mtp" else ():
            before = by_piece.get(piece, (0.0, 0.0))
            by_piece[piece] = (before[0] + n * size, before[1] + n * active.get(part, {}).get(piece, 0.0))
    return {
        "by_part": by_part, "by_piece": {piece: entry(*sums) for piece, sums in by_piece.items() if sums[0]},
        "with_mtp": _count(parameters.n_parameters(model, mtp=True)),
        "activated_with_embedding": _count(parameters.activated_parameters(model, embedding=True)),
    }  # fmt: skip


def _activated(model: Transformer) -> dict[str, dict[str, Any]]:
    """Parameters of one occurrence of each part that a token uses, by piece, in the convention of the card."""
    sizes = parameters.layer_parameters(model)
    return {
        part: {piece: parameters.activated_piece(model, piece, size) for piece, size in sizes[part].items()}
        for part in parameters.layer_counts(model)
        if part not in ("embedding", "mtp")
    }


def _memory(model: Transformer) -> dict[str, Any]:
    """Weights as they are served, training state per parameter before any of it is shared out, cache per request."""
    kv = float(parameters.kv_bytes_per_token(model))
    counts = parameters.layer_counts(model)
    weights, state = {}, {}
    for name, kind in RECIPES.items():
        plan = Plan(formats=name)
        sizes = residency.weight_bytes(model, plan)
        tables = residency.table_bytes(model, plan, "decode", 1.0)
        weights[name] = float(sum(n * sizes[part] for part, n in counts.items() if part != "mtp")) + float(
            tables["hbm"]
        )
        per = {
            "weights": kind.weight_bytes, "gradients": kind.gradient_bytes, "master": kind.master_bytes,
            "moments": kind.moment_bytes,
        }  # fmt: skip
        state[name] = {**per, "bytes_per_parameter": sum(per.values())}
    return {
        "weights_bytes": weights, "training_state": state, "kv_bytes_per_token": _count(kv),
        **{key: _count(kv * tokens) for key, tokens in _CACHES.items()},
    }  # fmt: skip


def _work(model: Transformer) -> dict[str, Any]:
    """FLOPs and bytes per token of every phase by block, and the side of the GPU's roofline they lie on."""
    ridge = float(ridge_flops_per_byte(hwmodels.device(_GPU)))
    flops = parameters.training_flops_per_token
    phases = {}
    for key, (label, phase, batch, context, wanted) in _PHASES.items():
        need = _NEEDS.get(phase)
        if need and getattr(model, need) is None:
            continue
        load = Load(phase=phase, batch=batch, context_tokens=context)
        try:
            step = model.step(load, Plan())
        except InputError:  # a phase that this model does not have
            continue
        found = step_costs(_streams_apart(step))
        costs = {at: c * (1.0 / step.n_tokens) for at, c in found.items() if at[2] in wanted}
        phases[key] = {"label": label, "batch": _count(batch), "context_tokens": _count(context),
                       "n_tokens": _count(step.n_tokens), **_entry(total(costs), ridge),
                       "blocks": _blocks(costs, ridge)}  # fmt: skip
    return {
        "gpu": _GPU, "format": "bf16", "ridge_flops_per_byte": ridge,
        "context_tokens": _count(CONTEXT_TOKENS),
        "training_flops_per_token_causal": float(flops(model, CONTEXT_TOKENS)),
        "training_flops_per_token_noncausal": float(flops(model, CONTEXT_TOKENS, causal=False)), "phases": phases,
        **({"image": _image(model)} if "image_generation" in phases else {}),
    }  # fmt: skip


def _image(model: Transformer) -> dict[str, float]:
    """FLOPs and HBM bytes of a whole image: its prompt, all sampling steps with guidance, and the pixels."""
    from sextant.workloads import imaging

    load = Load(phase="image_generation", batch=1.0, context_tokens=_TEXT_TOKENS)
    cost = sum((total(step_costs(p.step)) * p.repeats for p in imaging.passes(model, load, Plan())), Costs())
    return {"flops_per_image": float(cost.flops), "bytes_per_image": float(cost.hbm_bytes)}


def _streams_apart(step: Step) -> Step:
    """``step`` in which all that mHC does around a sublayer is a block of its own; the sublayer's norm stays there."""
    return replace(step, ops=tuple(
        replace(op, block="streams") if "_streams_" in op.name and "_norm" not in op.name else op for op in step.ops
    ))  # fmt: skip


def _entry(cost: Costs, ridge: float) -> dict[str, Any]:
    intensity = float(cost.intensity)
    return {
        "flops_per_token": float(cost.flops), "hbm_bytes_per_token": float(cost.hbm_bytes),
        "host_bytes_per_token": float(cost.host_bytes), "flops_per_byte": intensity,
        "side": "compute" if intensity >= ridge else "memory",
    }  # fmt: skip


def _blocks(costs: Mapping[Key, Costs], ridge: float) -> dict[str, dict[str, Any]]:
    """The rows of a card: what parts of one role cost together. Those that cost nothing on one device are left out."""
    sums: dict[str, Costs] = {}
    for key, cost in costs.items():
        name = block_name(*key[:2])
        sums[name] = sums.get(name, Costs()) + cost
    return {name: _entry(cost, ridge) for name, cost in sums.items() if cost.flops or cost.hbm_bytes or cost.host_bytes}


def block_name(part: str, block: str) -> str:
    """The row of a card that an operator of this part and block counts in."""
    if part in ("embedding", "head"):
        return "embedding_head"
    if part not in ("dense_layer", "moe_layer"):
        return part
    if block == "mlp":
        return "experts" if part == "moe_layer" else "dense_mlp"
    return "exchange" if block.startswith(("dispatch", "combine")) else block


def _fields(model: Transformer) -> dict[str, Any]:
    """Every dimension by the dotted path that ``--set`` takes."""
    said = ("name", "system", "official", "source")
    return {
        path: [_plain(each) for each in value] if isinstance(value, tuple) else _plain(value)
        for path, value in paths.leaves(model).items()
        if path.partition(".")[0] not in said and ".source" not in path
    }


def _plain(value: Any) -> Any:
    return _count(value) if isinstance(value, float) and math.isfinite(value) else value


def _unused(model: Transformer) -> set[str]:
    """Fields that say nothing of this model, because what they describe is absent or is one of something."""
    fields = _fields(model)
    starts: list[str] = []
    if not model.engram_layers:
        starts.append("engram_")
    if not parameters.has_streams(model):
        starts += ["n_streams", "sinkhorn_iters"]
    if not parameters.has_experts(model):
        starts += ["n_group", "topk_", "moe_", "n_shared", "num_experts", "first_k", "n_routed"]
    starts += ["head_dim", "num_key_value"] if model.attention == "mla" else ["q_lora", "kv_lora", "qk_nope", "qk_rope",
                                                                             "v_head_dim"]  # fmt: skip
    return {
        path for path, value in fields.items()
        if path.startswith(tuple(starts)) or value is None or value is False or value in (0, [])
    }  # fmt: skip
