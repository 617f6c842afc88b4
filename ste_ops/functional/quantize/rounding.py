"""Rounding and clamping with the identity as gradient."""

from __future__ import annotations

import math

from torch import Generator, Tensor

from ste_ops._checks import check_number, check_tensor
from ste_ops._functions.quantize import rounding as _functions
from ste_ops._fx import call_node
from ste_ops._random import draw_seed


def round(x: Tensor) -> Tensor:
    """The nearest integer, half to even, with a straight-through gradient.

    -0.0 where a negative x rounds to zero; NaN and infinities stay. The gradient of x is the incoming gradient
    unchanged: nothing is kept for the backward. ``torch.func``, forward-mode AD, ``vmap`` and
    ``torch.compile(fullgraph=True)`` use the same gradient.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes.

    Source: Bengio et al., arXiv:1308.3432.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-1.2, 0.5, 1.5], requires_grad=True)
        >>> y = ste_ops.round(x)
        >>> y.detach()
        tensor([-1.,  0.,  2.])
        >>> y.sum().backward()
        >>> x.grad
        tensor([1., 1., 1.])
    """
    if check_tensor("round", "x", x):
        return call_node(round, locals())
    return _functions.Round.apply(x)


def floor(x: Tensor) -> Tensor:
    """The largest integer not above x, with a straight-through gradient.

    NaN and infinities stay.

    The gradient and the transforms are those of `round`.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.floor(torch.tensor([-1.2, 0.5, 2.0]))
        tensor([-2.,  0.,  2.])
    """
    if check_tensor("floor", "x", x):
        return call_node(floor, locals())
    return _functions.Floor.apply(x)


def ceil(x: Tensor) -> Tensor:
    """The smallest integer not below x, with a straight-through gradient.

    -0.0 for x in (-1, 0); NaN and infinities stay.

    The gradient and the transforms are those of `round`.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.ceil(torch.tensor([-1.2, 0.5, 2.0]))
        tensor([-1.,  1.,  2.])
    """
    if check_tensor("ceil", "x", x):
        return call_node(ceil, locals())
    return _functions.Ceil.apply(x)


def trunc(x: Tensor) -> Tensor:
    """The integer part of x, toward zero, with a straight-through gradient.

    -0.0 for x in (-1, 0); NaN and infinities stay.

    The gradient and the transforms are those of `round`.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.trunc(torch.tensor([-1.2, 0.5, 2.0]))
        tensor([-1.,  0.,  2.])
    """
    if check_tensor("trunc", "x", x):
        return call_node(trunc, locals())
    return _functions.Trunc.apply(x)


def clamp(x: Tensor, min: float | Tensor, max: float | Tensor) -> Tensor:
    """x clamped to [min, max], with the identity as gradient, outside the range too.

    ``torch.clamp`` stops the gradient outside. A NaN stays, and x where it equals a bound. The bounds are rounded to
    float32 (float64 for float64), and the result to x's dtype.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        min: the lower bound, a number, or ``-math.inf``; a tensor of one element is read on the host.
        max: the upper bound, a number not below min, or ``math.inf``; a tensor likewise.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or a bound is no number.
        ValueError: min > max, or a bound is NaN, or a tensor that requires a gradient, which it cannot get.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
        >>> y = ste_ops.clamp(x, -1.0, 1.0)
        >>> y.detach()
        tensor([-1.0000,  0.5000,  1.0000])
        >>> y.sum().backward()
        >>> x.grad
        tensor([1., 1., 1.])
    """
    if check_tensor("clamp", "x", x):
        return call_node(clamp, locals())
    min, max = check_number("clamp", "min", min), check_number("clamp", "max", max)
    if min > max:
        raise ValueError(f"clamp: min must not be greater than max, got {min} and {max}")
    # No bound rather than an infinite one, which a package of AOTInductor cannot hold.
    return _functions.Clamp.apply(x, None if min == -math.inf else float(min), None if max == math.inf else float(max))


def stochastic_round(x: Tensor, *, generator: Generator | None = None) -> Tensor:
    """x rounded up or down at random so that the mean is x, with a straight-through gradient.

    The magnitude is rounded away from zero with the probability of its fraction, which is exact and read to 64 binary
    places; so integers stay, and the result has x's sign. NaN and infinities stay. A draw belongs to the element's
    place in memory and to a seed that the generator gives (Philox4x32-10), so the same seed rounds alike on CPU, CUDA
    and any number of threads. The gradient of x is the incoming gradient unchanged.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        generator: where the seed comes from, on x's device; default: torch's default generator. It advances by one draw
            a call. Under ``vmap``, ``randomness="different"`` rounds each row under a seed of its own. Under
            `torch.utils.checkpoint` leave it out: see the errors.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or generator is no `torch.Generator`.
        RuntimeError: the generator is on another device; or `torch.utils.checkpoint` computes a call with one again,
            which would draw other values: it puts back torch's default generator alone.

    Source: Gupta et al., arXiv:1502.02551.

    Example:
        >>> import torch, ste_ops
        >>> _ = torch.manual_seed(0)
        >>> y = ste_ops.stochastic_round(torch.full((10000,), 2.25))
        >>> y.unique(), y.mean().mul(100).round().div(100)
        (tensor([2., 3.]), tensor(2.2500))
    """
    if check_tensor("stochastic_round", "x", x):
        return call_node(stochastic_round, locals())
    return _functions.StochasticRound.apply(x, draw_seed("stochastic_round", x.device, generator))
