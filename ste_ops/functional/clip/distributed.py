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

from ste_ops._dtensor import has_dtensor, is_dtensor
from ste_ops._library import ops

NormsOf = Callable[[list[Tensor], float, bool], tuple[Tensor, Tensor]]

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
        if is_dtensor(grad) and any(placement.is_partial() for placement in grad.placements):  # type: ignore[attr-defined]
            raise ValueError(
                f"{operator}: gradients must be sharded or replicated, got the placements "
                f"{grad.placements} at index {index}; redistribute() it first"  # type: ignore[attr-defined]
            )


def _counted(grad: Any) -> Tensor | None:
    """This rank's part of a gradient, where it is this rank that counts it."""
    grad = _reduced(grad)
    coordinate = grad.device_mesh.get_coordinate()
    return grad.to_local() if coordinate is not None and _is_owner(grad, coordinate) else None


def _reduced(grad: Any) -> Any:
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in grad.placements):
        return grad
    return grad.redistribute(placements=[Replicate() if p.is_partial() else p for p in grad.placements])


def _is_owner(grad: Any, coordinate: Sequence[int]) -> bool:
    """Of the ranks that hold the same values the first one counts them."""
    return all(not p.is_replicate() or at == 0 for p, at in zip(grad.placements, coordinate, strict=True))


def check_group(operator: str, group: Any) -> None:
    if group is None:
        return
    import torch.distributed as dist

    if not isinstance(group, dist.ProcessGroup) and group != dist.GroupMember.NON_GROUP_MEMBER:
        mend = "; mesh.get_group(dim) gives one" if hasattr(group, "get_group") else ""
        expected = "a torch.distributed.ProcessGroup or None"
        raise TypeError(f"{operator}: process_group must be {expected}, got {group!r}{mend}")
    if dist.get_rank(group) < 0:
        raise ValueError(
            f"{operator}: process_group must be one that this rank is in, got a group without rank {dist.get_rank()}; "
            "call with it on its own ranks alone"
        )


def _join(norms: Tensor, p: float) -> Tensor:
    """Of each column the norm of all elements from the norms of parts: theirs, but that counts add up."""
    if p == -math.inf:
        least = torch.where(norms < 0, math.inf, norms).amin(0)
        return torch.where((norms < 0).all(0), _ABSENT, least)
    return ops.total_norm(list(norms.unbind(1)), 1.0 if p == 0 else p, True)[1]


def join_over(group: Any, norms: Tensor, p: float) -> Tensor:
    """Of each norm that of the elements of all ranks, which have as many norms each."""
    of_ranks = _gathered(group, norms)
    return norms if len(of_ranks) == 1 else _join(of_ranks, p)


def _gathered(group: Any, numbers: Tensor) -> Tensor:
    """The numbers of each rank in a row."""
    import torch.distributed as dist

    size = dist.get_world_size(group)
    if size == 1:
        return numbers[None]
    of_ranks = numbers.new_zeros(size, numbers.numel())
    of_ranks[dist.get_rank(group)] = numbers
    dist.all_reduce(of_ranks, group=group)
    return of_ranks


def _device_of(group: Any) -> torch.device:
    """Where a rank that holds no tensor takes part."""
    import torch.distributed as dist

    accelerator = torch.accelerator.current_accelerator()
    return accelerator if accelerator is not None and "gloo" not in dist.get_backend(group) else torch.device("cpu")


class _Local:
    """The norms of a rank's own tensors, in float64: of all, and then of each where that is asked for."""

    def __init__(self, norms_of: NormsOf, p: float, each: bool):
        self.norms_of, self.p, self.each = norms_of, p, each

    def __call__(self, tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
        """None stands for a tensor that this rank has no part of."""
        own = [t for t in tensors if t is not None and t.numel() > 0]
        none = torch.full((), _ABSENT if self.p == -math.inf else 0.0, dtype=torch.float64, device=device)
        if not own:
            return none.expand(1 + len(tensors) if self.each else 1)
        # A float64 tensor among them, be it empty, makes the norm a float64: it is not rounded before it is joined.
        wide = [torch.empty(0, dtype=torch.float64, device=d) for d in {t.device for t in own}]
        total, norms = self.norms_of([*own, *wide], self.p, self.each)
        if not self.each:
            return total.to(device).reshape(1)
        found = iter(norms.to(device).unbind())
        of_each = [none if t is None or t.numel() == 0 else next(found) for t in tensors]
        return torch.stack([total.to(device), *of_each])


def total_norm(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    p: float,
    process_group: Any,
    norms_of: NormsOf,
    each: bool,
) -> tuple[Tensor, Tensor]:
    """The p-norm of the gradients over all ranks, a plain 0-d tensor, the same on each; and the norm of each gradient.

    Args:
        parameters: all of them, in the same order on every rank. A rank whose gradients of a mesh are all None takes
            part in the mesh's reductions all the same, which it knows from these.
        grads: the gradient of each, or None.
        p: as in `get_total_norm`.
        process_group: over which the gradients were divided by hand, or None. The norms of each are not taken over it:
            its ranks may hold other parameters.
        norms_of: takes the norm of plain tensors, and of each.
        each: whether the norms of each are asked for: 1-D, one for each parameter, 0 where no rank has a gradient.
    """
    everything = [t for t in (*grads, *parameters) if t is not None]
    wide = any(t.dtype in (torch.float64, torch.complex128) for t in everything)
    device = to_local(everything[:1])[0].device if everything else _device_of(process_group)
    local = _Local(norms_of, p, each)
    plain: dict[int, Tensor | None] = {}
    meshes: dict[Any, dict[int, Tensor | None]] = {}
    for place, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        tensor = parameter if grad is None else grad
        if not is_dtensor(tensor):
            plain[place] = grad
            continue
        mesh = tensor.device_mesh  # type: ignore[attr-defined]
        meshes.setdefault(mesh, {})[place] = None if grad is None else _counted(grad)
    found = [(plain, local([*plain.values()], device))]
    for mesh, part in meshes.items():
        if mesh.get_coordinate() is None:
            continue
        norms = local([*part.values()], torch.device(mesh.device_type))
        for dim in range(mesh.ndim):
            norms = join_over(mesh.get_group(dim), norms, p)
        found.append((part, norms.to(device)))
    total = _join(torch.stack([norms[:1] for _, norms in found]), p)
    if process_group is not None:
        of_ranks = _gathered(process_group, torch.cat([total, total.new_tensor([wide])]))
        total = _join(of_ranks[:, :1], p)
        # One dtype on all ranks. What the others hold is known here where no device has to be waited for.
        wide = total.device.type != "cpu" or bool(of_ranks[:, 1].any())
    dtype = torch.float64 if wide else torch.float32
    norm_at = {place: norm for part, norms in found for place, norm in zip(part, norms[1:].unbind(), strict=False)}
    nothing = total.new_zeros(())  # of a mesh that this rank is not in
    of_each = [norm_at.get(place, nothing) for place in range(len(parameters) if each else 0)]
    norms = torch.stack(of_each) if of_each else total.new_zeros(0)
    return total[0].clamp(min=0).to(dtype), norms.clamp(min=0).to(dtype)
