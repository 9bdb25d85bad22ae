"""Where the time of a step goes: its operators by block, what of the messages is exposed, and what waits; adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sextant.simulator.types import Result

#: Pieces of a layer as a reader calls them; others keep their names.
_BLOCKS = {"mlp": "feed-forward", "streams": "residual streams", "vision": "image encoder", "generation": "generator"}
_PASSES = ("forward", "backward_input", "backward_weight")
_MESSAGES = ("collective", "expert_exchange")
#: What a step spends beside its operators, in the order of the table; absent in phases that have no such thing.
_BESIDE = {
    "exposed_comm_s": "exposed messages", "exposed_fetch_s": "exposed fetches from host memory", "bubble_s": "bubble",
    "optimizer_s": "optimizer",
}  # fmt: skip
REST = "slower beside messages, uneven ranks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Seconds of a step: all of a part's, and those of each pass where it is made of operators."""

    name: str
    seconds: float
    passes: tuple[float, ...] = ()


def parts(found: Result) -> list[Part]:
    """The parts of the first point's step, the largest operators first; their seconds add up to the step.

    Operators are the mean over the ranks of a pipeline, at the speed they have alone. What the step takes beyond them,
    its exposed messages, its bubble and its optimizer is the last part: operators that run slower beside messages, and
    ranks with more to do than the mean. Empty where the step has no operators.
    """
    if not found.breakdown:
        return []
    blocks: dict[str, list[float]] = {}
    for row in found.breakdown.values():
        if row["stream"] != "compute" or row["kind"] in _MESSAGES:
            continue
        name = _BLOCKS.get(str(row["block"]), str(row["block"]).replace("_", " "))
        passes = blocks.setdefault(name, [0.0] * len(_PASSES))
        phase = str(row["phase"])
        passes[_PASSES.index(phase) if phase in _PASSES else 0] += _seconds(row)
    made = [Part(name=name, seconds=sum(each), passes=tuple(each)) for name, each in blocks.items()]
    made.sort(key=lambda part: -part.seconds)
    columns = {name: float(values[0]) for name, values in found.columns.items()}
    made += [Part(name=text, seconds=columns[name]) for name, text in _BESIDE.items() if columns.get(name)]
    rest = columns["step_time_s"] - sum(part.seconds for part in made)
    # What rounding leaves of a step that is explained is nothing.
    return [*made, Part(name=REST, seconds=rest)] if abs(rest) > 1e-9 * columns["step_time_s"] else made


def messages_s(found: Result) -> float:
    """Seconds of all messages of the first point's step, exposed or not, as the mean rank sends them."""
    return sum(_seconds(row) for row in found.breakdown.values() if row["kind"] in _MESSAGES)


def _seconds(row: Mapping[str, object]) -> float:
    return float(row["seconds"])  # type: ignore[arg-type]
