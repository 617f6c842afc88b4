"""What the translations stand on: constants of a type, the arithmetic of the kernels, and scales along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op

Value = Any
"""A value of the graph, an `onnx_ir.Value`."""

FLOAT, DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE


def arithmetic(x: Value) -> ir.DataType:
    """Kernels compute in float32, and of float64 in float64."""
    return DOUBLE if x.dtype == DOUBLE else FLOAT


def constant(values: Any, dtype: ir.DataType) -> Value:
    return op.Constant(value=ir.tensor(np.asarray(values, dtype.numpy())))


def integers(*values: int) -> Value:
    return op.Constant(value=ir.tensor(np.array(values, np.int64)))


def cast(x: Value, dtype: ir.DataType) -> Value:
    return x if x.dtype == dtype else op.Cast(x, to=int(dtype))


def widened(x: Value) -> Value:
    """x in the arithmetic of the kernels."""
    return cast(x, arithmetic(x))


def back(y: Value, x: Value) -> Value:
    """What was computed of x, in x's dtype."""
    return y if arithmetic(x) == x.dtype else op.Cast(y, to=int(x.dtype))


def rank(x: Value) -> int:
    return len(x.shape)


def elements(x: Value) -> int:
    """Of a scale or a bound, whose shape is fixed."""
    count = 1
    for size in x.shape:
        count *= int(size)
    return count


def scalar(value: Value, dtype: ir.DataType) -> Value:
    """A tensor of one element without its dimensions."""
    value = cast(value, dtype)
    return value if value.shape is not None and rank(value) == 0 else op.Reshape(value, integers())


def along(value: Value | float, x: Value, axis: int) -> Value:
    """A number, or a tensor of one element or one for each channel, so that it is broadcast to x."""
    dtype = arithmetic(x)
    if isinstance(value, (int, float)):
        return constant(value, dtype)
    if elements(value) == 1:
        return scalar(value, dtype)
    shape = [1] * rank(x)
    shape[axis] = -1
    return op.Reshape(cast(value, dtype), integers(*shape))


def clip(x: Value, low: float | None, high: float | None, dtype: ir.DataType) -> Value:
    """A NaN stays, and so does a zero that equals a bound. A bound that is left out would hold infinities back."""
    bounds = -np.inf if low is None else low, np.inf if high is None else high
    return op.Clip(x, *[constant(bound, dtype) for bound in bounds])
