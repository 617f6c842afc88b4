"""Reference of gradient clipping.

The norm is taken in float64 over all elements of the distinct tensors, and scaling is a product in float32 (float64 for
float64). Tensors are distinct where their memory, dtype, shape or strides differ. Sums that leave the range of float64
are not scaled back into it: there the native norm is the better one.
"""

from __future__ import annotations

import functools
import math
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ste_ops.functional.clip.result import ClipResult

_Tensors = Tensor | Iterable[Tensor]
_WIDE = (torch.float64, torch.complex128)

__all__ = [
    "clip_grad_agc_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_gradient_norm",
    "clip_gradient_value",
    "clip_grads_with_norm_",
    "clip_per_sample_",
    "get_total_norm",
]


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    found: dict[Any, Tensor] = {}
    for t in tensors:
        empty_or_sparse = t.layout != torch.strided or t.numel() == 0
        key = id(t) if empty_or_sparse else (t.data_ptr(), t.dtype, t.shape, t.stride())
        found.setdefault(key, t)
    return list(found.values())


def _gradients(parameters: _Tensors) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    return _distinct(p.grad for p in parameters if p.grad is not None)


def _magnitudes(x: Tensor) -> Tensor:
    """In float64."""
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64).abs()


def _vector_norm(magnitudes: Tensor, p: float, dims: tuple[int, ...] | None = None) -> Tensor:
    """The p-norm of float64 magnitudes over all of them, or over dims, which stay with size 1."""
    dims = tuple(range(magnitudes.dim())) if dims is None else dims
    if not dims:
        return (magnitudes != 0).double() if p == 0 else magnitudes
    if p == 0:
        return (magnitudes != 0).sum(dims, keepdim=True).double()
    if p == math.inf:
        return magnitudes.amax(dims, keepdim=True)
    if p == -math.inf:
        return magnitudes.amin(dims, keepdim=True)
    return (magnitudes**p).sum(dims, keepdim=True) ** (1 / p)


def _check(operator: str, argument: str, value: float) -> float:
    if not float(value) >= 0:
        raise ValueError(f"{operator}: {argument} must be a non-negative number, got {value}")
    return float(value)


def _check_norm_type(operator: str, norm_type: float) -> float:
    return -math.inf if float(norm_type) == -math.inf else _check(operator, "norm_type", norm_type)


def _norm_of(tensors: Sequence[Tensor], p: float, dtype: torch.dtype) -> Tensor:
    dense = [t.detach().coalesce().values() if t.is_sparse else t for t in tensors]
    magnitudes = torch.cat([_magnitudes(t.to(tensors[0].device)).flatten() for t in dense])
    total_norm = _vector_norm(magnitudes, p).reshape(()) if magnitudes.numel() else torch.tensor(0.0)
    return total_norm.to(dtype).to(tensors[0].device)


def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    return_norms: bool = False,
    parameters: _Tensors | None = None,
) -> Any:
    """The p-norm of all elements of the distinct tensors, 0 where there is none; with return_norms of each one too, or
    of the gradient of each of the parameters."""
    p = _check_norm_type("get_total_norm", norm_type)
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    owners = [parameters] if isinstance(parameters, Tensor) else list(parameters or ())
    if not tensors:
        return (torch.tensor(0.0), torch.zeros(len(owners))) if return_norms else torch.tensor(0.0)
    dtype = torch.float64 if any(t.dtype in _WIDE for t in [*tensors, *owners]) else torch.float32
    total_norm = _norm_of(_distinct(tensors), p, dtype)
    if error_if_nonfinite and not total_norm.isfinite():
        raise RuntimeError(f"The total norm of order {p} for gradients from `parameters` is non-finite")
    if not return_norms:
        return total_norm
    each = tensors if parameters is None else [tensors[0][:0] if q.grad is None else q.grad for q in owners]
    return total_norm, torch.stack([_norm_of([t], p, dtype).to(total_norm.device) for t in each])


