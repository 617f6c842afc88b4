"""Quantizers whose scale is a statistic of the tensor itself: weights, and activations token by token."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ste_ops._checks import check_plain, check_tensor, checked_bits
from ste_ops._functions.base import recording, widen
from ste_ops._functions.quantize import scaled as _functions
from ste_ops._functions.quantize.scaled_sign import ScaledSign
from ste_ops._fx import call_node
from ste_ops.functional.quantize._groups import in_groups
from ste_ops.surrogate import Clip, Surrogate
from ste_ops.surrogate.base import check_surrogate

_DEFAULT = Clip(1.0)


def dorefa_weight(w: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """Weights in ``2**bits`` levels from -1 to 1, spread by ``tanh`` and by the largest of them.

    With ``n = 2**bits - 1`` and ``t = tanh(w)``, ``2 * round((t / (2 * max(abs(t))) + 0.5) * n) / n - 1``, rounded half
    to even. The rounding passes the gradient and everything else is differentiated, the maximum too; equal maxima share
    its gradient evenly. w is kept for the backward (that of a parameter costs no memory) and the maximum with it.

    One bit is ``sign(w) * mean(abs(w))``, the mean over all of w: the gradient passes unchanged and nothing is kept.

    The backward is differentiable in its incoming gradient and in w. As the levels do not depend on the size of w, the
    gradient grows as ``1 / max(abs(t))``. A maximum below 2^-14, the smallest normal number of float16, divides nothing
    and counts as 1: so small a w, zeros too, lies in the middle, and passes the gradient times ``1 - t**2``. A NaN
    anywhere makes every weight NaN. It is not idempotent: a second application spreads the levels once more.

    Args:
        w: any shape and strides, float64, float32, bfloat16 or float16.
        bits: from 1 to 24.
        group_size: None, or how many neighbours of an output channel have a maximum (or mean) of their own; it divides
            the weights of a channel. They are neighbours in row-major order, along in_features of a linear layer.

    Returns:
        A tensor of w's shape, dtype and memory layout.

    Raises:
        TypeError: w is no floating tensor of those dtypes, or bits no integer.
        ValueError: bits is not in [1, 24], or group_size is no integer >= 1 that divides the weights of a channel.

    Source: DoReFa-Net, arXiv:1606.06160, eq. 9, and eq. 7 and 8 for one bit; its authors' ``dorefa.py`` in tensorpack,
    which divides by any maximum, 0 too.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([-2.0, -0.1, 0.3, 1.0], requires_grad=True)
        >>> ste_ops.dorefa_weight(w, 2).detach()
        tensor([-1.0000, -0.3333,  0.3333,  1.0000])
        >>> y = ste_ops.dorefa_weight(w, 1)
        >>> y.detach()
        tensor([-0.8500, -0.8500,  0.8500,  0.8500])
        >>> y.sum().backward()
        >>> w.grad
        tensor([1., 1., 1., 1.])
    """
    if check_tensor("dorefa_weight", "w", w):
        return call_node(dorefa_weight, locals())
    bits = checked_bits("dorefa_weight", bits)
    if group_size is not None:
        return in_groups("dorefa_weight", w, group_size, lambda rows: _dorefa_weight(rows, bits, True))
    return _dorefa_weight(w, bits, False)


def _dorefa_weight(w: Tensor, bits: int, per_channel: bool) -> Tensor:
    if bits == 1:
        return _functions.DoReFaSign.apply(w, per_channel)
    return _functions.DoReFaWeight.apply(w, bits, per_channel)[0]


def xnor_weight(w: Tensor, surrogate: Surrogate = _DEFAULT, group_size: int | None = None) -> Tensor:
    """sign(w) times the mean of abs(w) over each output channel, and both differentiated.

    An output channel is an index of dimension 0; a vector has one mean. The sign is +1 at both zeros, and its gradient
    is the surrogate's, as in `sign`: by default it passes where ``abs(w) <= 1``. With ``m`` the mean of a channel of N
    weights and ``s'`` the surrogate's derivative the gradient is ``grad * m * s'(w)`` plus
    ``sign(w) * sum(grad * sign(w)) / N``, so that a channel of zeros is trained too: each of its weights gets
    ``sum(grad) / N``. A NaN makes its channel NaN. A second application changes nothing but the rounding of the mean.

    w is kept for the backward (that of a parameter costs no memory) and the means with it; with another mask than the
    default also one bit an element, and with any other surrogate of a 16-bit w its copy in float32. The backward is
    differentiable in its incoming gradient and in w.

    Args:
        w: any shape and strides, float64, float32, bfloat16 or float16; output channels in dimension 0.
        surrogate: what stands in for the derivative of the sign; default ``Clip(1.0)``, the paper's.
        group_size: None, or how many neighbours of an output channel have a scale of their own; it divides the weights
            of a channel. They are neighbours in row-major order, along in_features of a linear layer.

    Returns:
        A tensor of w's shape, dtype and memory layout.

    Raises:
        TypeError: w is no floating tensor of those dtypes, or surrogate is none of `ste_ops.surrogate`.
        ValueError: group_size is no integer >= 1 that divides the weights of a channel.

    Source: XNOR-Net, arXiv:1603.05279, eq. 6; the gradient of the mean is summed over the channel, which the paper's
    own formula leaves out.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([[0.5, -1.5], [0.2, 0.0]], requires_grad=True)
        >>> y = ste_ops.xnor_weight(w)
        >>> y.detach()
        tensor([[ 1.0000, -1.0000],
                [ 0.1000,  0.1000]])
        >>> y.sum().backward()
        >>> w.grad
        tensor([[1.0000, 0.0000],
                [1.1000, 1.1000]])
    """
    if check_tensor("xnor_weight", "w", w):
        return call_node(xnor_weight, locals())
    check_surrogate("xnor_weight", surrogate)
    if group_size is not None:
        return in_groups("xnor_weight", w, group_size, lambda rows: xnor_weight(rows, surrogate))
    if _is_default(surrogate):
        return _functions.XNORWeight.apply(w, w.dim() > 1)[0]
    check_plain("xnor_weight", "w, with another surrogate than Clip(1.0),", w)
    return _scaled_sign(w, surrogate, held=False)


def _is_default(surrogate: Surrogate) -> bool:
    """Whether one kernel has all of it."""
    if surrogate is _DEFAULT:
        return True
    return type(surrogate) is Clip and not isinstance(surrogate.threshold, Tensor) and surrogate.threshold == 1


def _scaled_sign(w: Tensor, surrogate: Surrogate, held: bool) -> Tensor:
    sign = functools.partial(surrogate._binarize, "sign")
    again = () if torch.compiler.is_compiling() or recording() else (sign,)
    # The gradient is a sum of two: in 16 bits each of them would be rounded, and what they cancel lost.
    wide = widen(w)
    return ScaledSign.apply(sign(wide), wide, w.dim() > 1, held, *again)[0].to(w.dtype)


def magnitude_aware_sign(w: Tensor, surrogate: Surrogate = _DEFAULT, group_size: int | None = None) -> Tensor:
    """sign(w) times the mean of abs(w) over each output channel, the mean taken as a constant.

    The forward is that of `xnor_weight`. The gradient is ``grad * mean`` times the surrogate's derivative, by default
    where ``abs(w) <= 1`` and 0 elsewhere: a channel of zeros, whose mean is 0, is not trained. w is kept for the
    backward and not the mask of the default, since that of a parameter costs no memory. The backward is differentiable
    in its incoming gradient, and in w as the surrogate's derivative is. A second application changes nothing but the
    rounding of the mean.

    Args:
        w: any shape and strides, float64, float32, bfloat16 or float16; output channels in dimension 0.
        surrogate: what stands in for the derivative of the sign; default ``Clip(1.0)``. Bi-Real Net's for activations
            is ``ApproxSign()``.
        group_size: None, or how many neighbours of an output channel have a scale of their own; it divides the weights
            of a channel. They are neighbours in row-major order, along in_features of a linear layer.

    Returns:
        A tensor of w's shape, dtype and memory layout.

    Raises:
        TypeError: w is no floating tensor of those dtypes, or surrogate is none of `ste_ops.surrogate`.
        ValueError: group_size is no integer >= 1 that divides the weights of a channel.

    Source: Bi-Real Net, arXiv:1808.00278; Larq's ``magnitude_aware_sign``, whose output channels are the last
    dimension. The code that the authors published for PyTorch leaves the mean out of the gradient.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([[0.5, -1.5], [0.2, 0.0]], requires_grad=True)
        >>> y = ste_ops.magnitude_aware_sign(w)
        >>> y.detach()
        tensor([[ 1.0000, -1.0000],
                [ 0.1000,  0.1000]])
        >>> y.sum().backward()
        >>> w.grad
        tensor([[1.0000, 0.0000],
                [0.1000, 0.1000]])
    """
    if check_tensor("magnitude_aware_sign", "w", w):
        return call_node(magnitude_aware_sign, locals())
    check_surrogate("magnitude_aware_sign", surrogate)
    if group_size is not None:
        return in_groups("magnitude_aware_sign", w, group_size, lambda rows: magnitude_aware_sign(rows, surrogate))
    if _is_default(surrogate):
        return _functions.MagnitudeAwareSign.apply(w, w.dim() > 1)[0]
    check_plain("magnitude_aware_sign", "w, with another surrogate than Clip(1.0),", w)
    return _scaled_sign(w, surrogate, held=True)


def bitnet_weight(w: Tensor, group_size: int | None = None) -> Tensor:
    """-1, 0 or 1 times the mean of abs(w) over all of w; the gradient passes.

    ``round(w / mean)`` clamped to [-1, 1], times the mean, which is at least 1e-5. Nothing is kept for the backward. A
    NaN anywhere makes every weight NaN. It is not idempotent: zeros make the next mean smaller.

    Args:
        w: any shape and strides, float64, float32, bfloat16 or float16.
        group_size: None, or how many neighbours of an output channel have a scale of their own; it divides the weights
            of a channel. They are neighbours in row-major order, along in_features of a linear layer.

    Returns:
        A tensor of w's shape, dtype and memory layout.

    Raises:
        TypeError: w is no floating tensor of those dtypes.
        ValueError: group_size is no integer >= 1 that divides the weights of a channel.

    Source: BitNet b1.58, arXiv:2402.17764, eq. 1 to 3, and its authors' training tips, whose code bounds the mean; it
    multiplies by the reciprocal of the mean where this divides, which differs in the last place.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([0.9, -0.2, 0.1, -0.8], requires_grad=True)
        >>> y = ste_ops.bitnet_weight(w)
        >>> y.detach()
        tensor([ 0.5000, -0.0000,  0.0000, -0.5000])
        >>> y.sum().backward()
        >>> w.grad
        tensor([1., 1., 1., 1.])
    """
    if check_tensor("bitnet_weight", "w", w):
        return call_node(bitnet_weight, locals())
    if group_size is not None:
        return in_groups("bitnet_weight", w, group_size, lambda rows: _functions.BitNetWeight.apply(rows, True))
    return _functions.BitNetWeight.apply(w, False)


def bitnet_activation(x: Tensor, bits: int = 8) -> Tensor:
    """Each token in steps of its own largest magnitude; the gradient passes.

    A token is a line along the last dimension. With ``n = 2**(bits - 1) - 1`` its step is ``max(abs(x)) / n``, the
    maximum at least 1e-5, and its values are ``round(x / step)`` (half to even) clamped to [-n - 1, n], times the step.
    Nothing is kept for the backward. A NaN makes its token NaN. A second application changes nothing but the last
    places of the steps.

    Args:
        x: any shape and strides, float64, float32, bfloat16 or float16; without a dimension it is a token of one.
        bits: from 2 to 24.

    Returns:
        A tensor of x's shape, dtype and memory layout.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or bits no integer.
        ValueError: bits is not in [2, 24].

    Source: BitNet b1.58, arXiv:2402.17764, and its authors' training tips, whose code bounds the maximum; it multiplies
    by the reciprocal of the step where this divides, which differs in the last place.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([[3.0, -1.2, 0.4], [0.0, 0.0, 0.0]], requires_grad=True)
        >>> y = ste_ops.bitnet_activation(x, bits=3)
        >>> y.detach()
        tensor([[ 3., -1.,  0.],
                [ 0.,  0.,  0.]])
        >>> y.sum().backward()
        >>> x.grad
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    if check_tensor("bitnet_activation", "x", x):
        return call_node(bitnet_activation, locals())
    return _functions.BitNetActivation.apply(x, checked_bits("bitnet_activation", bits, least=2))
