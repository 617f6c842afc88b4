"""Uniform quantizers by nodes that round as the kernels do."""

from __future__ import annotations

from typing import Any

from onnxscript import opset18 as op

from ste_ops.onnx._translate.values import Value, along, arithmetic, back, clip, constant, scalar, widened


def _steps(x: Value, scale: Value, zero_point: Value, low: int, high: int, dtype: Any, affine: bool = False) -> Value:
    """(clamp(round(x / scale) + zero_point) - zero_point) * scale, by the reciprocal; if `affine` added before."""
    v = op.Mul(x, op.Div(constant(1, dtype), scale))
    # Sum and not Add: runtimes drop an addition of 0, which makes +0 of -0.
    q = op.Round(op.Sum(v, zero_point)) if affine else op.Sum(op.Round(v), zero_point)
    return op.Mul(op.Sub(clip(q, low, high, dtype), zero_point), scale)


def is_affine(zero_point: Value | float) -> bool:
    """Whether it need not be whole."""
    if isinstance(zero_point, (int, float)):
        return zero_point != int(zero_point)
    return zero_point.dtype.is_floating_point()


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
    step: Any = scale_number if scale is None else scale
    zero: Any = zero_point_number if zero_point is None else zero_point
    laid = along(step, x, axis), along(zero, x, axis)
    return [back(_steps(widened(x), *laid, quant_min, quant_max, arithmetic(x), is_affine(zero)), x)]


def lsq(x: Value, scale: Value, quant_min: int, quant_max: int, axis: int) -> Value:
    dtype = arithmetic(x)
    return back(_steps(widened(x), along(scale, x, axis), constant(0, dtype), quant_min, quant_max, dtype), x)


def lsq_masked(x: Value, scale: Value, quant_min: int, quant_max: int, axis: int) -> list[Value]:
    return [lsq(x, scale, quant_min, quant_max, axis)]


def lsq_plus(x: Value, scale: Value, offset: Value, quant_min: int, quant_max: int, axis: int) -> Value:
    dtype, b = arithmetic(x), along(offset, x, axis)
    centred = op.Sub(widened(x), b)
    quantized = _steps(centred, along(scale, x, axis), constant(0, dtype), quant_min, quant_max, dtype)
    return back(op.Add(quantized, b), x)


def lsq_plus_masked(x: Value, scale: Value, offset: Value, quant_min: int, quant_max: int, axis: int) -> list[Value]:
    return [lsq_plus(x, scale, offset, quant_min, quant_max, axis)]


def pact(x: Value, alpha: Value, bits: int) -> list[Value]:
    dtype = arithmetic(x)
    bound, n = scalar(alpha, dtype), constant(2**bits - 1, dtype)
    steps = op.Round(op.Mul(op.Clip(widened(x), constant(0, dtype), bound), op.Div(n, bound)))
    return [back(op.Mul(steps, op.Div(bound, n)), x)]


def dorefa_activation(x: Value, bits: int) -> list[Value]:
    dtype = arithmetic(x)
    n = constant(2**bits - 1, dtype)
    return [back(op.Div(op.Round(op.Mul(clip(widened(x), 0, 1, dtype), n)), n), x)]
