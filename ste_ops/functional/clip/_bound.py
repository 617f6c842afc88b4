"""A bound that nobody reads on the host: on a device, or a number that changes from call to call of a graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ste_ops._checks import check_held, checked_number

_SKIP = 1  # as csrc/core/clip/norm.h numbers nonfinite="skip"


def bound_of(operator: str, max_norm: float | Tensor) -> float | Tensor:
    """The number, checked; a 0-d tensor where reading it would wait for a device or make a graph of its own."""
    compiling = torch.compiler.is_compiling()
    if isinstance(max_norm, Tensor) and (compiling or max_norm.device.type != "cpu"):
        check_held(operator, "max_norm", max_norm)
        return max_norm.reshape(())
    number = checked_number(operator, "max_norm", max_norm)
    if compiling and not torch.fx.experimental.symbolic_shapes.has_static_value(number):
        return torch.ones((), dtype=torch.float64) * number
    return number


def number_on(operator: str, argument: str, number: Tensor, device: torch.device) -> Tensor:
    if number.is_meta and device.type != "meta":
        raise ValueError(f"{operator}: {argument} must hold a number, got a meta tensor for {device}")
    return number.to(device)


def against_one(total_norm: Tensor, max_norm: Tensor, nonfinite: int) -> Tensor:
    """The norm that a bound of 1 scales by as max_norm does by total_norm: the kernels take their bound as a number.

    1 / (x + 1e-6) = max_norm / (total_norm + 1e-6), in float64. A negative bound, which nobody refuses here, is a NaN.
    """
    bound = max_norm.double()
    ratio = (total_norm.double() + 1e-6) / bound
    if nonfinite == _SKIP:  # a bound of 0 is no norm that is infinite
        ratio = torch.where(total_norm.isfinite(), ratio.clamp(max=torch.finfo(torch.float64).max), ratio)
    return torch.where(bound >= 0, ratio - 1e-6, math.nan)
