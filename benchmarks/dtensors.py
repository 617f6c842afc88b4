"""Clipping many small DTensors against torch.nn.utils, on one rank and on two that talk through gloo."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_

import ste_ops
from benchmarks.measure import Row

COUNT = 291  # the parameters of a 24-layer transformer under FSDP2
NEVER = 1e9
CLIPS: dict[str, Callable[[list[Tensor], float], object]] = {
    "ours": ste_ops.clip_grad_norm_,
    "torch's": torch_clip_grad_norm_,
}


def _sharded(rank: int, world: int, folder: str) -> list[Tensor]:
    """Parameters with gradients, once this process is a rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    parameters: list[Tensor] = []
    for _ in range(COUNT):
        parameters.append(torch.nn.Parameter(DTensor.from_local(torch.zeros(64), mesh, [Shard(0)], run_check=False)))
        parameters[-1].grad = DTensor.from_local(torch.ones(64), mesh, [Shard(0)], run_check=False)
    return parameters


def _follow(calls: Connection, rank: int, world: int, folder: str) -> None:
    """What another rank does: the call that the first one is about to make."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    parameters = _sharded(rank, world, folder)
    while name := calls.recv_bytes().decode():
        CLIPS[name](parameters, NEVER)
    dist.destroy_process_group()


@contextlib.contextmanager
def _ranks(world: int) -> Iterator[Callable[[str], object]]:
    """Calls the clip of a name on every rank."""
    import torch.distributed as dist

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe() for _ in range(1, world)]
        others = [
            context.Process(target=_follow, args=(end, rank, world, folder))
            for rank, (_, end) in enumerate(ends, start=1)
        ]
        for other in others:
            other.start()
        parameters = _sharded(0, world, folder)

        def call(name: str) -> object:
            for own, _ in ends:
                own.send_bytes(name.encode())
            return CLIPS[name](parameters, NEVER)

        yield call
        for own, _ in ends:
            own.send_bytes(b"")
        dist.destroy_process_group()
        for other in others:
            other.join()


def rows(quick: bool) -> Iterator[Row]:
    for world in (1, 2):
        with _ranks(world) as call:
            yield Row(
                f"clip_grad_norm_, {COUNT} DTensors, {world} rank{'s' * (world > 1)}",
                "torch.nn.utils",
                lambda: call("ours"),
                lambda: call("torch's"),
                1.2,
                at_most=True,
                rounds=5 if quick else 31,
            )
