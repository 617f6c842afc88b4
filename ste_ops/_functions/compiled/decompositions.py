"""What Inductor traces in place of operators: it fuses and recomputes arithmetic that it sees.

Native stay the sums and draws, what packs bits, and what gives other bits on a device (docs/decisions/compiled.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._dynamo import decomposition, takes_alike
from ste_ops._functions.base import widen
from ste_ops._functions.binarize import saves
from ste_ops._functions.compiled.arithmetic import (
    at_least,
    clamped,
    is_whole,
    quantized,
    steps_of,
    strictly_inside,
)
from ste_ops._functions.quantize.channels import along
from ste_ops._library import ops
from ste_ops._torch import is_input_of_graph

# The layout of their results does not depend on that of their tensors.
takes_alike(ops.lsq_backward_of_scale)
takes_alike(ops.lsq_plus_backward_of_parameters)

LEAST_BITNET_SCALE = 1e-5  # kLeastBitNetScale of csrc/core/quantize/scaled.h


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


for _rounding in ("round", "floor", "ceil", "trunc"):
    decomposition(getattr(ops, _rounding))(getattr(torch, _rounding))


@decomposition(ops.clamp)
def _(x: Tensor, min: float | None, max: float | None) -> Tensor:
    return clamped(widen(x), min, max).to(x.dtype)


def _step(above: Tensor, below: float | Tensor, x: Tensor) -> Tensor:
    return torch.where(above, 1.0, below).to(x.dtype)


def _without_mask(out: Tensor) -> tuple[Tensor, Tensor]:
    return out, out.new_empty(0, dtype=torch.uint8)


@decomposition(ops.heaviside)
def _(x: Tensor, surrogate: int, a: float, b: float) -> Any:
    return NotImplemented if saves(surrogate) == "mask" else _without_mask(_step(x > 0, 0.0, x))


@decomposition(ops.heaviside_from_zero)
def _(x: Tensor, surrogate: int, a: float, b: float) -> Any:
    return NotImplemented if saves(surrogate) == "mask" else _without_mask(_step(x >= 0, 0.0, x))


@decomposition(ops.sign)
def _(x: Tensor, surrogate: int, a: float, b: float) -> Any:
    return NotImplemented if saves(surrogate) == "mask" else _without_mask(_step(x >= 0, -1.0, x))


@decomposition(ops.lsq)
def _(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int) -> Any:
    if not is_whole(quant_min, quant_max):
        return NotImplemented
    step, inverse = steps_of("lsq", x, axis, scale)
    return quantized(widen(x) * inverse, step, quant_min, quant_max).to(x.dtype)


def _beside(grad: Tensor, x: Tensor) -> Tensor:
    """x, for an operator of the backward.

    The partitioner saves whatever of the forward such an operator reads, however cheap it is to compute again, but not
    what arithmetic reads that needs the gradient. Here that is none at all, and the operator gets x itself
    (call_with_alike).
    """
    return torch.where(grad.isnan(), x, x)


# A parameter is kept anyway, and nothing is computed around its gradient: there the kernel is the one pass over both.


@decomposition(ops.lsq_backward)
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    grad_scale: float | None,
    of_sample: bool = False,
) -> Any:
    if not is_whole(quant_min, quant_max) or is_input_of_graph(x):
        return NotImplemented
    _, inverse = steps_of("lsq", x, axis, scale)
    x = _beside(grad, x)
    of_x = torch.where(strictly_inside(widen(x) * inverse, quant_min, quant_max), grad, 0.0)
    rest = quant_min, quant_max, axis, grad_scale, of_sample
    return of_x, ops.lsq_backward_of_scale(grad, x, scale, *rest)


@decomposition(ops.lsq_plus)
def _(x: Tensor, scale: Tensor, offset: Tensor, quant_min: int, quant_max: int, axis: int) -> Any:
    if not is_whole(quant_min, quant_max) or not _on_cpu(x):
        return NotImplemented
    step, inverse, by = steps_of("lsq_plus", x, axis, scale, offset)
    return (quantized((widen(x) - by) * inverse, step, quant_min, quant_max) + by).to(x.dtype)


@decomposition(ops.lsq_plus_backward)
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    grad_scale: float | None,
    of_sample: bool = False,
) -> Any:
    if not is_whole(quant_min, quant_max) or is_input_of_graph(x):
        return NotImplemented
    _, inverse, by = steps_of("lsq_plus", x, axis, scale, offset)
    x = _beside(grad, x)
    of_x = torch.where(strictly_inside((widen(x) - by) * inverse, quant_min, quant_max), grad, 0.0)
    rest = quant_min, quant_max, axis, grad_scale, of_sample
    return of_x, *ops.lsq_plus_backward_of_parameters(grad, x, scale, offset, *rest)


def _groups(statistic: Tensor, w: Tensor) -> Tensor:
    return along(statistic, w, 0 if statistic.numel() != 1 else -1)


@decomposition(ops.xnor_weight)
def _(w: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    mean = ops.mean_magnitude(w, per_channel)
    scale = _groups(mean, w)
    return torch.where(w >= 0, scale, -scale).to(w.dtype), mean


@decomposition(ops.magnitude_aware_sign_backward)
def _(grad: Tensor, w: Tensor, mean: Tensor, per_channel: bool) -> Tensor:
    return torch.where(widen(w).abs() > 1, 0.0, widen(grad) * _groups(mean, w)).to(w.dtype)


@decomposition(ops.bitnet_weight)
def _(w: Tensor, per_channel: bool) -> Any:
    if not _on_cpu(w):
        return NotImplemented
    scale = at_least(_groups(ops.mean_magnitude(w, per_channel), w), LEAST_BITNET_SCALE)
    return (clamped(torch.round(widen(w) / scale), -1, 1) * scale).to(w.dtype)


@decomposition(ops.bitnet_activation)
def _(x: Tensor, bits: int) -> Any:
    if not _on_cpu(x) or x.dim() == 0 or x.shape[-1] == 0:
        return NotImplemented
    wide, levels = widen(x), 2 ** (bits - 1) - 1
    step = at_least(wide.abs().amax(-1, keepdim=True), LEAST_BITNET_SCALE) / levels
    return (clamped(torch.round(wide / step), -levels - 1, levels) * step).to(x.dtype)
