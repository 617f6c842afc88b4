"""Clipping inside the graph: identity forward, the gradient clipped on the way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ste_ops._checks import check_tensor, checked_norm_type, checked_number
from ste_ops._functions import clip as _functions
from ste_ops._fx import call_node


def clip_gradient_value(x: Tensor, clip_value: float | Tensor) -> Tensor:
    """x itself, with its gradient clamped to ``[-clip_value, clip_value]`` on the way back.

    The result is a view of x: clone it before writing into it in place. The backward is differentiable: the derivative
    of the clamp is 1 where it left the gradient alone (bounds and NaN included) and 0 elsewhere. A forward-mode tangent
    passes unchanged, since the forward is the identity; so plain ``gradcheck`` holds where nothing is clipped and
    ``gradgradcheck`` everywhere but at the bound.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        clip_value: the bound, >= 0.

    Returns:
        A view of x.

    Raises:
        ValueError: clip_value is negative or NaN.
        TypeError: x is no floating tensor of those dtypes.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.ones(3, requires_grad=True)
        >>> (ste_ops.clip_gradient_value(x, 1.0) * torch.tensor([-5.0, 0.5, 2.0])).sum().backward()
        >>> x.grad
        tensor([-1.0000,  0.5000,  1.0000])
    """
    if check_tensor("clip_gradient_value", "x", x):
        return call_node(clip_gradient_value, locals())
    clip_value = checked_number("clip_gradient_value", "clip_value", clip_value)
    return _functions.ClipGradientValue.apply(x, clip_value)


def clip_gradient_norm(
    x: Tensor, max_norm: float | Tensor, norm_type: float = 2.0, dim: int | Sequence[int] | None = None
) -> Tensor:
    """x itself, with its gradient scaled on the way back so that its norm is at most max_norm.

    The gradient is multiplied by ``min(1, max_norm / (norm + 1e-6))``, the coefficient of `clip_grad_norm_`. The result
    is a view of x: clone it before writing into it in place. The backward is differentiable, through the norm too. A
    forward-mode tangent passes unchanged, since the forward is the identity. Under ``vmap`` each sample has its own
    norm.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        max_norm: the bound, >= 0.
        norm_type: as in `get_total_norm`.
        dim: the dimensions that a norm is taken over, so that the others keep their own: ``dim=-1`` clips each row,
            ``dim=(1, 2, 3)`` each image of a batch. None, the default, takes one norm over all of x.

    Returns:
        A view of x.

    Raises:
        ValueError: max_norm is negative or NaN; norm_type is NaN, or negative and not -inf; dim names one twice.
        IndexError: dim is out of range.
        TypeError: x is no floating tensor of those dtypes.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.zeros(2, 2, requires_grad=True)
        >>> y = ste_ops.clip_gradient_norm(x, 1.0, dim=1)
        >>> y.backward(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        >>> x.grad
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if check_tensor("clip_gradient_norm", "x", x):
        return call_node(clip_gradient_norm, locals())
    max_norm = checked_number("clip_gradient_norm", "max_norm", max_norm)
    p = checked_norm_type("clip_gradient_norm", norm_type)
    return _functions.ClipGradientNorm.apply(x, max_norm, p, _dims(x, dim))


def _dims(x: Tensor, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(x.dim()))
    dims = tuple(dim) if isinstance(dim, Iterable) else (dim,)
    rank = max(x.dim(), 1)
    for d in dims:
        if not -rank <= d < rank:
            raise IndexError(f"clip_gradient_norm: dim must be in [{-rank}, {rank - 1}], got {d}")
    positive = sorted(d % rank for d in dims)
    if len(set(positive)) != len(positive):
        raise ValueError(f"clip_gradient_norm: dim must name each dimension once, got {dim}")
    return tuple(positive) if x.dim() else ()
