"""Runs functions on several ranks, processes of this machine that talk through gloo.

All functions of one number of ranks share one start: to import torch in each process costs more than to run them.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import pickle
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

Case = Callable[[int, int], None]  # of the rank and the number of ranks; it raises where something is wrong


def _work(rank: int, world: int, folder: Path, cases: dict[str, Case]) -> None:
    faulthandler.enable()  # a signal shows where each thread was
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
    """The tracebacks of the cases that failed on some rank.

    Where a signal ends a rank, all start once more and that start counts: among hundreds of starts one rank died of a
    broken heap, for which valgrind and AddressSanitizer find no cause of ours in the same cases.
    """
    failures, signals = _start(world, folder, cases)
    if signals:
        warnings.warn(f"signals {signals} ended ranks, which start once more: {failures}", stacklevel=2)
        again = folder / "again"
        again.mkdir()
        failures, _ = _start(world, again, cases)
    return failures


def _start(world: int, folder: Path, cases: dict[str, Case]) -> tuple[dict[str, str], list[int]]:
    """The tracebacks by case, and the signals that ended ranks."""
    # A server that has imported torch once forks the ranks; a fork of this process would inherit its threads' locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "ste_ops", "numpy"]
    )
    ranks = [context.Process(target=_work, args=(rank, world, folder, cases)) for rank in range(world)]
    for process in ranks:
        process.start()
    failures: dict[str, str] = {}
    signals: list[int] = []
    for rank, process in enumerate(ranks):
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
        elif process.exitcode is not None and process.exitcode < 0:
            signals.append(-process.exitcode)
        report = folder / f"{rank}.pickle"
        found = pickle.loads(report.read_bytes()) if report.exists() else {}
        for name, text in found.items():
            failures[name] = failures.get(name, "") + f"\nrank {rank} of {world}:\n{text}"
        if not report.exists():
            failures[""] = failures.get("", "") + f"\nrank {rank} of {world} ended with {process.exitcode}"
    return failures, signals
