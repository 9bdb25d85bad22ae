"""Predictions beside what several GPUs of one host took: errors per family, from the fits of one GPU.

Every row is predicted by the laws that a simulation uses: collectives and exchanges by the block ``collective``, local
work by kernel cases, a pipeline by the event engine from its own stages' measured times. Where a law has nothing for a
row, the row is counted as unknown. Needs neither torch nor a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sextant.hwmodels import cluster as cluster_named
from sextant.hwmodels import device as device_named
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import with_sms
from sextant.simulator.pipeline import ChunkSeconds, simulate
from sextant.simulator.types import Cluster
from sextant.validate.fit import read_rows
from sextant.validate.fit_collective import even_all_to_all, medians, plain_case
from sextant.validate.node import layer_cases
from sextant.validate.node.layer_cases import SMALL, V3
from sextant.validate.prediction import predict
from sextant.validate.solver import Errors, errors
from sextant.validate.transfer import transferred

Row = Mapping[str, str]
#: Predicted and measured microseconds by what was timed; NaN where there is no prediction.
Pairs = list[tuple[str, float, float]]

#: The GPU whose kernels stand in, by ``transfer``, where the measured one has no fit of its own.
STAND_IN = "h200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Errors of one kind of row; ``n_unknown`` rows have no prediction."""

    family: str
    kind: str
    n_unknown: int
    errors: Errors | None


def node(device: str) -> Cluster:
    """One node of ``device`` at the clock of short runs; kernels without a fit of its own are transferred ones."""
    cluster = cluster_named(f"hgx-{device}")
    own, other = cluster.device, device_named(STAND_IN)
    kernels = {**transferred(other, own).kernels, **own.kernels} if own.name != other.name else own.kernels
    return replace(cluster, device=replace(own, kernels=kernels, clock_under_load=1.0))


def predicted_us(cases: Sequence[Mapping[str, Any]], cluster: Cluster) -> list[float]:
    """Microseconds of kernel cases, NaN where a case has no prediction."""
    names = sorted({name for case in cases for name in case})
    columns = {name: [str(case.get(name, "")) for case in cases] for name in names}
    return predict(columns, len(cases), cluster).us.tolist()


def collectives(rows: Sequence[Row], cluster: Cluster) -> Pairs:
    """By operation, variant, and whether latency or bandwidth rules (below or above 1 MiB)."""
    rows = medians(rows)
    found = predicted_us([plain_case(row) for row in rows], cluster)
    return [
        (
            f"{row['op']} {row['variant']}".strip()
            + (", small" if 2.0 * float(row["message_elements"]) < 2**20 else ", large"),
            us, float(row["us"]),
        )
        for row, us in zip(rows, found, strict=True)
    ]  # fmt: skip


def experts(rows: Sequence[Row], cluster: Cluster) -> Pairs:
    """Exchange, local part, and both one after the other."""
    exchanges = [even_all_to_all(float(row["n_gpus"]), float(row["busiest_bytes"])) for row in rows]
    moved = predicted_us(exchanges, cluster)
    local = predicted_us([_permutation(row) for row in rows], cluster)
    found: Pairs = []
    for row, exchange_us, local_us in zip(rows, moved, local, strict=True):
        kind = f"{row['op']} {row['copies']} {row['routing']}"
        found.append((f"{kind}: exchange", exchange_us, float(row["exchange_us"])))
        found.append((f"{row['op']}: rows ordered or added", local_us, float(row["permute_us"])))
        found.append((f"{kind}: both", exchange_us + local_us, float(row["us"])))
    return found


def _permutation(row: Row) -> dict[str, Any]:
    copies = float(row["top_k"]) if row["copies"] == "pair" else float(row["sent_rows"]) / float(row["n_tokens"])
    op = "permute" if row["op"] == "dispatch" else "unpermute"
    return {"op": op, "format": row["format"], "n_tokens": row["n_tokens"], "hidden": row["hidden"], "top_k": copies}


