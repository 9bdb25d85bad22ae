"""A Hugging Face config.json as a model: fields are copied by name, what is unused is told, what is unknown refused.

Families are named by ``model_type``. A value that would change the structure in a way that is not modelled is an error,
never overlooked: nothing unknown is taken for a dense model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sextant.simulator.errors import InputError, Problem, nearest
from sextant.workloads.transformer import Transformer

_LAYERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_EXPERTS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")

#: Keys whose presence says that a config is not of a dense language model.
_OTHERS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "kv_lora_rank", "vision_config",
    "audio_config", "text_config", "num_experts_per_tok", "n_shared_experts", "shared_expert_intermediate_size",
    "q_lora_rank", "num_nextn_predict_layers", "mlp_layer_types",
)  # fmt: skip

#: Keys that may be 0, for a part that the model does not have.
_MAY_BE_ZERO = ("first_k_dense_replace", "q_lora_rank", "n_shared_experts", "num_nextn_predict_layers")

#: What families call the number of routed experts.
_COUNTS_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")

#: Largest count that is taken for a dimension; more is a slip.
_MOST = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What configs of one ``model_type`` hold.

    ``required``, ``stated`` and ``optional`` keys are copied to the field of the same name, or to the one that
    ``renamed`` says; ``aliases`` are other names of keys. A ``stated`` key must stand in the config but may be null,
    for the value given here: left out, the public class takes a number of its own that suits one model only.
    ``only`` lists, by key, the values that are modelled (None: an absent key or null), with what to do about others.
    """

    system: str
    attention: str
    classes: tuple[str, ...]
    required: tuple[str, ...]
    stated: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The model, the keys of its config that changed nothing, and what a user should know."""

    model: Transformer
    family: str
    unused: tuple[str, ...]
    notes: tuple[str, ...]


#: Values that change structure, where a family's class reads the key at all.
_PLAIN_MLP = {"mlp_bias": (False, None)}
_NO_WINDOW = {"use_sliding_window": (False, None)}
_EVERY_LAYER = {"decoder_sparse_step": (1, None), "mlp_only_layers": ([], None)}
_DEEPSEEK = Family(
    system="DeepSeek-V3", attention="mla", classes=("DeepseekV3ForCausalLM",),
    required=(*_LAYERS, *_LATENT, *_EXPERTS, "first_k_dense_replace"),
    stated={"q_lora_rank": 0, "n_shared_experts": 0, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0},
    optional={"num_key_value_heads": None, "topk_method": "noaux_tc", "tie_word_embeddings": False},
    only={"moe_layer_freq": (1, None), "attention_bias": (False, None), "topk_method": ("noaux_tc", None)},
)  # fmt: skip
_DENSE = {"head_dim": None, "tie_word_embeddings": False}
_KV_HEADS = {"num_key_value_heads": None}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        system="Llama", attention="gqa", classes=("LlamaForCausalLM",), required=_LAYERS,
        optional={**_DENSE, **_KV_HEADS, "attention_bias": False}, only=_PLAIN_MLP,
    ),
    "qwen2": Family(
        system="Qwen2", attention="gqa", classes=("Qwen2ForCausalLM",), required=_LAYERS, stated=_KV_HEADS,
        optional=_DENSE,
        fixed={"attention_bias": True, "attention_output_bias": False}, only=_NO_WINDOW,
    ),
    "qwen3": Family(
        system="Qwen3", attention="gqa", classes=("Qwen3ForCausalLM",), required=_LAYERS, stated=_KV_HEADS,
        optional={**_DENSE, "head_dim": 128, "attention_bias": False}, fixed={"qk_norm": True}, only=_NO_WINDOW,
    ),
    "qwen3_moe": Family(
        system="Qwen3", attention="gqa", classes=("Qwen3MoeForCausalLM",),
        required=(*_LAYERS, "num_experts", "num_experts_per_tok", "moe_intermediate_size"), stated=_KV_HEADS,
        optional={**_DENSE, "attention_bias": False}, renamed={"num_experts": "n_routed_experts"},
        aliases={"num_local_experts": "num_experts"},
        fixed={"qk_norm": True}, only={**_NO_WINDOW, **_EVERY_LAYER},
    ),
    "mixtral": Family(
        system="Mixtral", attention="gqa", classes=("MixtralForCausalLM",),
        required=(*_LAYERS, "num_local_experts", "num_experts_per_tok"), stated=_KV_HEADS,
        optional=_DENSE, renamed={"num_local_experts": "n_routed_experts"}, only={"sliding_window": (None,)},
    ),
    "deepseek_v2": Family(
        system="DeepSeek-V2", attention="mla", classes=("DeepseekV2ForCausalLM",), required=_DEEPSEEK.required,
        stated={"q_lora_rank": 0, "n_shared_experts": 0},
        optional={
            **_DEEPSEEK.optional, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "num_nextn_predict_layers": 0,
        },
        only={"moe_layer_freq": (1, None), "attention_bias": (False, None), **_PLAIN_MLP},
    ),
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": Family(
        system="Kimi-K2", attention="mla", classes=("DeepseekV3ForCausalLM", "KimiK2ForCausalLM"),
        required=_DEEPSEEK.required, stated=_DEEPSEEK.stated, optional=_DEEPSEEK.optional, only=_DEEPSEEK.only,
    ),
}  # fmt: skip

_REMEDIES = {
    "decoder_sparse_step": "only models with experts in every layer are modelled",
    "mlp_only_layers": "only models with experts in every layer are modelled",
    "moe_layer_freq": "only models with experts in every layer behind the dense ones are modelled",
    "topk_method": "the router of this family has a correction bias per expert",
    "mlp_bias": "feed-forwards with biases are not modelled",
    "attention_bias": "latent attention with biases is not modelled",
    "use_sliding_window": "attention inside a window is not modelled",
    "sliding_window": "attention inside a window is not modelled",
}


def import_config(config: Any, name: str, source: str = "config.json") -> Imported:
    """The model of a config as read from JSON; ``source`` is where it says that its fields come from.

    InputError names everything that is missing, of the wrong type or not modelled, or the families that are known.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"expected the object of a config.json, got {type(config).__name__}")
    kind, family = _family(config)
    problems = _foreign(config, kind, family)
    named = _renamed(config, family, problems)
    values = _values(named, family, problems)
    if not problems:
        problems = _at_odds(values, family)
    if problems:
        raise InputError(*problems)
    read = {*family.required, *family.stated, *family.optional, *family.only, *family.aliases}
    read |= {"model_type", "architectures", "layer_types"}
    unused = tuple(key for key in config if key not in read)
    fields = {family.renamed.get(key, key): value for key, value in values.items()} | dict(family.fixed)
    model = Transformer(
        name=name, system=family.system, attention=family.attention, source={"": source}, **_completed(fields, kind)
    )
    return Imported(model=model, family=kind, unused=unused, notes=_notes(config, kind, values))


