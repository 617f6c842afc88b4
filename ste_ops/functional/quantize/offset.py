"""The uniform quantizer whose scale and offset are learned."""

from __future__ import annotations

from torch import Tensor

from ste_ops._checks import check_tensor
from ste_ops._functions.base import compiling, needs_function, recording
from ste_ops._functions.quantize.lsq import LSQPlus, MaskedLSQPlus
from ste_ops._functions.quantize.positive import PositiveLSQPlus, PositiveMaskedLSQPlus
from ste_ops._fx import call_node
from ste_ops.functional.quantize.uniform import axis_of_learned, checked_grad_scale


def lsq_plus(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    grad_scale: float | None = None,
) -> Tensor:
    """`lsq` with a learned offset: clamp(round(v), quant_min, quant_max) * scale + offset of v = (x - offset) / scale.

    For activations that are negative in part, such as those of Swish: the grid may begin where they do. The gradient of
    x is the incoming one where quant_min < v < quant_max, and exactly 0 elsewhere. That of scale is the sum over the
    elements that share it of the incoming gradient times

    - quant_min where v <= quant_min, and quant_max where v >= quant_max,
    - round(v) - v between them;

    that of offset is the sum of the incoming gradient that does not pass to x; both times grad_scale, and added in
    float64 in an order that the shape decides. x itself, scale and offset are kept for the backward, which is one pass;
    where neither scale nor offset needs a gradient, one bit an element. A NaN stays, and makes the gradient of its
    scale NaN. The backward is differentiable in its incoming gradient, with x, scale and offset as constants;
    forward-mode tangents use the same derivatives, grad_scale included.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16.
        scale: positive and finite, and so its reciprocal: a floating tensor of one element, or with axis a 1-d one of
            x.shape[axis] elements, on x's device.
        offset: finite, in units of x; of a shape as scale may have, which need not be that of scale.
        quant_min: the smallest integer: 0, or -2^(bits - 1).
        quant_max: the largest integer, greater than quant_min.
        axis: the dimension that a scale or an offset for each channel belongs to; default the whole tensor.
        grad_scale: what the gradients of scale and offset are multiplied by; default 1 / sqrt(N * quant_max), N being
            the number of elements of x that share both.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x, scale or offset is no floating tensor of those dtypes, or another argument is of a wrong type.
        ValueError: quant_min >= quant_max, a scale or offset of a wrong shape or device, quant_max <= 0 without a
            grad_scale.
        IndexError: axis is out of range.
        RuntimeError: a scale or an offset on the CPU holds an invalid value. On CUDA it makes every element it belongs
            to NaN, an infinite offset infinite.

    Source: Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization",
    arXiv:2004.09576, section 3.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-3.0, 0.05, 9.0], requires_grad=True)
        >>> scale, offset = torch.tensor(0.5, requires_grad=True), torch.tensor(-0.25, requires_grad=True)
        >>> y = ste_ops.lsq_plus(x, scale, offset, 0, 3, grad_scale=1.0)
        >>> y.detach()
        tensor([-0.2500,  0.2500,  1.2500])
        >>> y.sum().backward()
        >>> x.grad, scale.grad, offset.grad  # 0 + (1 - 0.6) + 3; 1 + 0 + 1
        (tensor([0., 1., 0.]), tensor(3.4000), tensor(2.))
    """
    if any(check_tensor("lsq_plus", *of) for of in (("x", x), ("scale", scale), ("offset", offset))):
        return call_node(lsq_plus, locals())
    grad_scale = checked_grad_scale("lsq_plus", quant_min, quant_max, grad_scale)
    axis = axis_of_learned("lsq_plus", x, {"scale": scale, "offset": offset}, axis)
    if not (needs_function(scale) or needs_function(offset) or recording()):
        return MaskedLSQPlus.apply(x, scale.detach(), offset.detach(), quant_min, quant_max, axis)[0]
    scale, offset = _alike(scale, offset, x, axis)
    return LSQPlus.apply(x, scale, offset, quant_min, quant_max, axis, grad_scale, False)


def learned_offset(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    grad_scale: float | None,
    of_sample: bool,
) -> Tensor:
    """`lsq_plus` of a module, as `learned_step` is `lsq`."""
    if any(check_tensor("lsq_plus", *of) for of in (("x", x), ("scale", scale), ("offset", offset))):
        return call_node(learned_offset, locals())
    axis = axis_of_learned("lsq_plus", x, {"scale": scale, "offset": offset}, axis)
    if not (needs_function(scale) or needs_function(offset) or recording() or compiling()):
        return PositiveMaskedLSQPlus.apply(x, scale.detach(), offset.detach(), quant_min, quant_max, axis)[0]
    scale, offset = _alike(scale, offset, x, axis)
    return PositiveLSQPlus.apply(x, scale, offset, quant_min, quant_max, axis, grad_scale, of_sample)[0]


def _alike(scale: Tensor, offset: Tensor, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """One of them beside channels of the other is one for each: their gradients are of one pass."""
    if axis < 0:
        return scale, offset
    return _of_channels(scale, x.shape[axis]), _of_channels(offset, x.shape[axis])


def _of_channels(parameter: Tensor, channels: int) -> Tensor:
    return parameter.reshape(1).expand(channels) if parameter.numel() == 1 and channels != 1 else parameter
