"""The units of adaptive clipping where they lie on several machines.

Where a rank holds whole units (`Shard(0)` of a tensor with two or more dimensions, and copies) they are clipped as
plain tensors are. Where a unit is divided (`Shard(1)`, the one unit of a sharded bias) the norms of its parts are
joined, one all-reduce a mesh dimension for all units together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ste_ops._dtensor import is_dtensor
from ste_ops.functional.clip import distributed
from ste_ops.functional.clip._lists import real_units

Pair = tuple[Any, Any]  # a parameter and its gradient


def own_units(operator: str, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[Pair], list[Pair]]:
    """The pairs of plain tensors that a rank clips by itself, and the pairs of DTensors whose units are divided.

    Those without a gradient stay among the second: other ranks may have one.
    """
    distributed.refuse_partial(operator, [grad for _, grad in pairs if grad is not None])
    whole: list[Pair] = []
    divided: list[Pair] = []
    for index, (parameter, grad) in enumerate(pairs):
        if grad is not None:
            _check_alike(operator, index, parameter, grad)
        if is_dtensor(parameter) and any(_divided_dims(parameter)):
            divided.append((parameter, grad))
        elif grad is not None:
            own_parameter, own_grad = distributed.to_local([parameter, grad])
            whole.append((own_parameter, own_grad))
    return whole, divided


def clip_divided(pairs: Sequence[Pair], clip_factor: float, eps: float) -> None:
    meshes: dict[Any, list[Pair]] = {}
    for parameter, grad in pairs:
        meshes.setdefault(parameter.device_mesh, []).append((parameter, grad))
    for mesh, of_mesh in meshes.items():
        if mesh.get_coordinate() is not None:
            _clip_on(mesh, of_mesh, clip_factor, eps)


def _clip_on(mesh: Any, pairs: Sequence[Pair], clip_factor: float, eps: float) -> None:
    norms = []
    for parameter, grad in pairs:
        of_weights = _unit_norms(real_units(parameter.to_local()))
        of_grad = torch.zeros_like(of_weights) if grad is None else _unit_norms(real_units(grad.to_local()))
        norms.append(torch.stack([of_weights, of_grad]))
    for dim in range(mesh.ndim):
        places = [place for place, (parameter, _) in enumerate(pairs) if _divided_dims(parameter)[dim]]
        if places:
            parts = torch.cat([norms[place].flatten() for place in places])
            joined = distributed.join_over(mesh.get_group(dim), parts, 2.0)
            for place, norm in zip(places, joined.split([norms[place].numel() for place in places]), strict=True):
                norms[place] = norm.view(2, -1)
    for (_, grad), (of_weights, of_grad) in zip(pairs, norms, strict=True):
        if grad is not None:
            _scale(real_units(grad.to_local()), of_weights, of_grad, clip_factor, eps)


def _scale(grad: Tensor, of_weights: Tensor, of_grad: Tensor, clip_factor: float, eps: float) -> None:
    bound = of_weights.clamp(min=eps) * clip_factor
    coefficient = torch.where(of_grad < bound, 1.0, bound / of_grad.clamp(min=1e-6))
    arithmetic = torch.float64 if grad.dtype == torch.float64 else torch.float32
    grad.copy_(grad * coefficient.to(arithmetic).view([-1] * min(grad.dim(), 1) + [1] * (grad.dim() - 1)))


def _unit_norms(x: Tensor) -> Tensor:
    units = x.detach().flatten(1) if x.dim() > 1 else x.detach().reshape(1, -1)
    return torch.linalg.vector_norm(units, dim=1, dtype=torch.float64)


def _divided_dims(parameter: Any) -> list[bool]:
    """Of each mesh dimension whether it divides units."""
    whole = 0 if parameter.dim() > 1 else None
    return [not p.is_replicate() and getattr(p, "dim", None) != whole for p in parameter.placements]


def _check_alike(operator: str, index: int, parameter: Any, grad: Any) -> None:
    if is_dtensor(parameter) != is_dtensor(grad):
        kinds = ["a plain tensor", "a DTensor"]
        expected, got = kinds[is_dtensor(parameter)], kinds[is_dtensor(grad)]
        raise TypeError(f"{operator}: gradients[{index}] must be {expected} as its parameter is, got {got}")
    if is_dtensor(grad) and (grad.device_mesh, grad.placements) != (parameter.device_mesh, parameter.placements):
        raise ValueError(
            f"{operator}: gradients[{index}] must lie as its parameter does, {parameter.placements} on "
            f"{parameter.device_mesh}, got {grad.placements} on {grad.device_mesh}; redistribute() it first"
        )