def _family(config: Mapping[str, Any]) -> tuple[str, Family]:
    """The family that ``model_type`` names; one of its classes must stand in ``architectures``, where that is given."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise InputError(Problem(key="model_type", message=f"is missing; write one of {', '.join(FAMILIES)}"))
    if kind not in FAMILIES:
        message = f"architecture {kind!r} is not known, and is not taken for another one; {nearest(kind, FAMILIES)}"
        raise InputError(Problem(key="model_type", message=message))
    family, classes = FAMILIES[kind], config.get("architectures")
    if classes is not None and not (isinstance(classes, list) and set(map(str, classes)) <= set(family.classes)):
        message = f"{kind} is known as {' or '.join(family.classes)}, got {classes!r}; only this is modelled"
        raise InputError(Problem(key="architectures", message=message))
    return kind, family


def _foreign(config: Mapping[str, Any], kind: str, family: Family) -> list[Problem]:
    """Keys of another structure, and values that are not modelled."""
    known = {*family.required, *family.stated, *family.optional, *family.aliases}
    problems = [
        Problem(key=key, message=f"a {kind} model has none, got {config[key]!r:.60}; this is another architecture")
        for key in _OTHERS
        if key not in known and config.get(key) not in (None, 0)
    ]
    kinds = config.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(each == "full_attention" for each in kinds)):
        message = f"expected full_attention in every layer, got {kinds!r:.60}; {_REMEDIES['sliding_window']}"
        problems.append(Problem(key="layer_types", message=message))
    for key, values in family.only.items():
        if key in config and config[key] not in values:
            expected = " or ".join(repr(value) for value in values)
            message = f"expected {expected}, got {config[key]!r:.60}; {_REMEDIES[key]}"
            problems.append(Problem(key=key, message=message))
    return problems


def _renamed(config: Mapping[str, Any], family: Family, problems: list[Problem]) -> dict[str, Any]:
    """``config`` with aliases under the family's own key; two names with two values are a problem."""
    named = dict(config)
    for alias, key in family.aliases.items():
        value = named.pop(alias, None)
        if value is not None and named.setdefault(key, value) != value:
            message = f"{key} says {named[key]!r:.60}, got {value!r:.60}; they are one thing, remove one"
            problems.append(Problem(key=alias, message=message))
    return named


