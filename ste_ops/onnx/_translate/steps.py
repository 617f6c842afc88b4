"""Binarizers and rounding. The mask that a binarizer returns beside its result is for a backward, and left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxscript import opset18 as op

from ste_ops.onnx._translate.values import Value, arithmetic, back, cast, clip, constant, integers, widened


def sign(x: Value, surrogate: int, a: float, b: float) -> list[Value]:
    dtype = arithmetic(x)
    up = op.GreaterOrEqual(widened(x), constant(0, dtype))
    return [back(op.Where(up, constant(1, dtype), constant(-1, dtype)), x)]


def heaviside(x: Value, surrogate: int, a: float, b: float) -> list[Value]:
    return [op.Cast(op.Greater(widened(x), constant(0, arithmetic(x))), to=int(x.dtype))]


def heaviside_from_zero(x: Value, surrogate: int, a: float, b: float) -> list[Value]:
    return [op.Cast(op.GreaterOrEqual(widened(x), constant(0, arithmetic(x))), to=int(x.dtype))]


def ternary(x: Value, surrogate: int, a: float, b: float, threshold: float) -> list[Value]:
    return [_ternary(x, constant(threshold, arithmetic(x)))]


def _ternary(x: Value, threshold: Value) -> Value:
    wide, dtype = widened(x), int(arithmetic(x))
    above, below = op.Greater(wide, threshold), op.Less(wide, op.Neg(threshold))
    level = op.Sub(op.Cast(above, to=dtype), op.Cast(below, to=dtype))
    return back(op.Where(op.IsNaN(wide), wide, level), x)


def binarize_held(x: Value, step: str, surrogate: int, parameters: Value) -> list[Value]:
    if step == "ternary":
        threshold = op.Gather(parameters, integers(2))
        return [_ternary(x, op.Reshape(cast(threshold, arithmetic(x)), integers()))]
    steps = {"sign": sign, "heaviside": heaviside, "heaviside_from_zero": heaviside_from_zero}
    return steps[step](x, surrogate, 0.0, 0.0)


def _rounding(function: Callable[[Value], Value], name: str) -> Callable[..., Any]:
    def translate(x: Value) -> Value:
        return back(function(widened(x)), x)

    translate.__name__ = name
    return translate


round = _rounding(lambda x: op.Round(x), "round")
floor = _rounding(lambda x: op.Floor(x), "floor")
ceil = _rounding(lambda x: op.Ceil(x), "ceil")


def trunc(x: Value) -> Value:
    """Both halves with -0 between them, so that the sum keeps the sign of a zero; Where in onnxruntime does not."""
    wide, dtype = widened(x), arithmetic(x)
    return back(op.Add(op.Floor(clip(wide, -0.0, None, dtype)), op.Ceil(clip(wide, None, -0.0, dtype))), x)


def clamp(x: Value, min: float | None, max: float | None) -> Value:
    return back(clip(widened(x), min, max, arithmetic(x)), x)
