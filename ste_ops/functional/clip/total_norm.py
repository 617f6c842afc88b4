"""The norm of tensors taken together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from ste_ops._checks import checked_norm_type
from ste_ops._dtensor import has_dtensor
from ste_ops._library import ops
from ste_ops.functional.clip import _lists, distributed
from ste_ops.functional.clip._lists import Tensors, coalesced, in_one_call, listed, magnitudes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: Literal[False] = False,
    process_group: ProcessGroup | None = None,
    parameters: Sequence[Tensor] | None = None,
) -> Tensor: ...


@overload
def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: Literal[True],
    process_group: ProcessGroup | None = None,
    parameters: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]: ...


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: bool = False,
    process_group: ProcessGroup | None = None,
    parameters: Sequence[Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The p-norm of tensors taken together as one vector, as `torch.nn.utils.get_total_norm`.

    Args:
        tensors: an iterable of tensors, or one; float64, float32, bfloat16, float16, complex64 and complex128 may be
            mixed, and so may devices. A complex number counts with its magnitude. Any strides; expanded
            tensors too. Sparse COO tensors count with their coalesced values.
        norm_type: p, any number >= 0; 2 by default. ``inf`` and ``-inf`` give the largest and the smallest magnitude, 0
            the number of elements that are not zero.
        error_if_nonfinite: raise where the norm is NaN or infinite. This is the one option that waits for the device.
        foreach: taken for compatibility; there is one implementation.
        return_norms: give the norm of each tensor too, from the same pass; that of a `DTensor` over its mesh, but of
            what was divided by hand that of this rank's part.
        process_group: where the tensors are parts that were divided among ranks by hand, the ranks that hold the other
            parts; every one of them has to call, also without tensors. `DTensor`s need none: their norm is taken over
            their own mesh, before that of the group, and every rank of the mesh has to call.
        parameters: all parameters that the tensors are gradients of, for a rank that may lack gradients which are
            `DTensor`s on others: it takes part in their norm, which it cannot know of without. The norms of each are
            then those of the parameters, 0 where no rank has a gradient.

    Returns:
        A 0-d float32 tensor on the first tensor's device, float64 if any tensor is float64 or complex128, with a
        process_group also one of another rank, or if it is on CUDA, where nobody knows the dtypes of other ranks; 0 for
        an empty list or tensors without elements. NaN where an element is (but for ``norm_type=0``, which counts it).
        With ``return_norms`` ``(total_norm, norms)``: norms is 1-D, of the same dtype and device, with one entry for
        each tensor in the order of the list, one that is listed twice included.

    Raises:
        ValueError: norm_type is NaN, or negative and not -inf; this rank is not in the process_group; some tensors are
            on the meta device.
        TypeError: a tensor is integer or of a sparse layout other than COO; process_group is no ProcessGroup.
        RuntimeError: the norm is not finite and error_if_nonfinite is set.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
        >>> ste_ops.get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])], return_norms=True)
        (tensor(5.), tensor([3., 4.]))
    """
    operator = "get_total_norm"
    p = checked_norm_type(operator, norm_type)
    grads = listed(operator, "tensors", tensors)
    distributed.check_group(operator, process_group)
    owners: Sequence[Tensor] = grads if parameters is None else listed(operator, "parameters", parameters)
    if not owners and process_group is None:
        return (torch.tensor(0.0), torch.zeros(0)) if return_norms else torch.tensor(0.0)
    with torch.no_grad():
        if process_group is None and parameters is None:
            total_norm, norms = norms_of(operator, grads, p, each=return_norms)
        else:
            held = grads if parameters is None else _held(owners, grads)
            total_norm, norms = norms_of_ranks(operator, owners, held, p, process_group, each=return_norms)
        if error_if_nonfinite:
            require_finite(total_norm, p)
    return (total_norm, norms) if return_norms else total_norm


def _held(parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """Of each parameter its gradient, where that is listed."""
    listed = {id(grad) for grad in grads}
    held = [grad if id(grad := parameter.grad) in listed else None for parameter in parameters]
    lost = listed - {id(grad) for grad in held}
    if lost:
        index = next(i for i, grad in enumerate(grads) if id(grad) in lost)
        raise ValueError(f"get_total_norm: tensors must be gradients of parameters, got another one at index {index}")
    return held


def norms_of(operator: str, grads: list[Tensor], p: float, *, each: bool) -> tuple[Tensor, Tensor]:
    """The norm of all, and of each in the order of the list where it is asked for."""

    def in_parts() -> tuple[Tensor, Tensor]:
        return _norms_in_parts(operator, grads, p, each)

    return in_one_call(operator, ops.total_norm, grads, p, each, in_parts=in_parts)


def _norms_in_parts(operator: str, grads: list[Tensor], p: float, each: bool) -> tuple[Tensor, Tensor]:
    if has_dtensor(grads):
        return norms_of_ranks(operator, grads, grads, p, None, each=each)
    _lists.refuse_meta_beside_others(operator, grads)
    grads = magnitudes(grads, p)
    totals: list[Tensor] = []
    norm_of_grad: dict[Tensor, Tensor] = {}
    for group in _lists.by_device(operator, grads):
        distinct = list(dict.fromkeys(group))
        total_norm, norms = ops.total_norm(coalesced(distinct), p, each)
        totals.append(total_norm.to(grads[0].device))
        if each:
            norm_of_grad |= zip(distinct, norms.to(grads[0].device).unbind(), strict=True)
    # A norm of norms is the norm of all, except that counts add up.
    total_norm, norms = ops.total_norm(totals, 1.0 if p == 0 else p)
    if each:
        norms = torch.stack([norm_of_grad[grad].to(total_norm.dtype) for grad in grads])
    return total_norm, norms


def spans_ranks(parameters: Sequence[Tensor], grads: Sequence[Tensor], process_group: ProcessGroup | None) -> bool:
    """Whether other ranks wait for this one though its own gradients do not say so."""
    return process_group is not None or (len(grads) < len(parameters) and has_dtensor(parameters))


def norm_of_ranks(
    operator: str, parameters: Sequence[Tensor], grads: list[Tensor], p: float, process_group: ProcessGroup | None
) -> Tensor:
    """The norm of the gradients; of parameters without one that are DTensors, other ranks may have one."""
    held = grads if parameters is grads else [parameter.grad for parameter in parameters]
    return norms_of_ranks(operator, parameters, held, p, process_group, each=False)[0]


def norms_of_ranks(
    operator: str,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    p: float,
    process_group: ProcessGroup | None,
    *,
    each: bool,
) -> tuple[Tensor, Tensor]:
    """The norm over all ranks, and that of each parameter's gradient, which is None where this rank has none."""
    distributed.check_group(operator, process_group)

    def norms(tensors: list[Tensor], p: float, each: bool) -> tuple[Tensor, Tensor]:
        return norms_of(operator, tensors, p, each=each)

    return distributed.total_norm(parameters, grads, p, process_group, norms, each)


def require_finite(total_norm: Tensor, p: float) -> None:
    if not math.isfinite(total_norm.item()):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it cannot be clipped. To "
            "disable this error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )
