"""The card of a model as text for a terminal: official figures, parameters, memory, work per token, fields, sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sextant.simulator.units import show
from sextant.studies.cli import plain
from sextant.studies.metrics import count
from sextant.studies.tables import add, cut, grid, rendered, width, wrapped

#: What a part or a row of work is called where its key alone reads badly.
_NAMES = {
    "dense_layer": "dense layers", "moe_layer": "MoE layers", "mtp": "MTP", "mlp": "dense MLP",
    "dense_mlp": "dense MLP", "embedding_head": "embedding, head", "vision": "image encoder",
    "generation": "image generator", "engram": "Engram", "engram_tables": "Engram tables",
    "engram_gate": "Engram gates", "streams": "mHC streams", "hyper_connection": "mHC mappings",
    "exchange": "expert exchange", "mtp_projection": "MTP projection",
}  # fmt: skip
_WIDTH = 100
#: The rows of work that a token meets first stand first.
ROWS = (
    "vision", "engram", "attention", "dense_mlp", "experts", "exchange", "streams", "mtp", "embedding_head",
    "generation",
)  # fmt: skip


def name(key: str) -> str:
    """What a part, a piece or a row of work is called."""
    return _NAMES.get(key, key.replace("_", " "))


def card(found: Mapping[str, Any]) -> str:
    """The card of ``model_card.card`` in the width of a terminal."""
    title = f"{plain(found['name'])} ({plain(found['system'])})"
    if found["changed"]:
        title += ", changed: " + ", ".join(map(plain, found["changed"]))
    blocks = [
        "\n".join([*wrapped(title), _figures(found)]), _parameters(found), _memory(found), _work(found["work"]),
        _fields(found), _sources(found["source"]),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block)


def _figures(found: Mapping[str, Any]) -> str:
    """Published figures beside ours; ours alone where none is published; unconfirmed ones apart."""
    table = grid("", ">published", ">counted here", ">difference", "convention")
    shown = [row["quantity"] for row in found["published"]]
    for row in found["published"]:
        add(table, (row["label"], _figure(row, "figure"), *_ours(row), row["convention"]))
    for key, label in (("n_parameters", "parameters"), ("n_activated_parameters", "activated parameters")):
        if key not in shown:
            convention = "of one token, without the input embedding" if "activ" in key else "all, without MTP modules"
            add(table, (label, "", f"{found[key]:,}", "", convention))
    for row in found["unconfirmed"]:
        add(table, (row["label"], "", *_ours(row), f"unconfirmed, not published: {_figure(row, 'figure')}"))
    return rendered(table)


def _figure(row: Mapping[str, Any], key: str) -> str:
    return show(row[key], "bytes", 6) if "bytes" in row["quantity"] else count(row[key])


def _ours(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["ours"] is None:
        return "not counted", ""
    text = show(row["ours"], "bytes", 6) if "bytes" in row["quantity"] else f"{row['ours']:,}"
    return text, f"{100 * row['difference']:+.2f}%"


def _parameters(found: Mapping[str, Any]) -> str:
    """Two tables side by side: by part of the model and by piece of its layers."""
    sizes = found["parameters"]
    parts = grid("by part", ">params", ">share", ">active", ">share")
    for part, row in sizes["by_part"].items():
        # MTP modules stand outside the total that shares are of.
        share = "extra" if part == "mtp" else _share(row["share"])
        times = f" x{row['n']:g}" if row["n"] != 1 else ""
        add(parts, (name(part) + times, _short(row["parameters"]), share, *_active(row)))
    add(parts, ("all", _short(found["n_parameters"]), "100%", _short(found["n_activated_parameters"]), "100%"))
    if sizes["with_mtp"] != found["n_parameters"]:
        add(parts, ("with MTP", _short(sizes["with_mtp"]), "", "", ""))
    add(parts, ("with embedding", "", "", _short(sizes["activated_with_embedding"]), ""))
    pieces = grid("by piece", ">params", ">share", ">active", ">share")
    for piece, row in sorted(sizes["by_piece"].items(), key=lambda item: -item[1]["parameters"]):
        add(pieces, (name(piece), _short(row["parameters"]), _share(row["share"]), *_active(row)))
    return _beside(rendered(parts), rendered(pieces))


def _active(row: Mapping[str, Any]) -> tuple[str, str]:
    return (_short(row["activated"]), _share(row["activated_share"])) if row["activated"] else ("", "")


def _short(parameters: float) -> str:
    return prefixed(parameters, " KMBTQ")


def _share(share: float) -> str:
    percent = 100 * share
    return "<0.01%" if 0 < percent < 0.005 else f"{percent:.2f}%" if percent < 9.995 else f"{percent:.1f}%"


def _beside(left: str, right: str, gap: int = 3) -> str:
    """Two blocks of lines next to each other, or below each other where they do not fit."""
    a, b = left.splitlines(), right.splitlines()
    first = max(map(len, a))
    if first + gap + max(map(len, b)) > min(width(), _WIDTH):
        return f"{left}\n\n{right}"
    rows = max(len(a), len(b))
    a, b = [lines + [""] * (rows - len(lines)) for lines in (a, b)]
    return "\n".join(f"{x:{first + gap}}{y}".rstrip() for x, y in zip(a, b, strict=True))


def _memory(found: Mapping[str, Any]) -> str:
    memory = found["memory"]
    weights = memory["weights_bytes"]
    lines = [
        f"weights served: {show(weights['bf16'], 'bytes')} in BF16, {show(weights['fp8'], 'bytes')} with the layers in "
        "FP8, a scale per 128 x 128 block",
    ]
    for recipe, state in memory["training_state"].items():
        parts = ", ".join(f"{key} {value:g}" for key, value in state.items() if key != "bytes_per_parameter")
        n_bytes = state["bytes_per_parameter"] * found["parameters"]["with_mtp"]
        lines.append(f"training state, {recipe}: {show(n_bytes, 'bytes')}, {state['bytes_per_parameter']:g} B per "
                     f"parameter ({parts})")  # fmt: skip
    caches = [show(memory[key], "bytes") for key in ("kv_bytes_32k", "kv_bytes_128k")]
    kv = f"{memory['kv_bytes_per_token']:,} B per token"
    lines.append(f"KV cache, BF16: {kv}, {caches[0]} per request of 32,768 tokens, {caches[1]} of 131,072")
    return "\n".join(line for text in lines for line in wrapped(text))


def _work(work: Mapping[str, Any]) -> str:
    """FLOPs, HBM bytes and their ratio: a column per phase, a row for all and for each block."""
    phases = work["phases"]
    there = {block for phase in phases.values() for block in phase["blocks"]}
    rows = [row for row in ROWS if row in there] + sorted(there.difference(ROWS))
    table = grid("work per token", *(f">{phase['label']}" for phase in phases.values()))
    sections = (
        ("FLOP", "flops_per_token", lambda entry: prefixed(entry["flops_per_token"])),
        ("HBM bytes", "hbm_bytes_per_token", lambda entry: prefixed(entry["hbm_bytes_per_token"])),
        ("FLOP per byte", "flops_per_byte", _ratio),
    )
    for title, key, cell in sections:
        add(table, (title, *(cell(phase) for phase in phases.values())))
        for row in rows:
            blocks = [phase["blocks"].get(row) for phase in phases.values()]
            if any(block and block[key] for block in blocks):
                add(table, (f"  {_row(row, rows)}", *(cell(block) if block else "" for block in blocks)))
    return "\n".join([rendered(table), *wrapped(_about(work))])


def _row(row: str, rows: Sequence[str]) -> str:
    return "attention, router" if row == "attention" and "experts" in rows else name(row)


def prefixed(value: float, letters: str = " kMGTP") -> str:
    """A quantity in three digits with its SI prefix, "" for none: 4.6e10 -> "46.0 G"."""
    if not value:
        return ""
    power = min(5, max(0, int(math.log10(value / 0.9995) // 3)))
    scaled = f"{value / 1e3**power:#.3g}".rstrip(".")
    return f"{scaled} {letters[power]}".strip()


def _ratio(entry: Mapping[str, Any]) -> str:
    value = entry["flops_per_byte"]
    if not entry["hbm_bytes_per_token"]:
        return ""
    text = f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
    return text + ("*" if entry["side"] == "compute" else " ")


def _about(work: Mapping[str, Any]) -> str:
    drawn = {"image_understanding", "image_generation"}.intersection(work["phases"])
    images = " An image has 384 x 384 pixels and comes with 64 tokens of text." if drawn else ""
    if "image" in work:
        flops, moved = (show(work["image"][f"{key}_per_image"], key) for key in ("flops", "bytes"))
        images += f" Making one takes {flops} and {moved} of HBM traffic, two rows with guidance."
    causal, full = (show(work[f"training_flops_per_token_{kind}"], "flops") for kind in ("causal", "noncausal"))
    return (
        f"*: above {work['ridge_flops_per_byte']:.0f} FLOP/byte, the ridge of the {work['gpu'].upper()}, compute is "
        f"the limit, else memory. One device with the whole model in {work['format'].upper()}, "
        f"{work['context_tokens']:,} tokens per sequence, causal attention.{images} By the convention of publications "
        f"(6 FLOP per activated weight) training takes {causal} per token, {full} non-causal."
    )


def _fields(found: Mapping[str, Any]) -> str:
    """Fields as ``--set`` takes them."""
    unused = set(found["fields_unused"])
    words = [f"{path}={_value(value)}" for path, value in found["fields"].items() if path not in unused]
    return "\n".join(wrapped("fields: " + " ".join(words)))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_value, value))}]" if isinstance(value, list) else str(value)


def _sources(source: Mapping[str, str]) -> str:
    """One line per source: what of the model it gives, and as much of it as the terminal is wide."""
    given: dict[str, list[str]] = {}
    for path, text in source.items():
        given.setdefault(text, []).append(path.removeprefix("official.") or "dimensions")
    lines = [cut(plain(f"  {', '.join(paths)}: {text}"), width()) for text, paths in given.items()]
    return "\n".join(["sources", *lines])
