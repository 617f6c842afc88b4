"""The binarizers: a step function forward, the derivative of a surrogate backward."""

from __future__ import annotations

from torch import Tensor

from ste_ops._checks import check_held, check_tensor, checked_at_zero, checked_finite
from ste_ops._fx import call_node
from ste_ops.surrogate import Clip, Surrogate
from ste_ops.surrogate.base import check_surrogate

__all__ = ["heaviside", "sign", "ternary"]

_DEFAULT = Clip(1.0)


def _check(operator: str, x: Tensor, surrogate: Surrogate) -> bool:
    check_surrogate(operator, surrogate)
    return check_tensor(operator, "x", x)


def heaviside(x: Tensor, surrogate: Surrogate = _DEFAULT, at_zero: int = 0) -> Tensor:
    """The Heaviside step with a straight-through gradient: 1 where x > 0 and 0 elsewhere.

    Zero at both zeros and at NaN, as ``(x > 0).float()``; with ``at_zero=1`` 1 at both zeros, as ``(x >= 0).float()``.
    The gradient of x is the incoming gradient times ``surrogate``'s derivative at x, and exactly 0 where that is 0. One
    bit an element is kept for the backward with `Clip` and `Rect`, nothing with `Identity`, x itself with the curves.
    The backward is differentiable in its incoming gradient, and in x as the surrogate's derivative is; forward-mode
    tangents, ``torch.func``, ``vmap`` and ``torch.compile(fullgraph=True)`` use the same surrogate. Plain ``gradcheck``
    fails on it by design: the numeric derivative of a step is 0.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        surrogate: what stands in for the derivative; default ``Clip(1.0)``.
        at_zero: 0, or 1 as in SpikingJelly, whose neurons fire at their threshold.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or surrogate is none of `ste_ops.surrogate`.
        ValueError: at_zero is neither 0 nor 1.

    Source: Bengio et al., arXiv:1308.3432; the clipped form BinaryNet, arXiv:1602.02830.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-0.5, 0.3, 1.2, -0.8], requires_grad=True)
        >>> y = ste_ops.heaviside(x)
        >>> y.detach()
        tensor([0., 1., 1., 0.])
        >>> y.sum().backward()
        >>> x.grad
        tensor([1., 1., 0., 1.])
    """
    if _check("heaviside", x, surrogate):
        return call_node(heaviside, locals())
    if at_zero and checked_at_zero("heaviside", at_zero):
        return surrogate._binarize("heaviside_from_zero", x)
    return surrogate._binarize("heaviside", x)


def sign(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """The sign with a straight-through gradient: +1 where x >= 0 and -1 elsewhere, never 0.

    +1 at both zeros, -1 at NaN. Gradient, transforms and memory as in `heaviside`.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        surrogate: what stands in for the derivative; default ``Clip(1.0)``.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or surrogate is none of `ste_ops.surrogate`.

    Source: BinaryNet (arXiv:1602.02830, eq. 1, which also takes 0 to +1); Larq's ``ste_sign``.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([-1.5, -0.0, 0.2], requires_grad=True)
        >>> y = ste_ops.sign(w)
        >>> y.detach()
        tensor([-1.,  1.,  1.])
        >>> y.sum().backward()
        >>> w.grad
        tensor([0., 1., 1.])
    """
    if _check("sign", x, surrogate):
        return call_node(sign, locals())
    return surrogate._binarize("sign", x)


def ternary(x: Tensor, surrogate: Surrogate = _DEFAULT, threshold: float | Tensor = 0.05) -> Tensor:
    """Three levels with a straight-through gradient: +1 where x > threshold, -1 where x < -threshold, 0 between.

    0 at the bounds, NaN at NaN. Gradient, transforms and memory as in `heaviside`; the surrogate does not depend on
    the threshold.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        surrogate: what stands in for the derivative; default ``Clip(1.0)``.
        threshold: a finite number >= 0, or a floating tensor of one element on x's device, which is read there and not
            checked; compared in float32 (float64 for float64).

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or surrogate is none of `ste_ops.surrogate`.
        ValueError: threshold is not a finite number >= 0.

    Source: ternary weight networks (Li et al., arXiv:1605.04711), which choose the threshold from the weights' mean;
    the default is Larq's ``ste_tern``.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([-1.5, -0.02, 0.2], requires_grad=True)
        >>> y = ste_ops.ternary(w)
        >>> y.detach()
        tensor([-1.,  0.,  1.])
        >>> y.sum().backward()
        >>> w.grad
        tensor([0., 1., 1.])
    """
    if _check("ternary", x, surrogate):
        return call_node(ternary, locals())
    if type(threshold) is not float and isinstance(threshold, Tensor):
        check_held("ternary", "threshold", threshold)
        return surrogate._binarize_held("ternary", x, threshold)
    return surrogate._binarize("ternary", x, checked_finite("ternary", "threshold", threshold, zero=True))
