"""Runs functions on several ranks, processes of this machine that talk through gloo.

All functions of one number of ranks share one start: to import torch in each process costs more than to run them.
"""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

Case = Callable[[int, int], None]  # of the rank and the number of ranks; it raises where something is wrong


def _work(rank: int, world: int, folder: Path, cases: dict[str, Case]) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=limit
    )
    failures = {}
    for name, case in cases.items():
        torch.manual_seed(0)  # the same full tensors on every rank
        try:
            case(rank, world)
        except Exception:
            failures[name] = traceback.format_exc()
            break  # the other ranks may have gone another way: what comes next would wait for them
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(failures))
    dist.barrier()
    dist.destroy_process_group()


def run(world: int, folder: Path, cases: dict[str, Case]) -> dict[str, str]:
    """The tracebacks of the cases that failed on some rank."""
    # A server that has imported torch once forks the ranks; a fork of this process would inherit its threads' locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "ste_ops", "numpy"]
    )
    ranks = [context.Process(target=_work, args=(rank, world, folder, cases)) for rank in range(world)]
    for process in ranks:
        process.start()
    failures: dict[str, str] = {}
    for rank, process in enumerate(ranks):
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
        report = folder / f"{rank}.pickle"
        found = pickle.loads(report.read_bytes()) if report.exists() else {}
        for name, text in found.items():
            failures[name] = failures.get(name, "") + f"\nrank {rank} of {world}:\n{text}"
        if not report.exists():
            failures[""] = failures.get("", "") + f"\nrank {rank} of {world} ended with {process.exitcode}"
    return failures
