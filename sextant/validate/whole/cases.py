"""The whole models that are run, from ``cases.yaml``: each a model, a load, and what runs otherwise than operators say.

Read by what measures (torch) and by what predicts; needs neither torch nor a validation library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from sextant.simulator.errors import InputError, Problem, nearest
from sextant.simulator.types import Plan, Step
from sextant.validate.cases import CASE_COLUMNS
from sextant.workloads import blocks
from sextant.workloads.models import model as model_of
from sextant.workloads.ops.optimizer import optimizer_step
from sextant.workloads.transformer import Transformer, build, shape_of

FILE = Path(__file__).parent / "cases.yaml"
PHASES = ("prefill", "decode", "training", "vision")
#: Ways of fetching that the code of a pass has: on demand by all SMs, ahead by eight programs.
PREFETCHES = ("none", "few_sms")
_PARTS = {"name", "model", "load", "plan", "differs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that the implementation does otherwise: operators of the step that do not run (``instead_of``), and a
    kernel case that runs ``count`` times per pass. Neither: a note."""

    what: str
    instead_of: tuple[str, ...] = ()
    case: Mapping[str, str | int] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCase:
    """A model and what it processes. ``batch`` are sequences (of training: of the one micro-batch) or images."""

    name: str
    model: Transformer
    phase: str
    batch: int
    context_tokens: int
    plan: Plan
    differs: tuple[Difference, ...] = ()

    @property
    def prefetch(self) -> bool:
        """Whether Engram rows are fetched ahead."""
        return self.plan.prefetch != "none"

    @property
    def seq(self) -> int:
        """New tokens per sequence; patches per image."""
        if self.phase == "vision":
            assert self.model.vision is not None, "read() refuses a model without an encoder"
            return int(next(iter(self.model.vision.encoders.values())).side ** 2)
        return 1 if self.phase == "decode" else self.context_tokens

    @property
    def context(self) -> int:
        """Tokens that a new token may see."""
        return self.context_tokens if self.phase != "vision" else self.seq


def steps(case: WholeCase) -> tuple[Step, ...]:
    """The operators that the case stands for, before ``differs``: one pass; of training also the optimizer's."""
    batch = float(case.batch)
    if case.phase == "vision":
        shape = shape_of(case.model, case.plan, "prefill", batch, 1.0, 1.0, n_images=1.0)
        ops = tuple(blocks.vision(case.model, shape))
        return (Step(phase="prefill", ops=ops, n_tokens=batch * case.seq, layers={"vision": 1.0}),)
    shape = shape_of(case.model, case.plan, case.phase, batch, float(case.seq), float(case.context))
    first = build(case.model, shape, case.phase)
    if case.phase != "training":
        return (first,)
    return (first, optimizer_step(case.model, case.plan, first.layers, 8.0))


def read(path: Path = FILE) -> tuple[WholeCase, ...]:
    """All cases of a file; InputError with everything that is wrong."""
    with path.open(encoding="utf-8") as file:
        entries = yaml.safe_load(file)
    if not isinstance(entries, list):
        raise InputError(Problem(message="a list of cases is needed", path=str(path)))
    problems: list[Problem] = []
    found: dict[str, WholeCase] = {}
    for i, entry in enumerate(entries):
        try:
            case = _case(entry)
            if case.name in found:
                raise InputError(f"name: {case.name!r} stands there twice; give another")
            found[case.name] = case
        except InputError as error:
            problems += [
                Problem(message=p.message, path=str(path), key=f"cases[{i}]" + (f".{p.key}" if p.key else ""))
                for p in error.problems
            ]
    if problems:
        raise InputError(*problems)
    return tuple(found.values())


def chosen(names: Sequence[str], path: Path = FILE) -> tuple[WholeCase, ...]:
    """The named cases in the file's order, all where none is named; a name may end in ``*``."""
    every = read(path)
    for name in names:
        if not any(_matches(case.name, name) for case in every):
            raise InputError(f"only: unknown case {name!r}; {nearest(name, [case.name for case in every])}")
    return tuple(case for case in every if not names or any(_matches(case.name, name) for name in names))


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _case(entry: Any) -> WholeCase:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError("name: a case is a mapping with a name")
    for key in entry:
        if key not in _PARTS:
            raise InputError(f"{key}: unknown key; {nearest(str(key), _PARTS)}")
    load = entry.get("load") or {}
    phase = load.get("phase")
    if phase not in PHASES:
        raise InputError(f"load.phase: expected one of {', '.join(PHASES)}, got {phase!r}")
    model = _model(entry.get("model") or {})
    if phase == "vision" and model.vision is None:
        raise InputError(f"load.phase: {model.name} has no image encoder; choose another phase")
    return WholeCase(
        name=entry["name"], model=model, phase=phase, batch=_count("load.batch", load.get("batch")),
        context_tokens=_count("load.context_tokens", load.get("context_tokens", 0 if phase == "vision" else None), 0),
        plan=_plan(entry.get("plan") or {}), differs=tuple(_difference(each) for each in entry.get("differs") or ()),
    )  # fmt: skip


def _count(key: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{key}: a whole number of at least {least} is needed, got {value!r}")
    return value


def _model(changes: Mapping[str, Any]) -> Transformer:
    base = model_of(str(changes.get("base", "")))
    known = {each.name for each in fields(Transformer)}
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key == "base":
            continue
        if key not in known:
            raise InputError(f"model.{key}: unknown field; {nearest(key, known)}")
        if isinstance(value, list):
            values[key] = tuple(float(each) for each in value)
        else:
            values[key] = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return replace(base, **values)


def _plan(values: Mapping[str, Any]) -> Plan:
    unknown = set(values) - {"placement", "prefetch", "recompute"}
    if unknown:
        raise InputError(f"plan.{min(unknown)}: unknown key; placement, prefetch and recompute are what a case may say")
    prefetch, placement = str(values.get("prefetch", "none")), dict(values.get("placement") or {})
    if prefetch not in PREFETCHES:
        raise InputError(f"plan.prefetch: expected one of {', '.join(PREFETCHES)}, got {prefetch!r}")
    return Plan(prefetch=prefetch, placement=placement, recompute=tuple(values.get("recompute") or ()))


def _difference(entry: Any) -> Difference:
    if not isinstance(entry, dict) or not entry.get("what"):
        raise InputError("differs: an entry says what differs")
    unknown = set(entry) - {"what", "instead_of", "case", "count"}
    if unknown:
        raise InputError(f"differs.{min(unknown)}: unknown key; what, instead_of, case and count are known")
    case = dict(entry.get("case") or {})
    for column in case:
        if column not in CASE_COLUMNS:
            raise InputError(f"differs.case.{column}: unknown column; {nearest(column, CASE_COLUMNS)}")
    if bool(case) != bool(entry.get("count")):
        raise InputError("differs.count: a case needs a count, and a count a case")
    return Difference(
        what=str(entry["what"]), instead_of=tuple(entry.get("instead_of") or ()), case=case,
        count=_count("differs.count", entry.get("count", 0), 0),
    )  # fmt: skip
