"""Clipping each sample of a batch before the samples are summed, for training with differential privacy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ste_ops._checks import COMPLEX, FLOATING, check_plain, checked_number
from ste_ops._library import ops
from ste_ops.functional.clip._lists import as_stored, written

_OPERATOR = "clip_per_sample_"


@overload
def clip_per_sample_(
    grad_samples: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    out: Sequence[Tensor] | None = None,
    return_norms: Literal[False] = False,
) -> list[Tensor]: ...


@overload
def clip_per_sample_(
    grad_samples: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    out: Sequence[Tensor] | None = None,
    return_norms: Literal[True],
) -> tuple[list[Tensor], Tensor]: ...


def clip_per_sample_(
    grad_samples: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    out: Sequence[Tensor] | None = None,
    return_norms: bool = False,
) -> list[Tensor] | tuple[list[Tensor], Tensor]:
    """The sum over a batch of each sample's gradient, scaled to a norm of at most max_norm.

    A sample's norm is the 2-norm of its part of all tensors together, and its gradient is multiplied by
    ``min(1, max_norm / (norm + 1e-6))``, as Opacus does in its flat clipping. grad_samples are read twice and never
    written; no scaled copy of them is made. Norms and sums are taken in float64 in the order of the samples. No noise
    is added: that is yours to do, on the sums. A sample whose norm is NaN or infinite makes the sums NaN.

    Args:
        grad_samples: tensors of shape [batch, ...], one for each parameter, or one tensor; of one batch size and one
            device, float64, float32, bfloat16, float16, complex64 and complex128 mixed as you like.
            ``torch.func.vmap(torch.func.grad(...))`` makes them, and so do Opacus' ``p.grad_sample``. One that is not
            contiguous is copied.
        max_norm: the bound, >= 0.
        out: tensors of the shapes and dtypes of one sample that the sums are added to, in place, for batches that come
            in parts. New ones by default.
        return_norms: give the samples' norms before clipping too.

    Returns:
        A list with the sum for each tensor, of its shape without the first dimension and of its dtype: ``out`` where it
        was given. With ``return_norms`` ``(sums, norms)``: norms of shape [batch], float32, float64 if any tensor is.

    Raises:
        ValueError: max_norm is negative or NaN; batch sizes differ; a tensor has no dimension; ``out`` does not fit.
        TypeError: a tensor is integer or sparse.
        RuntimeError: the tensors are on several devices. Nothing has been written to ``out`` then.

    Example:
        >>> import torch, ste_ops
        >>> grad_samples = [torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor([0.0, 0.0])]
        >>> ste_ops.clip_per_sample_(grad_samples, max_norm=1.0, return_norms=True)
        ([tensor([0.9000, 1.2000]), tensor(0.)], tensor([5.0000, 0.5000]))
    """
    max_norm = checked_number(_OPERATOR, "max_norm", max_norm)
    grads = [grad_samples] if isinstance(grad_samples, Tensor) else list(grad_samples)
    _check(grads)
    if out is None:
        sums = [torch.zeros(g.shape[1:], dtype=g.dtype, device=g.device) for g in grads]
    else:
        sums = list(out)
        _check_out(grads, sums)
    if not grads:
        return (sums, torch.zeros(0)) if return_norms else sums
    with torch.no_grad():
        dense = [s if _is_plain(s) else torch.zeros(s.shape, dtype=s.dtype, device=s.device) for s in sums]
        rows = [as_stored(g.resolve_conj().resolve_neg()).contiguous() for g in grads]
        norms = ops.clip_per_sample_(rows, [as_stored(d) for d in dense], max_norm)
        if out is not None:
            written([s for s, d in zip(sums, dense, strict=True) if s is d])
            for s, d in zip(sums, dense, strict=True):
                if s is not d:
                    s.add_(d)
    return (sums, norms) if return_norms else sums


def _is_plain(x: Tensor) -> bool:
    return x.is_contiguous() and (torch.compiler.is_compiling() or not (x.is_conj() or x.is_neg()))


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
        if len(grad) != len(grads[0]):
            raise ValueError(
                f"{_OPERATOR}: grad_samples must have one batch size, got {len(grads[0])} at index 0 and {len(grad)} "
                f"at index {index}"
            )


def _check_out(grads: list[Tensor], sums: list[Tensor]) -> None:
    if len(sums) != len(grads):
        raise ValueError(
            f"{_OPERATOR}: out must have a tensor for each of grad_samples, got {len(sums)} for {len(grads)}"
        )
    for index, (total, grad) in enumerate(zip(sums, grads, strict=True)):
        if total.shape != grad.shape[1:] or total.dtype != grad.dtype:
            raise ValueError(
                f"{_OPERATOR}: out must have the shape and dtype of one sample, {tuple(grad.shape[1:])} {grad.dtype}, "
                f"got {tuple(total.shape)} {total.dtype} at index {index}"
            )
