"""The rates that DeepEP quotes for exchanges of experts, and how to get seconds from them.

A rate is *logical*: bytes that a GPU has to send, over the seconds of the transfer, with what never leaves the GPU or
the node counted too.

    normal, one node        "NVLink bottleneck": one copy per distinct GPU of a token's experts, the own one included
    normal, several nodes   "RDMA bottleneck": one copy per distinct node, the own one included
    low latency             one message per (token, expert), those of the own GPU included

So 58 GB/s of RDMA over four nodes are 58 x 3/4 = 43.5 GB/s through the network card of 50. A dispatched row is FP8
with an FP32 scale per 128 values, and in low latency 16 bytes of header; a combined row is BF16. The wait in which GPUs
agree on sizes is not part of the seconds. In the benchmark a token goes to at most four nodes, those of its best
experts; in low latency and within a node it is not limited (deepseek-ai/DeepEP, docs/legacy.md and tests/).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import BYTES
from sextant.simulator.kernels.routing import destinations
from sextant.validate.prediction import operators
from sextant.validate.solver import Row, columns

#: What a message of low latency carries beside the row.
_HEADER_BYTES = {"ep_dispatch": 16.0, "ep_combine": 0.0}


def logical_bytes(row: Row) -> float:
    """Bytes that the quoted rate of one exchange counts, for a row of a kernel-case file."""
    op, mode = str(row["op"]), str(row.get("mode", "normal"))
    c = columns([row], op)
    n_tokens, hidden, top_k = (float(c[name][0]) for name in ("n_tokens", "hidden", "top_k"))
    token_bytes = hidden * BYTES["fp8_block" if op == "ep_dispatch" else "bf16"]
    if mode.startswith("low_latency"):
        return n_tokens * top_k * (token_bytes + _HEADER_BYTES[op])
    nodes, gpus = destinations(operators.exchange(op, c, mode).shape)
    inside = float(c["n_gpus"][0]) <= operators.PER_NODE
    return n_tokens * token_bytes * float(np.squeeze(gpus if inside else nodes))


def published_row(case: Mapping[str, str | float], nvlink_bytes_per_s: float, **rates: float) -> dict[str, str | float]:
    """A published case as a measured row over such an NVLink: ``bytes_per_s`` or ``seconds`` become ``us``."""
    seconds = rates["seconds"] if "seconds" in rates else logical_bytes(case) / rates["bytes_per_s"]
    n_nodes = np.ceil(float(case["n_gpus"]) / operators.PER_NODE)
    return {**case, "n_nodes": n_nodes, "nvlink_bytes_per_s": nvlink_bytes_per_s, "us": 1e6 * seconds}
