"""Clipping ``.grad`` in place, as `torch.nn.utils` has it.

Where the functions of `torch.nn.utils` and these differ, on purpose:

- the norm of float16 and bfloat16 gradients is a float32 (torch rounds it to their 11 and 8 bits) and every sum is
  taken in float64 in a fixed order: the same bits at any number of threads, and no overflow in between;
- ``norm_type=0`` counts the elements that are not zero; torch, which takes the norm of the norms, counts tensors;
- a tensor that is listed twice counts once and is scaled once; torch does both twice;
- nothing is written when nothing needs clipping (the version counters still move, as after torch's own call);
- a negative or NaN bound is refused: torch would flip the gradients' signs, or make them NaN;
- a negative ``norm_type`` other than -inf is refused: it is no norm, and 0 as soon as one element is.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from ste_ops import clip_distributed
from ste_ops._functions.clip import FLOATING
from ste_ops._library import ops
from ste_ops.clip_result import ClipResult

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Tensors = Tensor | Iterable[Tensor]
NonFinite = Literal["propagate", "skip", "zero"]
_NONFINITE: dict[str, int] = {"propagate": 0, "skip": 1, "zero": 2}  # as csrc/core/norm.h numbers them


def checked_number(operator: str, argument: str, value: float) -> float:
    number = float(value)
    if not number >= 0:
        raise ValueError(f"{operator}: {argument} must be a non-negative number, got {value}")
    return number


def checked_norm_type(operator: str, value: float) -> float:
    p = float(value)
    if not (p >= 0 or p == -math.inf):
        raise ValueError(f"{operator}: norm_type must be a non-negative number, inf or -inf, got {value}")
    return p


def _listed(tensors: _Tensors) -> Sequence[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    return tensors if isinstance(tensors, (list, tuple)) else list(tensors)


def _gradients(operator: str, parameters: _Tensors) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = []
    try:
        for parameter in parameters:  # each gradient is asked for once: the attribute is what this loop costs
            grad = parameter.grad
            if grad is not None:
                grads.append(grad)
    except AttributeError as error:
        raise TypeError(f"{operator}: parameters must be a tensor or an iterable of tensors, got {error}") from None
    return grads


def _check_gradient(operator: str, index: int, grad: Tensor) -> None:
    if not isinstance(grad, Tensor):
        raise TypeError(
            f"{operator}: tensors must be an iterable of tensors, got {type(grad).__name__} at index {index}"
        )
    if grad.dtype not in FLOATING:
        raise TypeError(
            f"{operator}: gradients must be float64, float32, bfloat16 or float16, got {grad.dtype} at index {index}"
        )
    if grad.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"{operator}: gradients must be strided or sparse_coo, got {grad.layout} at index {index}")


def _by_device(operator: str, grads: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradients of each device in the order of the list: what a call of one native operator takes.

    The way of lists that the native operators refuse as a whole. It explains what cannot be clipped, before anything is
    written.
    """
    groups: dict[torch.device, list[Tensor]] = {}
    for index, grad in enumerate(grads):
        _check_gradient(operator, index, grad)
        groups.setdefault(grad.device, []).append(grad)
    return list(groups.values())


def _coalesced(grads: Iterable[Tensor]) -> list[Tensor]:
    """Dense tensors with the values of the list; those of an uncoalesced sparse gradient are a copy."""
    return [grad.coalesce()._values() if grad.is_sparse else grad for grad in dict.fromkeys(grads)]


def _norm(operator: str, grads: list[Tensor], p: float) -> Tensor:
    try:
        return ops.total_norm(grads, p)
    except (RuntimeError, TypeError):
        groups = _by_device(operator, grads)
        if clip_distributed.has_dtensor(grads):
            return _norm_of_ranks(operator, grads, grads, p, None)
        if len(groups) == 1 and not any(grad.is_sparse for grad in grads):
            raise
    norms = [ops.total_norm(_coalesced(group), p).to(grads[0].device) for group in groups]
    # A norm of norms is the norm of all, except that counts add up.
    return ops.total_norm(norms, 1.0 if p == 0 else p)


