"""Other shapes of a model at equal parameters: deeper or shallower, finer or coarser experts, more or less in tables.

What is held equal are the model's P_tot and P_act (Engram paper s3.1: neither counts embedding and head). The width of
an expert follows from P_act, the number of experts and the rows of tables from P_tot.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.types import Num
from sextant.workloads import parameters
from sextant.workloads.allocation import allocated, budget

#: Widths of experts are multiples of this, as tiles of products are.
WIDTH_STEP = 32.0
#: The first layer that an Engram module stands in front of, whatever the depth: something must hide its fetch.
_FIRST_LAYER = 2.0


def reshaped(model, like):
    """``model`` with expert width, experts and rows chosen so that it has P_tot and P_act of ``like``, shape () or
    (n_points,) each.

    Modules stand where those of ``like`` do, in proportion to the depth. ``model.engram_fraction`` says which share of
    its sparse parameters tables hold (None as 0: no tables, no modules). InputError as ``allocated``.
    """
    fraction = model.engram_fraction if model.engram_fraction is not None else 0.0
    depth = model.num_hidden_layers / like.num_hidden_layers
    layers = () if np.all(np.asarray(fraction) == 0) else _placed(like.engram_layers, depth, model.num_hidden_layers)
    placed = replace(model, engram_layers=layers, engram_fraction=None)
    shaped = replace(placed, moe_intermediate_size=expert_width(placed, parameters.activated_backbone_parameters(like)))
    own = budget(shaped)
    total = parameters.backbone_parameters(like)
    equal = replace(own, total=total, experts=(total - own.rest) / own.expert)
    if not layers:  # the share of tables is 0, and there are none to ask for it
        return replace(shaped, n_routed_experts=np.floor(equal.experts)[()])
    return allocated(replace(shaped, engram_fraction=fraction), equal)


def expert_width(model, activated: Num) -> Num:
    """The width of an expert, a multiple of ``WIDTH_STEP``, with which a token uses most nearly ``activated``
    parameters (its routers' among them, of as many experts as ``model`` has)."""
    at = [
        parameters.activated_backbone_parameters(replace(model, moe_intermediate_size=step * WIDTH_STEP))
        for step in (1.0, 2.0)
    ]
    if np.any(np.asarray(at[1] - at[0]) <= 0):
        raise InputError(f"no layer of {model.name} has experts; give it more layers")
    steps = 1.0 + (activated - at[0]) / (at[1] - at[0])
    return (WIDTH_STEP * np.round(steps))[()]


def _placed(layers: tuple[float, ...], depth: float, n_layers: float) -> tuple[float, ...]:
    """Where modules stand in a model ``depth`` times as deep: none in front of the first layer that was not, no two in
    the same place. InputError where they do not fit into ``n_layers``."""
    placed: list[float] = []
    for layer in sorted(layers):
        at = layer if layer <= _FIRST_LAYER else max(float(np.round(layer * depth)), _FIRST_LAYER)
        placed.append(max(at, placed[-1] + 1.0) if placed else at)
    if placed and placed[-1] > n_layers:
        raise InputError(f"{len(placed)} Engram modules do not fit into {n_layers:g} layers")
    return tuple(placed)