def _values(config: Mapping[str, Any], family: Family, problems: list[Problem]) -> dict[str, Any]:
    """The value of every key that a field takes; what is wrong with them is added to ``problems``."""
    values: dict[str, Any] = {}
    for key in family.required:
        if config.get(key) is None:
            problems.append(Problem(key=key, message="is missing; a config of this family has it"))
        else:
            values[key] = _number(key, config[key], problems)
    for key in (key for key in family.stated if key not in config):
        problems.append(Problem(key=key, message="is missing; a config of this family has it, or null for none"))
    for key, default in {**family.stated, **family.optional}.items():
        given = default if config.get(key) is None else config[key]
        if isinstance(default, bool):
            values[key] = _flag(key, given, problems)
        elif isinstance(default, str):
            values[key] = given if key in family.only else _text(key, given, problems)
        elif given is not None:
            values[key] = _number(key, given, problems)
    return values


def _at_odds(values: Mapping[str, Any], family: Family) -> list[Problem]:
    """Values that each make sense but not together; no model can be built of them."""
    found: list[Problem] = []

    def check(holds: bool, key: str, message: str) -> None:
        if not holds:
            found.append(Problem(key=key, message=f"{message}, got {values[key]:g}; correct one of the two"))

    heads = values["num_attention_heads"]
    if family.attention == "gqa":
        kv_heads = values.get("num_key_value_heads", heads)
        check(heads % kv_heads == 0, "num_key_value_heads", f"must divide num_attention_heads, {heads:g}")
        divided = values["hidden_size"] % heads == 0 or "head_dim" in values
        check(divided, "hidden_size", f"without head_dim it must be a multiple of num_attention_heads, {heads:g}")
    routed = next((values[k] for k in _COUNTS_EXPERTS if k in values), 0.0)
    if routed:
        groups, chosen = values.get("n_group", 1.0), values.get("topk_group", 1.0)
        check(routed % groups == 0, "n_group", f"must divide the {routed:g} routed experts")
        check(chosen <= groups, "topk_group", f"must be at most n_group, {groups:g}")
        most = routed * min(chosen / groups, 1.0)
        check(values["num_experts_per_tok"] <= most, "num_experts_per_tok", f"a token has {most:g} experts to choose")
    layers = values["num_hidden_layers"]
    if "first_k_dense_replace" in values:
        dense = values["first_k_dense_replace"]
        check(dense <= layers, "first_k_dense_replace", f"must be at most num_hidden_layers, {layers:g}")
    return found


def _number(key: str, given: Any, problems: list[Problem]) -> float:
    least = 0 if key in _MAY_BE_ZERO else 1
    whole = isinstance(given, int) or (isinstance(given, float) and given.is_integer())
    if isinstance(given, bool) or not whole:
        problems.append(Problem(key=key, message=f"expected a whole number, got {given!r:.60}; correct it"))
        return float(least)
    if not least <= given <= _MOST:
        problems.append(Problem(key=key, message=f"expected {least} to {_MOST:.0e}, got {given!r:.60}; correct it"))
        return float(least)
    return float(given)


def _flag(key: str, given: Any, problems: list[Problem]) -> bool:
    if not isinstance(given, bool):
        problems.append(Problem(key=key, message=f"expected true or false, got {given!r:.60}; correct it"))
    return bool(given)


def _text(key: str, given: Any, problems: list[Problem]) -> str:
    known = ("greedy", "group_limited_greedy", "noaux_tc")
    if given not in known:
        problems.append(Problem(key=key, message=f"unknown value {given!r:.60}; {nearest(str(given)[:60], known)}"))
    return str(given)


def _completed(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """Fields that follow from others, as the families' classes fill them in."""
    heads = fields["num_attention_heads"]
    found = {"num_key_value_heads": heads, **fields}
    if "kv_lora_rank" not in found and found.get("head_dim") is None:
        found["head_dim"] = float(fields["hidden_size"] // heads)
    if kind == "mixtral":
        found["moe_intermediate_size"] = fields["intermediate_size"]
    if kind == "deepseek_v2" and found["topk_method"] == "greedy":
        # The greedy router chooses among all experts and reads no groups.
        found["n_group"] = found["topk_group"] = 1.0
    if "attention_bias" in found and "attention_output_bias" not in found:
        found["attention_output_bias"] = found["attention_bias"]
    return found


def _notes(config: Mapping[str, Any], kind: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if config.get("quantization_config"):
        method = config["quantization_config"]
        name = method.get("quant_method", "") if isinstance(method, Mapping) else str(method)
        notes.append(f"weights are stored quantised ({name}): plan.formats chooses what they compute in")
    if kind in ("qwen3_moe", "mixtral"):
        notes.append("experts in every layer; no dense ones, so intermediate_size has no layer of its own")
    if values.get("topk_method") == "greedy" and values.get("n_group", 1.0) > 1:
        notes.append("a greedy router chooses among all experts: n_group and topk_group change nothing")
    if values.get("num_nextn_predict_layers"):
        notes.append("multi-token-prediction modules are not part of the parameter count")
    return tuple(notes)
