"""The samples of a batch that is divided among ranks: each clips its own, and the sums are summands of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ste_ops._dtensor import is_dtensor

_OPERATOR = "clip_per_sample_"
Clip = Callable[[list[Tensor], list[Tensor] | None], tuple[list[Tensor], Tensor]]


def clip_own_samples(clip: Clip, grads: Sequence[Any], out: Sequence[Any] | None) -> tuple[list[Tensor], Tensor]:
    """The sums and norms as DTensors; `clip` takes this rank's samples, and the sums to add to or None."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    _check(grads)
    mesh, placements = grads[0].device_mesh, grads[0].placements
    of_sums = tuple(Replicate() if p.is_replicate() else Partial() for p in placements)
    if out is not None:
        _check_out(out, mesh, of_sums)
    sums, norms = clip([g.to_local() for g in grads], None if out is None else [s.to_local() for s in out])
    shape = grads[0].shape[:1] + norms.shape[1:]
    norms = DTensor.from_local(norms, mesh, placements, run_check=False, shape=shape, stride=norms.stride())
    if out is not None:
        return list(out), norms
    return [DTensor.from_local(s, mesh, of_sums, run_check=False) for s in sums], norms


def _check(grads: Sequence[Any]) -> None:
    for index, grad in enumerate(grads):
        if not is_dtensor(grad):
            expected = "grad_samples must all be DTensors, or none"
            raise TypeError(f"{_OPERATOR}: {expected}, got a plain tensor at index {index}")
        divided_alike = (grad.device_mesh, grad.placements) == (grads[0].device_mesh, grads[0].placements)
        if not divided_alike or not all(p.is_replicate() or p.is_shard(0) for p in grad.placements):
            raise ValueError(
                f"{_OPERATOR}: grad_samples must all be replicated or sharded along the samples, Shard(0), alike, got "
                f"{grad.placements} at index {index}; redistribute() it first"
            )


def _check_out(out: Sequence[Any], mesh: Any, of_sums: tuple[Any, ...]) -> None:
    for index, total in enumerate(out):
        if not is_dtensor(total) or (total.device_mesh, total.placements) != (mesh, of_sums):
            got = total.placements if is_dtensor(total) else "a plain tensor"
            expected = f"out must be DTensors with the placements {of_sums}"
            raise ValueError(f"{_OPERATOR}: {expected}, got {got} at index {index}")