def _norms(operator: str, grads: list[Tensor], p: float) -> tuple[Tensor, Tensor]:
    """The norm of all, and of each in the order of the list."""
    try:
        return ops.total_norms(grads, p)
    except (RuntimeError, TypeError):
        groups = _by_device(operator, grads)
        _refuse_norms_of_ranks(operator, clip_distributed.has_dtensor(grads))
        if len(groups) == 1 and not any(grad.is_sparse for grad in grads):
            raise
    totals: list[Tensor] = []
    norm_of: dict[Tensor, Tensor] = {}
    for group in groups:
        distinct = list(dict.fromkeys(group))
        total_norm, norms = ops.total_norms(_coalesced(distinct), p)
        totals.append(total_norm.to(grads[0].device))
        norm_of |= zip(distinct, norms.to(grads[0].device).unbind(), strict=True)
    total_norm = ops.total_norm(totals, 1.0 if p == 0 else p)
    return total_norm, torch.stack([norm_of[grad].to(total_norm.dtype) for grad in grads])


def _spans_ranks(parameters: Sequence[Tensor], grads: Sequence[Tensor], process_group: ProcessGroup | None) -> bool:
    """Whether other ranks wait for this one though its own gradients do not say so."""
    return process_group is not None or (len(grads) < len(parameters) and clip_distributed.has_dtensor(parameters))


def _norm_of_ranks(
    operator: str, parameters: Sequence[Tensor], grads: list[Tensor], p: float, process_group: ProcessGroup | None
) -> Tensor:
    def norm(tensors: list[Tensor], p: float) -> Tensor:
        return _norm(operator, tensors, p)

    return clip_distributed.total_norm(parameters, grads, p, process_group, norm)


def _refuse_norms_of_ranks(operator: str, refuse: bool) -> None:
    if refuse:
        raise ValueError(
            f"{operator}: the norm of each gradient (return_norms, return_result) are taken on one machine, got "
            "DTensors or a process_group; only the total is taken over ranks"
        )


def _written(grads: Sequence[Tensor]) -> None:
    # Compiled graphs do this for every input that they mutate.
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(grads)


def _scale(operator: str, grads: list[Tensor], total_norm: Tensor, max_norm: float, nonfinite: int = 0) -> None:
    try:
        ops.clip_grads_with_norm_(grads, total_norm, max_norm, nonfinite)
    except RuntimeError:
        own = clip_distributed.to_local(grads)
        groups = _by_device(operator, own)
        if own is grads and len(groups) == 1 and not any(grad.is_sparse for grad in grads):
            raise
        # Scaling is linear, so it does not matter whether a sparse gradient is coalesced, or a DTensor reduced.
        values = [[grad._values() if grad.is_sparse else grad for grad in dict.fromkeys(group)] for group in groups]
        _check_writable(operator, values)
        for group in values:
            ops.clip_grads_with_norm_(group, total_norm.to(group[0].device), max_norm, nonfinite)
        if own is not grads:
            _written(own)
    _written(grads)


def _check_writable(operator: str, groups: list[list[Tensor]]) -> None:
    """Runs each operator's own checks of all groups before the first one is written."""
    for group in groups:
        ops.clip_grads_with_norm_(group, torch.zeros((), device=group[0].device), math.inf)


def _require_finite(total_norm: Tensor, p: float) -> None:
    if not math.isfinite(total_norm.item()):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it cannot be clipped. To "
            "disable this error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )


@overload
def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: Literal[False] = False,
    process_group: ProcessGroup | None = None,
) -> Tensor: ...


