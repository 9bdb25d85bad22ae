"""An image from a prompt: the passes that an image generator runs, each a step of its own and how often it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.types import Load, Num, Plan, Step
from sextant.workloads.blocks import Shape
from sextant.workloads.ops.memory import Place
from sextant.workloads.transformer import Transformer, build, generator_of, image_rows, shape_of

#: The context of an autoregressive image grows with every token; this many contexts stand for all of them.
_CONTEXTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One kind of pass: ``prompt``, ``sampling`` or ``pixels``; ``repeats`` of its step make a batch of images."""

    name: str
    step: Step
    repeats: Num


def passes(model: Transformer, load: Load, plan: Plan) -> tuple[Pass, ...]:
    """All passes of a batch of ``load.batch`` images of one data-parallel rank, before ``shard`` divides them.

    Autoregressive: the prompt once, one token per sampling step on a growing context (midpoints of equal stretches
    stand for it), the decoder once. Flow: every sampling step runs prompt and image tokens, as the published code does
    (its cache of the prompt stays empty), then the decoder. InputError where the model makes no images.
    """
    generator, sampling = generator_of(model), model.step(load, plan)
    steps = n_steps(model, load)
    found: list[Pass] = []
    if generator.kind == "autoregressive":
        rows = image_rows(load)
        prompt = shape_of(model, plan, "prefill", rows, load.context_tokens, load.context_tokens)
        found.append(Pass(name="prompt", step=_prompt(model, prompt), repeats=1.0))
        for i in range(_CONTEXTS):
            context = load.context_tokens + steps * (i + 0.5) / _CONTEXTS
            shape = shape_of(model, plan, "decode", rows, 1.0, context)
            found.append(Pass(name="sampling", step=build(model, shape, load.phase), repeats=steps / _CONTEXTS))
    else:
        found.append(Pass(name="sampling", step=sampling, repeats=steps))
    place = Place(part="pixels", block="generation")
    pixels = tuple(generator.decode_operators(place, load.batch))
    step = Step(phase=load.phase, ops=pixels, n_tokens=0.0 * load.batch, layers={"pixels": 1.0})
    return (*found, Pass(name="pixels", step=step, repeats=1.0))


def n_steps(model: Transformer, load: Load) -> Num:
    """Sampling steps of an image: ``load.n_steps``, or the published number where that is 0."""
    return np.where(np.asarray(load.n_steps) > 0, load.n_steps, generator_of(model).n_steps)[()]


def _prompt(model: Transformer, shape: Shape) -> Step:
    """The prompt fills the cache; the image head reads its last token, which the first sampling step counts."""
    step = build(model, shape, "prefill")
    layers = {part: n for part, n in step.layers.items() if part != "head"}
    return replace(step, ops=tuple(op for op in step.ops if op.part != "head"), layers=layers)