def beside(rows: Sequence[Row], cluster: Cluster) -> Pairs:
    """A product alone; and beside an exchange, on the SMs that its thread blocks leave (of NCCL's own choice of them
    nothing is known). The exchange beside a product is predicted as alone."""
    found: Pairs = []
    for row in rows:
        product = {"op": "gemm", "format": "bf16", **{name: row[name] for name in ("m", "n", "k")}}
        taken = float(row["max_ctas"])
        device = cluster.device
        left = replace(cluster, device=with_sms(device, device.n_sms - taken))
        alone = predicted_us([product], cluster)[0]
        found.append(("product alone", alone, float(row["gemm_us"])))
        slowed = predicted_us([product], left)[0] / alone if taken else float("nan")
        kind = f"product beside {row['call']}"
        found.append((f"{kind}, from its time alone", slowed * float(row["gemm_us"]), float(row["gemm_beside_us"])))
        found.append((f"{kind}, as if alone", float(row["gemm_us"]), float(row["gemm_beside_us"])))
        found.append(
            (f"{row['call']} beside product, as if alone", float(row["call_us"]), float(row["call_beside_us"]))
        )
    return found


def pipeline(rows: Sequence[Row], cluster: Cluster) -> Pairs:
    """The step that the event engine makes of the stages' times alone; the message; a stage from its kernels, once for
    all rows that measured it in one run."""
    found: Pairs = []
    for row in rows:
        forward, backward = (tuple(float(us) for us in row[f"{name}_us"].split()) for name in ("forward", "backward"))
        chunks = ChunkSeconds(forward=forward, backward_input=backward, backward_weight=(0.0,) * len(backward), pair={})
        n, m = int(row["n_gpus"]), int(row["n_micro_batches"])
        # microseconds in, microseconds out: the engine only adds
        step_us = simulate(row["schedule"], chunks, n, m, send_s=float(row["send_us"])).step_s
        found.append((f"{row['schedule']} step, from its stages", step_us, float(row["us"])))
        message = {
            "op": "send_recv", "format": "bf16", "n_gpus": 2,
            "message_elements": float(row["n_tokens"]) * float(row["hidden"]),
        }  # fmt: skip
        found.append(("message to the next stage", predicted_us([message], cluster)[0], float(row["send_us"])))
        found += _stages(row, cluster)
    return list(dict.fromkeys(found))


def _stages(row: Row, cluster: Cluster) -> Pairs:
    """Forward and backward of every stage, as the sum of its kernels one after the other."""
    width = V3 if row["hidden"] == str(V3.hidden) else SMALL
    found: Pairs = []
    for name, kernels in (("forward", layer_cases.forward), ("backward", layer_cases.backward)):
        sum_us = sum(predicted_us(kernels(width, float(row["n_tokens"])), cluster))
        for us in row[f"{name}_us"].split():
            found.append((f"{name} of a stage, from its kernels", float(row["n_layers"]) * sum_us, float(us)))
    return found


def tensor_parallel(rows: Sequence[Row], cluster: Cluster) -> Pairs:
    """The sum alone, the local part of a forward pass, and the whole from its measured and from its predicted parts."""
    found: Pairs = []
    for row in rows:
        reduce_us, *local = predicted_us([_reduction(row), *_local(row)], cluster)
        measured_us, n = float(row["us"]), float(row["n_reduces"])
        found.append(("all_reduce", reduce_us, float(row["reduce_us"])))
        parts_us = float(row["local_us"]) + n * float(row["reduce_us"])
        found.append((f"{row['pass']}, from its measured parts", parts_us, measured_us))
        if row["pass"] == "forward":
            found.append(("local part of a forward pass", sum(local), float(row["local_us"])))
            found.append(("forward, predicted", sum(local) + n * reduce_us, measured_us))
    return found


def _reduction(row: Row) -> dict[str, Any]:
    elements = float(row["n_tokens"]) * float(row["hidden"])
    return {"op": "all_reduce", "format": row["format"], "n_gpus": row["n_gpus"], "message_elements": elements}


