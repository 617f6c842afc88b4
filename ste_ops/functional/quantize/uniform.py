"""Uniform quantizers: a scale that is given or learned, and clipped activations."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._checks import (
    check_axis,
    check_number,
    check_parameter,
    check_range,
    check_scale,
    check_tensor,
    checked_bits,
)
from ste_ops._functions.base import compiling, needs_function, recording
from ste_ops._functions.compiled.masked import TransparentDorefaActivation, TransparentFakeQuantize
from ste_ops._functions.quantize import uniform as _functions
from ste_ops._functions.quantize.lsq import LSQ, MaskedLSQ
from ste_ops._functions.quantize.positive import LEAST_STEP as LEAST_STEP
from ste_ops._functions.quantize.positive import PositiveLSQ, PositiveMaskedLSQ, PositivePACT
from ste_ops._functions.quantize.positive import in_use as in_use
from ste_ops._fx import call_node


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | float,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
) -> Tensor:
    """x on the grid of an integer dtype: (clamp(round(x / scale) + zero_point) - zero_point) * scale.

    A zero point that need not be whole (a floating tensor, or a number like 0.5) is added before the rounding:
    clamp(round(x / scale + zero_point)). The division is by the reciprocal, as in
    ``torch.fake_quantize_per_tensor_affine`` and ``torch.fake_quantize_per_channel_affine``, with which the results
    agree bit for bit. Half is rounded to even, a NaN stays, an infinity becomes the bound. The gradient of x is the
    incoming one where the integer lies in [quant_min, quant_max] before it is clamped, and exactly 0 elsewhere and at
    NaN: one bit an element is kept for the backward. scale and zero_point get no gradient; `lsq` learns a scale. The
    backward is differentiable in its incoming gradient.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        scale: positive and finite, and so its reciprocal: a number, a tensor of one element, or with axis a 1-d tensor
            of x.shape[axis] elements, on x's device.
        zero_point: as scale, of an integer or a floating dtype; it may lie outside [quant_min, quant_max].
        quant_min: the smallest integer.
        quant_max: the largest integer, greater than quant_min.
        axis: the dimension that a scale or zero point for each channel belongs to; default the whole tensor.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or another argument is of a wrong type.
        ValueError: quant_min >= quant_max, a scale or zero point of a wrong shape or device, an invalid number as
            scale.
        IndexError: axis is out of range.
        RuntimeError: a tensor scale on the CPU holds an invalid value. On CUDA, where the host would have to wait for
            it, an invalid scale makes every element it belongs to NaN.

    Source: Jacob et al., arXiv:1712.05877; Krishnamoorthi, arXiv:1806.08342.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-3.0, 0.26, 0.74, 9.0], requires_grad=True)
        >>> y = ste_ops.fake_quantize(x, 0.5, 0, -4, 3)
        >>> y.detach()
        tensor([-2.0000,  0.5000,  0.5000,  1.5000])
        >>> y.sum().backward()
        >>> x.grad
        tensor([0., 1., 1., 0.])
    """
    if check_tensor("fake_quantize", "x", x):
        return call_node(fake_quantize, locals())
    operator = "fake_quantize"
    check_range(operator, quant_min, quant_max)
    axis = check_axis(operator, x, axis)
    scales = zero_points = None
    if isinstance(scale, Tensor):
        check_tensor(operator, "scale", scale)
        check_parameter(operator, "scale", scale, x, axis)
        scales, scale = scale.detach(), 1.0
    else:
        check_scale(operator, scale, x.dtype)
    if isinstance(zero_point, Tensor):
        if zero_point.is_complex() or zero_point.dtype == torch.bool:
            raise TypeError(f"{operator}: zero_point must be of an integer or floating dtype, got {zero_point.dtype}")
        check_parameter(operator, "zero_point", zero_point, x, axis)
        zero_points, zero_point = zero_point.detach(), 0.0
    else:
        check_number(operator, "zero_point", zero_point)
    arguments = x, scales, zero_points, float(scale), float(zero_point), quant_min, quant_max, axis
    if compiling():
        return TransparentFakeQuantize.apply(*arguments)
    return _functions.FakeQuantize.apply(*arguments)[0]


def lsq(
    x: Tensor,
    scale: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    grad_scale: float | None = None,
) -> Tensor:
    """Learned step size quantization: clamp(round(x / scale), quant_min, quant_max) * scale, and scale is learned.

    The gradient of x is the incoming one where quant_min < x / scale < quant_max, and exactly 0 elsewhere. That of
    scale is the sum over the elements that share it of the incoming gradient times

    - quant_min where x / scale <= quant_min, and quant_max where x / scale >= quant_max,
    - round(x / scale) - x / scale between them,

    times grad_scale; added in float64 in an order that the shape decides, so the bits do not depend on the number of
    threads. x itself and scale are kept for the backward, which allocates nothing but the two gradients; where scale
    needs no gradient, one bit an element, as in `fake_quantize`. A NaN stays and makes the gradient of its scale NaN.
    The backward is differentiable in its incoming gradient, with x and scale as constants; forward-mode tangents use
    the same derivatives, grad_scale included.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        scale: positive and finite, and so its reciprocal: a floating tensor of one element, or with axis a 1-d one of
            x.shape[axis] elements, on x's device.
        quant_min: the smallest integer: 0 for activations, -2^(bits - 1) for weights.
        quant_max: the largest integer, greater than quant_min.
        axis: the dimension that a scale for each channel belongs to; default the whole tensor.
        grad_scale: what the gradient of scale is multiplied by; default 1 / sqrt(N * quant_max), N being the number of
            elements of x that share a scale. The paper counts the weights of a layer, or the features of one sample of
            activations: this function knows no batch, `ste_ops.nn.LSQ` does.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x or scale is no floating tensor of those dtypes, or another argument is of a wrong type.
        ValueError: quant_min >= quant_max, a scale of a wrong shape or device, quant_max <= 0 without a grad_scale.
        IndexError: axis is out of range.
        RuntimeError: a scale on the CPU holds an invalid value. On CUDA it makes every element it belongs to NaN.

    Source: Esser et al., "Learned Step Size Quantization", arXiv:1902.08153, eq. 1 to 3 and section 2.2.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-3.0, 0.3, 9.0], requires_grad=True)
        >>> scale = torch.tensor(0.5, requires_grad=True)
        >>> y = ste_ops.lsq(x, scale, -4, 3, grad_scale=1.0)
        >>> y.detach()
        tensor([-2.0000,  0.5000,  1.5000])
        >>> y.sum().backward()
        >>> x.grad, scale.grad  # -4 + (1 - 0.6) + 3
        (tensor([0., 1., 0.]), tensor(-0.6000))
    """
    if check_tensor("lsq", "x", x) or check_tensor("lsq", "scale", scale):
        return call_node(lsq, locals())
    grad_scale = checked_grad_scale("lsq", quant_min, quant_max, grad_scale)
    axis = axis_of_learned("lsq", x, {"scale": scale}, axis)
    if not needs_function(scale) and not recording():
        return MaskedLSQ.apply(x, scale.detach(), quant_min, quant_max, axis)[0]
    return LSQ.apply(x, scale, quant_min, quant_max, axis, grad_scale, False)


def learned_step(
    x: Tensor,
    scale: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    grad_scale: float | None,
    of_sample: bool,
) -> Tensor:
    """`lsq` of a module, which has checked its numbers; a scale that was pushed to 0 or below is the least step.

    Without a grad_scale the elements of one sample are counted if `of_sample`: dimension 0 is the batch.
    """
    if check_tensor("lsq", "x", x) or check_tensor("lsq", "scale", scale):
        return call_node(learned_step, locals())
    axis = axis_of_learned("lsq", x, {"scale": scale}, axis)
    if not (needs_function(scale) or recording() or compiling()):
        return PositiveMaskedLSQ.apply(x, scale.detach(), quant_min, quant_max, axis)[0]
    return PositiveLSQ.apply(x, scale, quant_min, quant_max, axis, grad_scale, of_sample)[0]


def axis_of_learned(operator: str, x: Tensor, parameters: dict[str, Tensor], axis: int | None) -> int:
    """The axis along which the parameters have one element a channel, or -1."""
    axis = check_axis(operator, x, axis)
    for name, parameter in parameters.items():
        check_parameter(operator, name, parameter, x, axis)
    if axis >= 0 and x.shape[axis] != 1 and all(parameter.numel() == 1 for parameter in parameters.values()):
        return -1
    return axis


def checked_grad_scale(operator: str, quant_min: int, quant_max: int, grad_scale: float | None) -> float | None:
    """grad_scale as a number, or None where the range has a default for it."""
    check_range(operator, quant_min, quant_max)
    if grad_scale is not None:
        return float(check_number(operator, "grad_scale", grad_scale))
    if quant_max <= 0:
        raise ValueError(
            f"{operator}: grad_scale must be given where quant_max is not positive, got quant_max {quant_max}: "
            "the default is 1 / sqrt(N * quant_max)"
        )
    return None


def pact(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Parameterized clipping activation: x clipped to [0, alpha] in 2^bits - 1 steps, and alpha is learned.

    With n = 2^bits - 1 it is round(clip(x, 0, alpha) * (n / alpha)) * (alpha / n). The gradient of x is the incoming
    one where 0 <= x < alpha, and exactly 0 elsewhere; that of alpha is the sum of the incoming gradient where
    x >= alpha, added in float64 in an order that the shape decides. Two bits an element are kept for the backward,
    which is differentiable in its incoming gradient. A NaN stays and passes no gradient.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        alpha: a floating tensor of one element, 0-d or 1-d, positive and finite, on x's device.
        bits: from 1 to 24.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x or alpha is no floating tensor of those dtypes, or bits is no int.
        ValueError: alpha of a wrong shape or device, bits out of range.
        RuntimeError: alpha on the CPU is not positive and finite, or so small that n / alpha is not. On CUDA it makes
            every element NaN.

    Source: Choi et al., "PACT", arXiv:1805.06085, eq. 1 to 3.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-1.0, 0.6, 1.4, 7.0], requires_grad=True)
        >>> alpha = torch.tensor(3.0, requires_grad=True)
        >>> y = ste_ops.pact(x, alpha, 2)
        >>> y.detach()
        tensor([0., 1., 1., 3.])
        >>> y.sum().backward()
        >>> x.grad, alpha.grad
        (tensor([0., 1., 1., 0.]), tensor(1.))
    """
    if check_tensor("pact", "x", x) or check_tensor("pact", "alpha", alpha):
        return call_node(pact, locals())
    check_parameter("pact", "alpha", alpha, x, -1)
    checked_bits("pact", bits)
    return _functions.PACT.apply(x, alpha, bits)[0]


