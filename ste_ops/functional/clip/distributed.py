"""The norm of gradients that lie on several machines: `DTensor`s, and parts of a process group's own making.

Each rank takes the norm of what it holds, in float64, and norms are joined, one all-reduce a mesh dimension and one for
the process group. What is reduced is a vector with a slot for each rank: it arrives everywhere in the same order, so
every rank finds the same bits, NaN and infinity survive any backend's maximum, and no power of a norm leaves float64's
range on the way, because the kernel that joins them is the one that took them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ste_ops._dtensor import has_dtensor
from ste_ops._library import ops

# The norm of order -inf of no elements, which no other norm may lose against.
_ABSENT = -1.0


def to_local(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors with the rank's own part in a DTensor's place; the same sequence where there is none."""
    if not has_dtensor(tensors):
        return tensors
    from torch.distributed.tensor import DTensor

    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def refuse_partial(operator: str, grads: Iterable[Tensor]) -> None:
    """For what is not linear: the summands of a Partial gradient cannot be changed one by one."""
    for index, grad in enumerate(grads):
        if has_dtensor([grad]) and any(placement.is_partial() for placement in grad.placements):  # type: ignore[attr-defined]
            raise ValueError(
                f"{operator}: gradients must be sharded or replicated, got the placements "
                f"{grad.placements} at index {index}; redistribute() it first"  # type: ignore[attr-defined]
            )


def _reduced(grad: Any) -> Any:
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in grad.placements):
        return grad
    return grad.redistribute(placements=[Replicate() if p.is_partial() else p for p in grad.placements])


def _is_owner(grad: Any, coordinate: Sequence[int]) -> bool:
    """Of the ranks that hold the same values the first one counts them."""
    return all(not p.is_replicate() or at == 0 for p, at in zip(grad.placements, coordinate, strict=True))


def _join(norms: Tensor, p: float) -> Tensor:
    """The norm of all elements from the norms of parts: theirs, but that counts add up."""
    if p == -math.inf:
        least = torch.where(norms < 0, math.inf, norms).amin()
        return torch.where((norms < 0).all(), _ABSENT, least)
    return ops.total_norm([norms], 1.0 if p == 0 else p)[0]


def _join_over(group: Any, norm: Tensor, p: float) -> Tensor:
    import torch.distributed as dist

    size = dist.get_world_size(group)
    if size == 1:
        return norm
    norms = norm.new_zeros(size)
    norms[dist.get_rank(group)] = norm
    dist.all_reduce(norms, group=group)
    return _join(norms, p)


def _device_of(group: Any) -> torch.device:
    """Where a rank that holds no tensor takes part."""
    import torch.distributed as dist

    accelerator = torch.accelerator.current_accelerator()
    return accelerator if accelerator is not None and "gloo" not in dist.get_backend(group) else torch.device("cpu")


class _Local:
    """The norm of a rank's own tensors."""

    def __init__(self, norm: Callable[[list[Tensor], float], Tensor], p: float):
        self.norm, self.p = norm, p

    def __call__(self, tensors: Iterable[Tensor], device: torch.device) -> Tensor:
        tensors = [t for t in tensors if t.numel() > 0]
        if not tensors:
            return torch.full((), _ABSENT if self.p == -math.inf else 0.0, dtype=torch.float64, device=device)
        # A float64 tensor among them, be it empty, makes the norm a float64: it is not rounded before it is joined.
        tensors += [torch.empty(0, dtype=torch.float64, device=d) for d in {t.device for t in tensors}]
        norm = self.norm(tensors, self.p)
        return norm if norm.device.type == device.type else norm.to(device)


def total_norm(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    p: float,
    process_group: Any,
    norm: Callable[[list[Tensor], float], Tensor],
) -> Tensor:
    """The p-norm of the gradients over all ranks, a plain 0-d tensor, the same on each.

    Args:
        parameters: all of them, in the same order on every rank. A rank whose gradients of a mesh are all None takes
            part in the mesh's reductions all the same, which it knows from these.
        grads: those there are.
        p: as in `get_total_norm`.
        process_group: over which the gradients were divided by hand, or None.
        norm: takes the norm of plain tensors.
    """
    everything = [*grads, *parameters]
    dtype = torch.float64 if any(t.dtype in (torch.float64, torch.complex128) for t in everything) else torch.float32
    device = to_local(everything[:1])[0].device if everything else _device_of(process_group)
    local = _Local(norm, p)
    plain: list[Tensor] = []
    meshes: dict[Any, list[Tensor]] = {t.device_mesh: [] for t in parameters if has_dtensor([t])}  # type: ignore[attr-defined]
    for grad in grads:
        if not has_dtensor([grad]):
            plain.append(grad)
            continue
        grad = _reduced(grad)
        coordinate = grad.device_mesh.get_coordinate()
        part = meshes.setdefault(grad.device_mesh, [])
        if coordinate is not None and _is_owner(grad, coordinate):
            part.append(grad.to_local())
    norms = [local(plain, device)]
    for mesh, part in meshes.items():
        if mesh.get_coordinate() is None:
            continue
        total = local(part, torch.device(mesh.device_type))
        for dim in range(mesh.ndim):
            total = _join_over(mesh.get_group(dim), total, p)
        norms.append(total.to(device))
    total = _join(torch.stack(norms), p)
    if process_group is not None:
        total = _join_over(process_group, total, p)
    return total.clamp(min=0).to(dtype)
