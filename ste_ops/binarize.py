"""Straight-through steps: a step function forward, a surrogate derivative backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ste_ops._functions import binarize as _functions
from ste_ops._functions._custom import custom_step as _custom_step
from ste_ops.surrogate import Clip, Custom, Surrogate

_DEFAULT = Clip(1.0)
_FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def _check(operator: str, x: Tensor, surrogate: Surrogate) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{operator}: x must be a tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATING:
        raise TypeError(f"{operator}: x must be float64, float32, bfloat16 or float16, got {x.dtype}")
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"{operator}: surrogate must be one of ste_ops.surrogate, got {surrogate!r}")


def _apply(
    function: type[_functions.Binarize], operator: str, x: Tensor, surrogate: Surrogate, *threshold: float
) -> Tensor:
    _check(operator, x, surrogate)
    if isinstance(surrogate, Custom):
        return _custom_step(operator, threshold, x, surrogate.slope)
    a, b = surrogate.parameters
    parameters = None
    if surrogate.saves == "input" and (isinstance(a, Tensor) or isinstance(b, Tensor) or torch.compiler.is_compiling()):
        a, b, parameters = 0.0, 0.0, _parameters(a, b, x.device)
    return function.apply(x, surrogate.number, a, b, surrogate.factor, parameters, *threshold)[0]


def _parameters(a: float | Tensor, b: float | Tensor, device: torch.device) -> Tensor:
    """The parameters of a curve as a tensor.

    Under torch.compile numbers too: one that changes stays symbolic as a factor, while as an operator's argument Dynamo
    would make a new graph for each value.
    """
    one = torch.ones((), dtype=torch.float64, device=device)
    return torch.stack([p.detach().to(one) if isinstance(p, Tensor) else one * p for p in (a, b)])


def heaviside(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """The Heaviside step with a straight-through gradient: 1 where x > 0 and 0 elsewhere.

    Zero at both zeros and at NaN, as ``(x > 0).float()``. The gradient of x is the incoming gradient times
    ``surrogate``'s derivative at x, and exactly 0 where that is 0. One bit an element is kept for the backward with
    `Clip` and `Rect`, nothing with `Identity`, x itself with the curves. The backward is differentiable in its incoming
    gradient, and in x as the surrogate's derivative is; forward-mode tangents, ``torch.func``, ``vmap`` and
    ``torch.compile(fullgraph=True)`` use the same surrogate. Plain ``gradcheck`` fails on it by design: the numeric
    derivative of a step is 0.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        surrogate: what stands in for the derivative; default ``Clip(1.0)``.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or surrogate is none of `ste_ops.surrogate`.

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
    return _apply(_functions.Heaviside, "heaviside", x, surrogate)


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
    return _apply(_functions.Sign, "sign", x, surrogate)


def ternary(x: Tensor, threshold: float = 0.05, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """Three levels with a straight-through gradient: +1 where x > threshold, -1 where x < -threshold, 0 between.

    0 at the bounds, NaN at NaN. Gradient, transforms and memory as in `heaviside`; the surrogate does not depend on
    the threshold.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        threshold: a finite number >= 0; compared in float32 (float64 for float64).
        surrogate: what stands in for the derivative; default ``Clip(1.0)``.

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
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not 0 <= threshold < math.inf:
        raise ValueError(f"ternary: threshold must be a finite number >= 0, got {threshold!r}")
    return _apply(_functions.Ternary, "ternary", x, surrogate, threshold)