def learned_bound(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """`pact` of a module, which has checked its bits; an alpha that was pushed to 0 or below is the least step."""
    if check_tensor("pact", "x", x) or check_tensor("pact", "alpha", alpha):
        return call_node(learned_bound, locals())
    check_parameter("pact", "alpha", alpha, x, -1)
    return PositivePACT.apply(x, alpha, bits)[0]


def dorefa_activation(x: Tensor, bits: int) -> Tensor:
    """x clipped to [0, 1] in 2^bits - 1 steps: round(clip(x, 0, 1) * n) / n with n = 2^bits - 1.

    The gradient of x is the incoming one on [0, 1], bounds included, and exactly 0 elsewhere and at NaN: one bit an
    element is kept for the backward, which is differentiable in its incoming gradient. A NaN stays.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        bits: from 1 to 24.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or bits is no int.
        ValueError: bits is out of range.

    Source: Zhou et al., "DoReFa-Net", arXiv:1606.06160, eq. 11.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-0.5, 0.4, 1.0, 1.5], requires_grad=True)
        >>> y = ste_ops.dorefa_activation(x, 1)
        >>> y.detach()
        tensor([0., 0., 1., 1.])
        >>> y.sum().backward()
        >>> x.grad
        tensor([0., 1., 1., 0.])
    """
    if check_tensor("dorefa_activation", "x", x):
        return call_node(dorefa_activation, locals())
    checked_bits("dorefa_activation", bits)
    if compiling():
        return TransparentDorefaActivation.apply(x, bits)
    return _functions.DorefaActivation.apply(x, bits)[0]
