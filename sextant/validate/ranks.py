"""Several processes that measure together, one GPU each: collectives through torch.distributed (nccl; gloo on the CPU).

All processes go through the same cases in step; the first one writes the file. Where one fails alone, the others wait
for the library's time limit and the run ends.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIME_LIMIT = timedelta(seconds=120)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def agreed(value: Any) -> Any:
    """The first process's value, in all processes."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _rank(rank: int, options: argparse.Namespace, arguments: Sequence[str], port: int) -> None:
    from sextant.validate import measure

    cuda = measure.find_target(options.device).cuda
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=options.ranks, timeout=TIME_LIMIT)
    try:
        if rank == 0:
            status = measure.measure(options, arguments, agreed=agreed)
        else:
            with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
                options.out, options.retry_failed = Path(folder) / "rows.csv", False
                status = measure.measure(options, arguments, agreed=agreed)
    finally:
        dist.destroy_process_group()
    if status:
        raise SystemExit(status)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Start ``options.ranks`` processes; exit status 0, or 1 where one of them failed."""
    try:
        torch.multiprocessing.spawn(_rank, (options, arguments, _free_port()), nprocs=options.ranks)
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
        raise ValueError(f"ranks: a process ended early ({str(error).splitlines()[-1]})") from error
    return 0
