"""Where the scales of quantizers lie once the weight of their layer is a `DTensor`: tensor parallel layers.

`torch.distributed.tensor.parallel` walks over the modules of a layer, and shards the parameters of each as if it were
the linear one itself: of a scale one rank would get nothing, and `RowwiseParallel` asks a quantizer for its weight. So
the walk over a layer ends where it was turned into a distributed one on the way, and the quantizers follow its weight.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ste_ops._dtensor import is_dtensor
from ste_ops.nn._host import HostSide

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


def became_distributed(layer: nn.Module, weight: Tensor | None) -> bool:
    """Whether the weight was a plain tensor before, and is a DTensor now that is one in the forward too."""
    now = layer._parameters.get("weight")
    return now is not weight and is_dtensor(now) and not is_dtensor(weight) and not _is_fully_sharded(layer)


def _is_fully_sharded(layer: nn.Module) -> bool:
    """Whether it is one of `fully_shard`, which gives the forward plain tensors and looks after all parameters."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(layer, getattr(module, "FSDPModule", ()))


def distribute_quantizers(layer: nn.Module) -> None:
    """Puts what the quantizers hold on the mesh of the layer's weight.

    A scale for each channel along a sharded dimension of the weight is sharded with it. Everything else every rank
    holds whole; what is found of a part of x is added up over the ranks.
    """
    weight: Any = layer.weight
    for name in ("weight_quantizer", "input_quantizer"):
        quantizer = getattr(layer, name)
        if isinstance(quantizer, HostSide):
            if quantizer._attached is not None:
                quantizer._confirm(weight.full_tensor())
            quantizer._learn(wait=True)  # later, on parts, it could not
        if isinstance(quantizer, nn.Module):
            for module in quantizer.modules():
                _distribute(module, weight, getattr(module, "axis", None) if name == "weight_quantizer" else None)


def _distribute(module: nn.Module, weight: DTensor, axis: int | None) -> None:
    from torch.distributed.tensor import distribute_tensor

    for key, held in module._parameters.items():
        if held is not None and not is_dtensor(held):
            placed = distribute_tensor(held.detach(), weight.device_mesh, _placements(held, weight, axis))
            module.register_parameter(key, nn.Parameter(placed, requires_grad=held.requires_grad))
    for key, buffer in module._buffers.items():
        if buffer is not None and not is_dtensor(buffer):
            module._buffers[key] = distribute_tensor(buffer, weight.device_mesh, _placements(buffer, weight, axis))


def _placements(held: Tensor, weight: DTensor, axis: int | None) -> list[Placement]:
    from torch.distributed.tensor import Replicate, Shard

    per_channel = isinstance(axis, int) and held.numel() > 1 and held.shape == (weight.shape[axis],)
    along = [per_channel and p == Shard(axis % weight.dim()) for p in weight.placements]  # type: ignore[operator]
    return [Shard(0) if sharded else Replicate() for sharded in along]