def _local(row: Row) -> list[dict[str, Any]]:
    """Two products, and between them SwiGLU in two kernels: read and write, then read two and write."""
    n, part = row["n_tokens"], float(row["ffn"]) / float(row["n_gpus"])
    return [
        {"op": "gemm", "format": "bf16", "m": n, "n": 2.0 * part, "k": row["hidden"]},
        {"op": "copy", "bytes": 2.0 * float(n) * part},
        {"op": "add", "format": "bf16", "n_tokens": n, "hidden": part},
        {"op": "gemm", "format": "bf16", "m": n, "n": row["hidden"], "k": part},
    ]


def host_memory(rows: Sequence[Row], cluster: Cluster) -> Pairs:
    """By operation and by how many GPUs are at it: the prediction knows one of them."""
    cases = [{**row, "tier": "host", "format": "bf16", "variant": "", "library": ""} for row in rows]
    found = predicted_us(cases, cluster)
    return [
        (f"{row['op']}, {row['n_active']} of {row['n_gpus']} GPUs at once", us, float(row["us"]))
        for row, us in zip(rows, found, strict=True)
    ]


FAMILIES: Mapping[str, Callable[[Sequence[Row], Cluster], Pairs]] = {
    "collectives": collectives, "experts": experts, "beside": beside, "pipeline": pipeline,
    "tensor_parallel": tensor_parallel, "host_memory": host_memory,
}  # fmt: skip


def judged(folder: Path | str, device: str) -> list[Judged]:
    """The errors of every kind in the files of ``folder`` (as ``node.run`` writes them); rows with an error are left
    out. InputError where there is none of the files, where one lacks a column or holds no numbers, or no such device.
    """
    cluster, found = node(device), []
    for family, pairs_of in FAMILIES.items():
        path = Path(folder) / f"{family}.csv"
        if not path.exists():
            continue
        kinds: dict[str, Pairs] = {}
        try:
            rows = [row for row in read_rows(path) if not row["error"] and row["us" if "us" in row else "gemm_us"]]
            for pair in pairs_of(rows, cluster):
                kinds.setdefault(pair[0], []).append(pair)
        except (KeyError, ValueError) as error:
            what = f"the column {error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}: {what}; give the file that 'sextant measure ranks' wrote") from None
        found += [_summary(family, kind, pairs) for kind, pairs in kinds.items()]
    if not found:
        raise InputError(f"{folder}: no measured rows; give a folder that 'sextant measure ranks' wrote")
    return found


def _summary(family: str, kind: str, pairs: Pairs) -> Judged:
    predicted, measured = np.asarray([pair[1:] for pair in pairs]).T
    known = np.isfinite(predicted)
    summed = errors(predicted[known] * 1e-6, measured[known] * 1e-6) if known.any() else None
    return Judged(family=family, kind=kind, n_unknown=int((~known).sum()), errors=summed)


def table(found: Sequence[Judged]) -> str:
    """A line per kind: rows, errors as shares of the measured time, the range of measured over predicted."""
    names = " ".join(f"{name:>8s}" for name in ("MAPE", "median", "p95", "bias"))
    lines = [f"{'family':16s} {'what':48s} {'rows':>5s} {names}  measured / predicted"]
    for row in found:
        e = row.errors
        if e is None:
            lines.append(f"{row.family:16s} {row.kind:48s} {row.n_unknown:5d} not predicted")
            continue
        shares = " ".join(f"{100 * value:7.1f}%" for value in (e.mape, e.median, e.p95, e.bias))
        beyond = f", {row.n_unknown} not predicted" if row.n_unknown else ""
        lines.append(f"{row.family:16s} {row.kind:48s} {e.n_rows:5d} {shares}  {e.low:.2f} to {e.high:.2f}{beyond}")
    return "\n".join(lines)


def as_json(found: Sequence[Judged]) -> list[dict[str, Any]]:
    """The same as records."""
    return [asdict(row) for row in found]