@overload
def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The p-norm of tensors taken together as one vector, as `torch.nn.utils.get_total_norm`.

    Args:
        tensors: an iterable of tensors, or one; float64, float32, bfloat16 and float16 may be mixed, and so may
            devices. Any strides; expanded tensors too. Sparse COO tensors count with their coalesced values.
        norm_type: p, any number >= 0; 2 by default. ``inf`` and ``-inf`` give the largest and the smallest magnitude, 0
            the number of elements that are not zero.
        error_if_nonfinite: raise where the norm is NaN or infinite. This is the one option that waits for the device.
        foreach: taken for compatibility; there is one implementation.
        return_norms: give the norm of each tensor too, from the same pass; on one machine.
        process_group: where the tensors are parts that were divided among ranks by hand, the ranks that hold the other
            parts; every one of them has to call, also without tensors. `DTensor`s need none: their norm is taken over
            their own mesh, before that of the group.

    Returns:
        A 0-d float32 tensor, float64 if any tensor is, on the first tensor's device; 0 for an empty list or tensors
        without elements. NaN where an element is (but for ``norm_type=0``, which counts it). With ``return_norms``
        ``(total_norm, norms)``: norms is 1-D, of the same dtype and device, with one entry for each tensor in the
        order of the list, one that is listed twice included.

    Raises:
        ValueError: norm_type is NaN, or negative and not -inf.
        TypeError: a tensor is integer, complex or of a sparse layout other than COO.
        RuntimeError: the norm is not finite and error_if_nonfinite is set.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
        >>> ste_ops.get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])], return_norms=True)
        (tensor(5.), tensor([3., 4.]))
    """
    p = checked_norm_type("get_total_norm", norm_type)
    grads = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    _refuse_norms_of_ranks("get_total_norm", return_norms and process_group is not None)
    if not grads and process_group is None:
        return (torch.tensor(0.0), torch.zeros(0)) if return_norms else torch.tensor(0.0)
    with torch.no_grad():
        if return_norms:
            total_norm, norms = _norms("get_total_norm", grads, p)
        elif process_group is not None:
            total_norm = _norm_of_ranks("get_total_norm", grads, grads, p, process_group)
        else:
            total_norm = _norm("get_total_norm", grads, p)
        if error_if_nonfinite:
            _require_finite(total_norm, p)
    return (total_norm, norms) if return_norms else total_norm


def clip_grads_with_norm_(
    parameters: _Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scales gradients by ``min(1, max_norm / (total_norm + 1e-6))``, as `torch.nn.utils.clip_grads_with_norm_`.

    The coefficient is taken on the gradients' device, in float64, and nothing is written where it is 1: no host sync,
    and a CUDA graph can capture it. A NaN norm makes every gradient NaN, an infinite one makes them 0 and their
    infinite elements NaN, as in torch.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over.
        max_norm: the bound, >= 0.
        total_norm: a 0-d tensor, from `get_total_norm`.
        foreach: taken for compatibility; there is one implementation.

    Raises:
        ValueError: max_norm is negative or NaN.
        TypeError: total_norm is no tensor; a gradient is integer, complex or of a sparse layout other than COO.
        RuntimeError: a gradient's elements share memory (an expanded tensor), also where nothing would be clipped.
            Nothing has been written then.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> ste_ops.clip_grads_with_norm_(w, 1.0, torch.tensor(5.0))
        >>> w.grad
        tensor([0.6000, 0.8000])
    """
    max_norm = checked_number("clip_grads_with_norm_", "max_norm", max_norm)
    if not isinstance(total_norm, Tensor):
        raise TypeError(f"clip_grads_with_norm_: total_norm must be a tensor, got {type(total_norm).__name__}")
    if total_norm.dim() != 0:
        raise ValueError(f"clip_grads_with_norm_: total_norm must be 0-d, got the shape {tuple(total_norm.shape)}")
    grads = _gradients("clip_grads_with_norm_", parameters)
    if not grads:
        return
    if clip_distributed.has_dtensor([total_norm]):  # torch's own norm of DTensors is one, and not yet reduced
        total_norm = total_norm.full_tensor()  # type: ignore[attr-defined]
    if total_norm.dtype != torch.float64:
        total_norm = total_norm.float()
    with torch.no_grad():
        _scale("clip_grads_with_norm_", grads, total_norm.detach().to(grads[0].device), max_norm)