@torch.no_grad()
def _rewrite(grad: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Replaces a gradient's (coalesced) values by change(values in float32, or float64)."""
    real = torch.float64 if grad.dtype in _WIDE else torch.float32
    arithmetic = real.to_complex() if grad.is_complex() else real
    coalesced = grad.coalesce() if grad.is_sparse else grad
    values = coalesced._values() if grad.is_sparse else grad
    values.copy_(change(values.to(arithmetic)))
    if coalesced is not grad:
        grad.copy_(coalesced)


def clip_grads_with_norm_(
    parameters: _Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Multiplies by max_norm / (total_norm + 1e-6), taken in float64, unless that is 1 or more."""
    max_norm = _check("clip_grads_with_norm_", "max_norm", max_norm)
    # torch, not Python: 0 / 0 and inf / inf are NaN.
    coefficient = (max_norm / (total_norm.detach().double().cpu() + 1e-6)).item()
    if coefficient >= 1:
        return
    for grad in _gradients(parameters):
        _rewrite(grad, lambda values: values * torch.tensor(coefficient, dtype=values.dtype, device=values.device))


def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: str = "propagate",
    return_result: bool = False,
) -> Any:
    """`get_total_norm` of the gradients, then `clip_grads_with_norm_`; where the norm is NaN or infinite and nonfinite
    is "skip" nothing, and where it is "zero" zeros in all gradients."""
    max_norm = _check("clip_grad_norm_", "max_norm", max_norm)
    if not isinstance(parameters, Tensor):
        given = parameters
        parameters = list(given)
        if not parameters and isinstance(given, types.GeneratorType):
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
    else:
        parameters = [parameters]
    grads = [p.grad for p in parameters if p.grad is not None]
    total_norm, norms = get_total_norm(grads, norm_type, error_if_nonfinite, return_norms=True)
    if total_norm.isfinite() or nonfinite == "propagate":
        clip_grads_with_norm_(parameters, max_norm, total_norm)
    elif nonfinite == "zero":
        for grad in _gradients(parameters):
            _rewrite(grad, torch.zeros_like)
    if return_result:
        positions = tuple(i for i, p in enumerate(parameters) if p.grad is not None)
        return ClipResult(total_norm, norms, max_norm, positions)
    return total_norm


def _clamp(values: Tensor, bound: float) -> Tensor:
    """Where |x| > bound the bound with the sign of x; NaN stays."""
    return torch.where(values.abs() > bound, torch.full_like(values, bound).copysign(values), values)


def clip_grad_value_(parameters: _Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps to the bound as the gradient's dtype holds it."""
    clip_value = _check("clip_grad_value_", "clip_value", clip_value)
    for grad in _gradients(parameters):
        _rewrite(grad, functools.partial(_clamp, bound=torch.tensor(clip_value, dtype=grad.dtype).item()))


def _unit_norms(x: Tensor) -> Tensor:
    """The norm over all dimensions but the first; over all where there are fewer than two. In float64."""
    return _vector_norm(_magnitudes(x), 2.0, tuple(range(1 if x.dim() > 1 else 0, x.dim())))


def clip_grad_agc_(parameters: _Tensors, clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """Where a unit's gradient norm is not below clip_factor times its weights' norm, scales it down to that."""
    clip_factor, eps = _check("clip_grad_agc_", "clip_factor", clip_factor), _check("clip_grad_agc_", "eps", eps)
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    of_grad = {id(p.grad): p for p in parameters if p.grad is not None and p.grad.numel()}
    for grad in _gradients(parameters):
        if grad.numel() == 0:
            continue
        max_norm = _unit_norms(of_grad[id(grad)]).clamp(min=eps) * clip_factor
        norm = _unit_norms(grad)
        coefficient = torch.where(norm < max_norm, 1.0, max_norm / norm.clamp(min=1e-6))
        arithmetic = torch.float64 if grad.dtype in _WIDE else torch.float32
        _rewrite(grad, functools.partial(torch.mul, coefficient.to(arithmetic)))


def _listed(values: Any, names: list[str] | None) -> list[Any]:
    if isinstance(values, Tensor):
        return [values]
    return [values[name] for name in names] if names is not None and isinstance(values, Mapping) else list(values)


def clip_per_sample_(
    grad_samples: _Tensors | Mapping[str, Tensor],
    max_norm: Any,
    *,
    out: Any = None,
    dtype: torch.dtype | None = None,
    return_norms: bool = False,
) -> Any:
    """The sum over the first dimension, each sample times min(1, max_norm / (its norm over all tensors + 1e-6)); with a
    bound for each tensor, times that of the tensor over its norm there."""
    names = list(grad_samples) if isinstance(grad_samples, Mapping) else None
    grads = _listed(grad_samples, names)
    sums = [torch.zeros_like(g[:1].sum(0), dtype=_dtype_of_sum(g, dtype)) for g in grads]
    sums = sums if out is None else _listed(out, names)
    norms = torch.zeros(0)
    if grads:
        of_each = torch.stack([_magnitudes(g).unsqueeze(-1).flatten(1).square().sum(1) for g in grads], 1).sqrt()
        norms = of_each if _has_many(max_norm) else of_each.square().sum(1).sqrt()
        bounds = _listed(max_norm, names) if _has_many(max_norm) else [max_norm] * len(grads)
        for i, (total, g) in enumerate(zip(sums, grads, strict=True)):
            bound = _check("clip_per_sample_", "max_norm", bounds[i])
            coefficient = (bound / (norms[:, i] if norms.dim() > 1 else norms).add(1e-6)).clamp(max=1)
            wide = torch.complex128 if g.is_complex() else torch.float64
            total.copy_(total.to(wide) + torch.einsum("i,i...->...", coefficient.to(wide), g.detach().to(wide)))
        norms = norms.to(torch.float64 if any(g.dtype in _WIDE for g in grads) else torch.float32)
    named = sums if names is None else dict(zip(names, sums, strict=True))
    return (named, norms) if return_norms else named


def _has_many(max_norm: Any) -> bool:
    return isinstance(max_norm, (list, tuple, Mapping))


def _dtype_of_sum(grad: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and grad.dtype in (torch.float16, torch.bfloat16) else grad.dtype


class _ClipGradientValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip_value: float) -> Tensor:
        ctx.clip_value = clip_value
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _clamp(grad, torch.tensor(ctx.clip_value, dtype=grad.dtype).item()), None


def clip_gradient_value(x: Tensor, clip_value: float) -> Tensor:
    """x; its gradient clamped to [-clip_value, clip_value]."""
    return _ClipGradientValue.apply(x, _check("clip_gradient_value", "clip_value", clip_value))


class _ClipGradientNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, max_norm: float, norm_type: float, dims: tuple[int, ...]) -> Tensor:
        ctx.how = max_norm, norm_type, dims
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        max_norm, p, dims = ctx.how
        if grad.numel() == 0:
            return grad, None, None, None
        coefficient = max_norm / (_vector_norm(grad.double().abs(), p, dims) + 1e-6)
        arithmetic = torch.float64 if grad.dtype == torch.float64 else torch.float32
        scaled = (grad.to(arithmetic) * coefficient.to(arithmetic)).to(grad.dtype)
        return torch.where(coefficient >= 1, grad, scaled), None, None, None


def clip_gradient_norm(
    x: Tensor, max_norm: float, norm_type: float = 2.0, dim: int | Sequence[int] | None = None
) -> Tensor:
    """x; its gradient times max_norm / (norm + 1e-6) where that is below 1, the norm taken over dim."""
    max_norm = _check("clip_gradient_norm", "max_norm", max_norm)
    p = _check_norm_type("clip_gradient_norm", norm_type)
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    positive = tuple(sorted(d % max(x.dim(), 1) for d in dims)) if x.dim() else ()
    return _ClipGradientNorm.apply(x, max_norm, p, positive)
