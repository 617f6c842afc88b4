"""Clipping each sample of a batch before the samples are summed, for training with differential privacy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ste_ops._checks import COMPLEX, FLOATING, check_plain, checked_number
from ste_ops._dtensor import has_dtensor
from ste_ops._functions.tensor_list import shares_memory, sharing
from ste_ops._library import ops
from ste_ops._torch import dispatch_modes, functorch_active
from ste_ops.functional.clip._lists import as_stored, listed, written
from ste_ops.functional.clip.distributed_samples import clip_own_samples

_OPERATOR = "clip_per_sample_"
_HALVES = (torch.float16, torch.bfloat16)

Bounds = float | Tensor | Sequence[float] | Mapping[str, float]
Sums = Sequence[Tensor] | Mapping[str, Tensor]


@overload
def clip_per_sample_(
    grad_samples: Mapping[str, Tensor],
    max_norm: Bounds,
    *,
    out: Sums | None = None,
    dtype: torch.dtype | None = None,
    return_norms: Literal[False] = False,
) -> dict[str, Tensor]: ...


@overload
def clip_per_sample_(
    grad_samples: Mapping[str, Tensor],
    max_norm: Bounds,
    *,
    out: Sums | None = None,
    dtype: torch.dtype | None = None,
    return_norms: Literal[True],
) -> tuple[dict[str, Tensor], Tensor]: ...


@overload
def clip_per_sample_(
    grad_samples: Tensor | Iterable[Tensor],
    max_norm: Bounds,
    *,
    out: Sums | None = None,
    dtype: torch.dtype | None = None,
    return_norms: Literal[False] = False,
) -> list[Tensor]: ...


@overload
def clip_per_sample_(
    grad_samples: Tensor | Iterable[Tensor],
    max_norm: Bounds,
    *,
    out: Sums | None = None,
    dtype: torch.dtype | None = None,
    return_norms: Literal[True],
) -> tuple[list[Tensor], Tensor]: ...


def clip_per_sample_(
    grad_samples: Tensor | Iterable[Tensor] | Mapping[str, Tensor],
    max_norm: Bounds,
    *,
    out: Sums | None = None,
    dtype: torch.dtype | None = None,
    return_norms: bool = False,
) -> Any:
    """The sum over a batch of each sample's gradient, scaled to a norm of at most max_norm.

    A sample's norm is the 2-norm of its part of all tensors together, and its gradient is multiplied by
    ``min(1, max_norm / (norm + 1e-6))``, as Opacus does in its flat clipping. grad_samples are read twice and never
    written; no scaled copy of them is made. Norms and sums are taken in float64 in the order of the samples. No noise
    is added: that is yours to do, on the sums. A sample whose norm is NaN or infinite makes the sums NaN.

    Args:
        grad_samples: tensors of shape [batch, ...], one for each parameter, or one tensor; of one batch size and one
            device, float64, float32, bfloat16, float16, complex64 and complex128 mixed as you like.
            ``torch.func.vmap(torch.func.grad(...))`` makes them, as a dict of names, which is taken too, and so do
            Opacus' ``p.grad_sample``. One that is not contiguous is copied.
            `DTensor`s that are sharded along the samples are clipped where they lie, without communication: the sums
            are Partial, to be added up by ``full_tensor()``, and the norms are sharded as the samples are.
        max_norm: the bound, >= 0; or one for each tensor, in their order or by their names. Each tensor then has norms
            and coefficients of its own (Opacus' clipping per layer), and a sample counts with at most the root of the
            sum of the squared bounds.
        out: tensors of the shapes and dtypes of one sample that the sums are added to, in place, for batches that come
            in parts. New ones by default. A sum of float16 or bfloat16 may be float32.
        dtype: of the sums of float16 and bfloat16 gradients: float32, of which a copy is made then.
        return_norms: give the samples' norms before clipping too.

    Returns:
        A list with the sum for each tensor, of its shape without the first dimension and of its dtype: ``out`` where it
        was given; a dict for a dict. With ``return_norms`` ``(sums, norms)``: norms of shape [batch], or
        [batch, tensors] where each has its bound, float32, float64 if any tensor is.

    Raises:
        ValueError: max_norm is negative or NaN; batch sizes differ; a tensor has no dimension; ``out``, ``dtype`` or
            the bounds do not fit; tensors of ``out`` share memory; a `DTensor` is divided otherwise than by samples.
        TypeError: a tensor is integer or sparse.
        RuntimeError: the tensors are on several devices. Nothing has been written to ``out`` then.

    Example:
        >>> import torch, ste_ops
        >>> grad_samples = [torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor([0.0, 0.0])]
        >>> ste_ops.clip_per_sample_(grad_samples, max_norm=1.0, return_norms=True)
        ([tensor([0.9000, 1.2000]), tensor(0.)], tensor([5.0000, 0.5000]))
    """
    names = list(grad_samples) if isinstance(grad_samples, Mapping) else None
    if isinstance(grad_samples, Mapping):
        grads = list(grad_samples.values())
    else:
        grads = listed(_OPERATOR, "grad_samples", grad_samples)
    bounds = _bounds(max_norm, names, len(grads))
    sums, norms = _clip(grads, None if out is None else _in_order("out", out, names), bounds, dtype)
    named = sums if names is None else dict(zip(names, sums, strict=True))
    return (named, norms) if return_norms else named


def _clip(
    grads: list[Tensor], out: list[Tensor] | None, bounds: float | list[float], dtype: torch.dtype | None
) -> tuple[list[Tensor], Tensor]:
    if has_dtensor(grads):
        with torch.no_grad():
            return clip_own_samples(lambda own, sums: _clip(own, sums, bounds, dtype), grads, out)
    _check(grads)
    if out is None:
        sums = [torch.zeros(g.shape[1:], dtype=_dtype_of_sum(g, dtype), device=g.device) for g in grads]
    else:
        sums = out
        _check_out(grads, sums, dtype)
    return sums, _add_clipped(grads, sums, bounds) if grads else torch.zeros(0)


def _add_clipped(grads: list[Tensor], sums: list[Tensor], bounds: float | list[float]) -> Tensor:
    with torch.no_grad():
        real = [as_stored(s) if _is_plain(s) else _real_zeros(s) for s in sums]
        rows = [
            as_stored(g.resolve_conj().resolve_neg()).to(r.dtype).contiguous() for g, r in zip(grads, real, strict=True)
        ]
        if isinstance(bounds, float):
            norms = ops.clip_per_sample_(rows, real, bounds)
        else:
            each = [ops.clip_per_sample_([x], [r], c) for x, r, c in zip(rows, real, bounds, strict=True)]
            widest = torch.float64 if any(n.dtype == torch.float64 for n in each) else torch.float32
            norms = torch.stack([n.to(widest) for n in each], 1)
        written([s for s in sums if _is_plain(s)])
        for s, r in zip(sums, real, strict=True):
            if not _is_plain(s):
                s.add_(torch.view_as_complex(r) if s.is_complex() else r)
    return norms


def _in_order(argument: str, values: Any, names: list[str] | None) -> list[Any]:
    """What an argument has for each tensor: by the names, where grad_samples has names, or a list."""
    if not isinstance(values, Mapping):
        return list(values)
    if names is None or set(values) != set(names):
        expected = "a list, as grad_samples is" if names is None else f"the names of grad_samples, {names}"
        raise ValueError(f"{_OPERATOR}: {argument} must have {expected}, got a dict of {list(values)}")
    return [values[name] for name in names]


def _bounds(max_norm: Bounds, names: list[str] | None, count: int) -> float | list[float]:
    """One bound for all, or one for each."""
    bound: Any = max_norm
    if isinstance(bound, (Tensor, str)) or not isinstance(bound, Iterable) or getattr(bound, "ndim", 1) == 0:
        return checked_number(_OPERATOR, "max_norm", bound)
    bounds = _in_order("max_norm", max_norm, names)
    if len(bounds) != count:
        raise ValueError(f"{_OPERATOR}: max_norm must be one bound or one for each of {count}, got {len(bounds)}")
    return [checked_number(_OPERATOR, f"max_norm[{i}]", bound) for i, bound in enumerate(bounds)]


def _dtype_of_sum(grad: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype not in (None, torch.float32, grad.dtype):
        raise ValueError(f"{_OPERATOR}: dtype must be float32 or that of the gradients, {grad.dtype}, got {dtype}")
    return torch.float32 if dtype == torch.float32 and grad.dtype in _HALVES else grad.dtype


def _is_plain(x: Tensor) -> bool:
    """Whether the kernels can write x: of what a graph writes there is no real view."""
    if torch.compiler.is_compiling():
        return x.is_contiguous() and not x.is_complex()
    return x.is_contiguous() and not (x.is_conj() or x.is_neg())


def _real_zeros(x: Tensor) -> Tensor:
    dtype = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(x.dtype, x.dtype)
    return torch.zeros((*x.shape, 2) if x.is_complex() else x.shape, dtype=dtype, device=x.device)


def _check(grads: list[Tensor]) -> None:
    for index, grad in enumerate(grads):
        if not isinstance(grad, Tensor):
            raise TypeError(f"{_OPERATOR}: grad_samples must be tensors, got {type(grad).__name__} at index {index}")
        check_plain(_OPERATOR, "grad_samples", grad, index)
        if (grad.dtype not in FLOATING and grad.dtype not in COMPLEX) or grad.layout != torch.strided:
            expected = "strided float64, float32, bfloat16, float16, complex64 or complex128"
            raise TypeError(
                f"{_OPERATOR}: grad_samples must be {expected}, got {grad.layout} {grad.dtype} at index {index}"
            )
        if grad.dim() == 0:
            raise ValueError(f"{_OPERATOR}: grad_samples must have a dimension of samples, got a 0-d tensor at {index}")
        if grad.device != grads[0].device:
            raise RuntimeError(
                f"{_OPERATOR}: gradients of one call must be on one device, got {grads[0].device} at index 0 and "
                f"{grad.device} at index {index}"
            )
        if len(grad) != len(grads[0]):
            raise ValueError(
                f"{_OPERATOR}: grad_samples must have one batch size, got {len(grads[0])} at index 0 and {len(grad)} "
                f"at index {index}"
            )


def _check_out(grads: list[Tensor], sums: list[Tensor], dtype: torch.dtype | None) -> None:
    if len(sums) != len(grads):
        raise ValueError(
            f"{_OPERATOR}: out must have a tensor for each of grad_samples, got {len(sums)} for {len(grads)}"
        )
    for index, (total, grad) in enumerate(zip(sums, grads, strict=True)):
        own = _dtype_of_sum(grad, dtype)
        widened = dtype is None and total.dtype == torch.float32 and grad.dtype in _HALVES
        if total.shape != grad.shape[1:] or not (total.dtype == own or widened):
            raise ValueError(
                f"{_OPERATOR}: out must have the shape and dtype of one sample, {tuple(grad.shape[1:])} {own}, "
                f"got {tuple(total.shape)} {total.dtype} at index {index}"
            )
        if total.device != grad.device:
            raise RuntimeError(
                f"{_OPERATOR}: out must be on the device of grad_samples, {grad.device}, got {total.device} at index "
                f"{index}"
            )
    if not (torch.compiler.is_compiling() or functorch_active() or dispatch_modes()):  # where nobody knows of memory
        _check_memory(sums)


def _check_memory(sums: list[Tensor]) -> None:
    for index, total in enumerate(sums):
        if total.numel() > 0 and shares_memory(total.shape, total.stride()):
            raise ValueError(
                f"{_OPERATOR}: out must have an element for each of a sample, got one whose elements share memory at "
                f"index {index} (an expanded tensor?)"
            )
    shared = sharing(sums)
    if shared is not None:
        raise ValueError(
            f"{_OPERATOR}: out must be tensors with memory of their own, got one place for those at index {shared[0]} "
            f"and {shared[1]}"
        )