@overload
def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_norms: Literal[False] = False,
    return_result: Literal[False] = False,
    process_group: ProcessGroup | None = None,
) -> Tensor: ...


@overload
def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_norms: Literal[True],
    return_result: Literal[False] = False,
) -> tuple[Tensor, Tensor]: ...


@overload
def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_norms: bool = False,
    return_result: Literal[True],
) -> ClipResult: ...


def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_norms: bool = False,
    return_result: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, Tensor] | ClipResult:
    """Clips the gradients' norm, taken over all of them together, in place, as `torch.nn.utils.clip_grad_norm_`.

    `get_total_norm` followed by `clip_grads_with_norm_`, in one native call: a step that needs no clipping reads each
    gradient once and writes nothing. The gradients' version counters move either way, since on CUDA only the device
    knows.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over, and one that is listed
            twice counts once.
        max_norm: the bound, >= 0.
        norm_type: as in `get_total_norm`.
        error_if_nonfinite: raise where the norm is NaN or infinite, before anything is scaled. This waits for the
            device.
        foreach: taken for compatibility; there is one implementation.
        nonfinite: what happens where the norm is NaN or infinite, decided on the device. ``"propagate"`` multiplies by
            the coefficient as torch does: a NaN norm makes every gradient NaN. ``"skip"`` leaves every gradient as it
            is: for a step that is skipped anyway (``GradScaler``, ``found_inf``), with the evidence kept. ``"zero"``
            makes every gradient 0, those that were finite too: for a loop that steps without looking.
        return_norms: give the norm of each gradient too, from the same pass; on one machine.
        return_result: give a `ClipResult` (which has the norms); on one machine.
        process_group: as in `get_total_norm`. Each rank scales its own parts.

    Returns:
        The norm before clipping, as `get_total_norm` gives it. With ``return_norms`` ``(total_norm, norms)``, norms 1-D
        with one entry for each parameter that has a gradient, in their order. With ``return_result`` a `ClipResult`:
        these two, whether it clipped, and which gradient was the first that is not finite.

    Raises:
        As `get_total_norm` and `clip_grads_with_norm_`. ValueError for another ``nonfinite``, or one beside
        ``error_if_nonfinite``. No gradient has been written then.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> ste_ops.clip_grad_norm_([w], max_norm=1.0)
        tensor(5.)
        >>> w.grad
        tensor([0.6000, 0.8000])
        >>> w.grad[0] = torch.inf
        >>> ste_ops.clip_grad_norm_([w], max_norm=1.0, nonfinite="zero")
        tensor(inf)
        >>> w.grad
        tensor([0., 0.])
    """
    max_norm = checked_number("clip_grad_norm_", "max_norm", max_norm)
    p = checked_norm_type("clip_grad_norm_", norm_type)
    mode = _checked_nonfinite(nonfinite, error_if_nonfinite)
    with_norms = return_norms or return_result
    given, parameters = parameters, _listed(parameters)
    grads = _gradients("clip_grad_norm_", parameters)
    spans_ranks = _spans_ranks(parameters, grads, process_group)
    _refuse_norms_of_ranks("clip_grad_norm_", with_norms and spans_ranks)
    norms = None
    if spans_ranks:
        with torch.no_grad():
            total_norm = _norm_of_ranks("clip_grad_norm_", parameters, grads, p, process_group)
            if error_if_nonfinite:
                _require_finite(total_norm, p)
            if grads:
                _scale("clip_grad_norm_", grads, total_norm, max_norm, mode)
    elif not grads:
        if isinstance(given, types.GeneratorType) and not parameters:
            message = "`parameters` is an empty generator, no gradient clipping will occur."
            warnings.warn(message, stacklevel=2)
        total_norm, norms = torch.tensor(0.0), torch.zeros(0)
    else:
        with torch.no_grad():
            total_norm, norms = _clip_grad_norm(grads, max_norm, p, error_if_nonfinite, mode, with_norms)
    if not with_norms:
        return total_norm
    assert norms is not None
    if not return_result:
        return total_norm, norms
    positions = tuple(i for i, parameter in enumerate(parameters) if parameter.grad is not None)
    return ClipResult(total_norm, norms, max_norm, positions)


