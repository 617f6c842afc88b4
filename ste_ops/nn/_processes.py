"""Where several processes train one model: which of them would find another scale, or lose the one that they found."""

from __future__ import annotations

from typing import Any, NoReturn

import torch.distributed as dist
from torch import Tensor, nn

from ste_ops._torch import fsdp_manages

_MEND = "run ste_ops.nn.calibrate(model, batches) on every process before, or give scale="


def number_of_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def forgets_parameters(module: nn.Module) -> bool:
    """Whether what a forward writes into the parameters of the module is lost after it."""
    return fsdp_manages(module)


def keeps_whole(x: Tensor) -> bool:
    """Whether x is a DTensor over all processes, whose statistics are the same on each."""
    mesh = getattr(x, "device_mesh", None)
    return mesh is not None and mesh.size() == number_of_processes()


def refuse_to_forget(module: nn.Module, why: str) -> NoReturn:
    raise RuntimeError(
        f"{type(module).__name__}: {why}, and fully_shard keeps nothing that a forward writes into a parameter; {_MEND}"
    )


def refuse_to_differ(module: Any, whole: bool) -> bool:
    """Raises where the scale is not set and what this forward would find is lost, or is another on every process.

    Nothing is sent between the processes: one that runs alone, as the first one's evaluation does, would wait for ever.
    A layer's weights are the same on each, and so is what is found of them.
    """
    count = number_of_processes()
    forgets = forgets_parameters(module) and isinstance(module.scale, nn.Parameter)
    if not forgets and (count == 1 or module._of_weight or whole):
        return False
    flag = module._is_set()
    if type(flag) is not Tensor or flag.is_meta or not module._readable(module.scale):
        return False
    # The host waits for CUDA here, once: it goes on with a scale that is set or not at all.
    if bool(flag):
        module._settled = True
        return True
    if forgets:
        refuse_to_forget(module, "no scale is set yet")
    raise RuntimeError(
        f"{type(module).__name__}: no scale is set yet, and each of the {count} processes would find its own; {_MEND}"
    )
