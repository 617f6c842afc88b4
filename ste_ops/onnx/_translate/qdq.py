"""Uniform quantizers by QuantizeLinear and DequantizeLinear, of which runtimes make integer kernels.

QuantizeLinear divides by the scale, where the kernels multiply by its reciprocal: what lies within a rounding error of
a tie may come out one step away. It is not defined for NaN.

Four bits lie in integers of eight, behind a Clip: no runtime computes with narrower activations, and onnxruntime 1.32
fails on a Clip before a QuantizeLinear of four.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset21 as op

from ste_ops.onnx._codes import bits_for, range_of
from ste_ops.onnx._translate import uniform
from ste_ops.onnx._translate.values import (
    FLOAT,
    Value,
    along,
    arithmetic,
    back,
    cast,
    constant,
    elements,
    integers,
    scalar,
    widened,
)

_TYPES = {
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
    (16, True): ir.DataType.INT16,
    (16, False): ir.DataType.UINT16,
}


def _has_integers(x: Value, low: int, high: int) -> bool:
    return arithmetic(x) == FLOAT and bits_for(low, high) is not None


def _through_integers(x: Value, laid: Any, scale: Any, zero_point: Any, low: int, high: int, axis: int) -> Value:
    """`laid` is x in float32. The numbers of zero_point are whole."""
    bits = max(bits_for(low, high) or 0, 8)
    dtype = _TYPES[bits, low < 0]
    by_channel = not isinstance(scale, float) and elements(scale) > 1
    where = {"axis": axis} if by_channel else {}
    if isinstance(scale, float):
        step = constant(scale, FLOAT)
    else:
        step = cast(scale, FLOAT) if by_channel else scalar(scale, FLOAT)
    if range_of(bits, low < 0) != (low, high):
        laid = _clipped(x, laid, scale, zero_point, low, high, axis)
    if isinstance(zero_point, (int, float)) and zero_point == 0:
        # Not said: onnxruntime 1.32 carries a signed one past a Transpose as an unsigned one, and fails.
        quantized = op.QuantizeLinear(laid, step, output_dtype=int(dtype), **where)
        return op.DequantizeLinear(quantized, step, **where)
    zero = _zero_point(zero_point, dtype, elements(scale) if by_channel else None)
    return op.DequantizeLinear(op.QuantizeLinear(laid, step, zero, **where), step, zero, **where)


def _clipped(x: Value, laid: Value, scale: Any, zero_point: Any, low: int, high: int, axis: int) -> Value:
    """Bounded before it is quantized, as a ReLU6 would."""
    step, zero = along(scale, x, axis), along(zero_point, x, axis)
    least, most = (op.Mul(op.Sub(constant(bound, FLOAT), zero), step) for bound in (low, high))
    by_channel = any(not isinstance(given, (int, float)) and elements(given) > 1 for given in (scale, zero_point))
    return op.Min(op.Max(laid, least), most) if by_channel else op.Clip(laid, least, most)


def _zero_point(zero_point: Any, dtype: ir.DataType, channels: int | None) -> Value:
    shape = () if channels is None else (channels,)
    if isinstance(zero_point, (int, float)):
        return op.Constant(value=ir.tensor(np.full(shape, zero_point).astype(dtype.numpy())))
    one = elements(zero_point) == 1
    laid = op.Reshape(zero_point, integers(*(() if one else shape)))
    return op.Cast(op.Expand(laid, integers(*shape)) if one and shape else laid, to=int(dtype))


def fake_quantize(
    x: Value,
    scale: Value | None,
    zero_point: Value | None,
    scale_number: float,
    zero_point_number: float,
    quant_min: int,
    quant_max: int,
    axis: int,
) -> list[Value]:
    zero: Any = zero_point_number if zero_point is None else zero_point
    if not _has_integers(x, quant_min, quant_max) or uniform.is_affine(zero):
        given = scale, zero_point, scale_number, zero_point_number
        return uniform.fake_quantize(x, *given, quant_min, quant_max, axis)
    step: Any = float(scale_number) if scale is None else scale
    return [back(_through_integers(x, widened(x), step, zero, quant_min, quant_max, axis), x)]


def lsq(x: Value, scale: Value, quant_min: int, quant_max: int, axis: int) -> Value:
    if not _has_integers(x, quant_min, quant_max):
        return uniform.lsq(x, scale, quant_min, quant_max, axis)
    return back(_through_integers(x, widened(x), scale, 0, quant_min, quant_max, axis), x)


def lsq_masked(x: Value, scale: Value, quant_min: int, quant_max: int, axis: int) -> list[Value]:
    return [lsq(x, scale, quant_min, quant_max, axis)]


def lsq_plus(x: Value, scale: Value, offset: Value, quant_min: int, quant_max: int, axis: int) -> Value:
    if not _has_integers(x, quant_min, quant_max):
        return uniform.lsq_plus(x, scale, offset, quant_min, quant_max, axis)
    b = along(offset, x, axis)
    quantized = _through_integers(x, op.Sub(widened(x), b), scale, 0, quant_min, quant_max, axis)
    return back(op.Add(quantized, b), x)


def lsq_plus_masked(x: Value, scale: Value, offset: Value, quant_min: int, quant_max: int, axis: int) -> list[Value]:
    return [lsq_plus(x, scale, offset, quant_min, quant_max, axis)]


def pact(x: Value, alpha: Value, bits: int) -> list[Value]:
    if not _has_integers(x, 0, 2**bits - 1):
        return uniform.pact(x, alpha, bits)
    step = op.Div(scalar(alpha, FLOAT), constant(2**bits - 1, FLOAT))
    step.shape = ir.Shape([])
    return [back(_through_integers(x, widened(x), step, 0, 0, 2**bits - 1, -1), x)]


def dorefa_activation(x: Value, bits: int) -> list[Value]:
    if not _has_integers(x, 0, 2**bits - 1):
        return uniform.dorefa_activation(x, bits)
    return [back(_through_integers(x, widened(x), 1 / (2**bits - 1), 0, 0, 2**bits - 1, -1), x)]