def _checked_nonfinite(nonfinite: str, error_if_nonfinite: bool) -> int:
    if nonfinite not in _NONFINITE:
        raise ValueError(f'clip_grad_norm_: nonfinite must be "propagate", "skip" or "zero", got {nonfinite!r}')
    if error_if_nonfinite and nonfinite != "propagate":
        raise ValueError(
            f"clip_grad_norm_: error_if_nonfinite raises where nonfinite={nonfinite!r} would not; ask for one"
        )
    return _NONFINITE[nonfinite]


def _clip_grad_norm(
    grads: list[Tensor], max_norm: float, p: float, error_if_nonfinite: bool, nonfinite: int, with_norms: bool
) -> tuple[Tensor, Tensor | None]:
    norms = None
    if not error_if_nonfinite:
        try:
            if with_norms:
                total_norm, norms = ops.clip_grad_norms_(grads, max_norm, p, nonfinite)
            else:
                total_norm = ops.clip_grad_norm_(grads, max_norm, p, nonfinite)
        except RuntimeError:
            pass  # a list that needs more than one call, or has something in it to explain
        else:
            _written(grads)
            return total_norm, norms
    if with_norms:
        total_norm, norms = _norms("clip_grad_norm_", grads, p)
    else:
        total_norm = _norm("clip_grad_norm_", grads, p)
    if error_if_nonfinite:
        _require_finite(total_norm, p)
    _scale("clip_grad_norm_", grads, total_norm, max_norm, nonfinite)
    return total_norm, norms


def clip_grad_value_(parameters: _Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every element of the gradients to ``[-clip_value, clip_value]`` in place, as in `torch.nn.utils`.

    One pass that writes only where something changes. NaN stays.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over.
        clip_value: the bound, >= 0.
        foreach: taken for compatibility; there is one implementation.

    Raises:
        ValueError: clip_value is negative or NaN.
        TypeError, RuntimeError: as `clip_grads_with_norm_`.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(3, requires_grad=True)
        >>> w.grad = torch.tensor([-2.0, 0.05, 0.5])
        >>> ste_ops.clip_grad_value_(w, 0.1)
        >>> w.grad
        tensor([-0.1000,  0.0500,  0.1000])
    """
    operator = "clip_grad_value_"
    clip_value = checked_number(operator, "clip_value", clip_value)
    grads = _gradients(operator, parameters)
    if not grads:
        return
    with torch.no_grad():
        try:
            ops.clip_grad_value_(grads, clip_value)
        except RuntimeError:
            clip_distributed.refuse_partial(operator, grads)
            own = clip_distributed.to_local(grads)
            groups = _by_device(operator, own)
            if own is grads and len(groups) == 1 and not any(grad.is_sparse for grad in grads):
                raise
            pairs = [(grad, grad.coalesce() if grad.is_sparse else grad) for grad in dict.fromkeys(own)]
            groups = _by_device(operator, [c._values() if c.is_sparse else c for _, c in pairs])
            _check_writable(operator, groups)
            for group in groups:
                ops.clip_grad_value_(group, clip_value)
            for grad, coalesced in pairs:
                if coalesced is not grad:
                    grad.copy_(coalesced)
            if own is not grads:
                _written(own)
        _written(grads)
