"""Sizes of a model by name, each a function of the model and the load: what ``solve`` may hold equal in a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sextant.simulator.types import Num
from sextant.workloads import parameters

#: Bytes of a weight in BF16.
_WEIGHT_BYTES = 2.0


def sparse_parameters(model) -> Num:
    """Parameters that a token leaves unused, experts and Engram rows: all less the activated, neither with vocabulary.

    P_sparse of the Engram paper (arXiv:2601.07372 s3.1). Embedding and head count on both sides, so they cancel.
    """
    return parameters.n_parameters(model) - parameters.activated_parameters(model, embedding=True)


def weight_bytes_per_token(model) -> Num:
    """Bytes of BF16 weights that a decode step of one token reads: activated parameters, without the embedding."""
    return _WEIGHT_BYTES * parameters.activated_parameters(model)


#: Of the load only ``context_tokens`` may matter to a size: points that differ in nothing else are solved once.
#: MTP modules count nowhere.
SIZES: Mapping[str, Callable[..., Num]] = {
    "n_parameters": lambda model, load: parameters.n_parameters(model),
    "n_activated_parameters": lambda model, load: parameters.activated_parameters(model),
    "n_activated_parameters_with_embedding": lambda model, load: parameters.activated_parameters(model, embedding=True),
    "n_sparse_parameters": lambda model, load: sparse_parameters(model),
    "kv_bytes_per_token": lambda model, load: parameters.kv_bytes_per_token(model),
    "weight_bytes_per_token": lambda model, load: weight_bytes_per_token(model),
    "training_flops_per_token": lambda model, load: parameters.training_flops_per_token(model, load.context_tokens),
}
