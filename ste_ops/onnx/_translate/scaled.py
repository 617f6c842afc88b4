"""Quantizers whose scale is a statistic of what they get, and N:M sparsity."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import opset18 as op

from ste_ops.onnx._translate.values import (
    DOUBLE,
    Value,
    arithmetic,
    back,
    clip,
    constant,
    integers,
    rank,
    widened,
)

# What the kernels bound by these (csrc/core/quantize/scaled.h).
_LEAST_BITNET_SCALE = 1e-5
_LEAST_DOREFA_MAXIMUM = 2.0**-14


def _members(w: Value, per_channel: bool) -> list[int]:
    """The dimensions of what shares a statistic."""
    return list(range(1 if per_channel else 0, rank(w)))


def _mean_magnitude(w: Value, per_channel: bool) -> Value:
    """Summed in float64 and rounded once; of a tensor without dimensions itself."""
    size, members = op.Abs(widened(w)), _members(w, per_channel)
    if not members:
        return size
    mean = op.ReduceMean(op.Cast(size, to=int(DOUBLE)), integers(*members), keepdims=1)
    return mean if arithmetic(w) == DOUBLE else op.Cast(mean, to=int(arithmetic(w)))


def mean_magnitude(w: Value, per_channel: bool) -> Value:
    return op.Reshape(_mean_magnitude(w, per_channel), integers(-1))


def xnor_weight(w: Value, per_channel: bool) -> list[Value]:
    mean = _mean_magnitude(w, per_channel)
    up = op.GreaterOrEqual(widened(w), constant(0, arithmetic(w)))
    return [back(op.Where(up, mean, op.Neg(mean)), w), op.Reshape(mean, integers(-1))]


def bitnet_weight(w: Value, per_channel: bool) -> Value:
    dtype = arithmetic(w)
    scale = clip(_mean_magnitude(w, per_channel), _LEAST_BITNET_SCALE, None, dtype)
    return back(op.Mul(clip(op.Round(op.Div(widened(w), scale)), -1, 1, dtype), scale), w)


def _largest(size: Value, dims: list[int], dtype: ir.DataType) -> Value:
    """The largest of magnitudes. Runtimes pass over a NaN there: the sum makes NaN of one, and of an infinity."""
    if not dims:
        return size
    nothing = op.ReduceSum(op.Mul(size, constant(0, dtype)), integers(*dims), keepdims=1)
    return op.Add(op.ReduceMax(size, integers(*dims), keepdims=1), nothing)


def bitnet_activation(x: Value, bits: int) -> Value:
    dtype, n = arithmetic(x), 2 ** (bits - 1) - 1
    wide = widened(x)
    largest = _largest(op.Abs(wide), [-1] if rank(x) else [], dtype)
    step = op.Div(clip(largest, _LEAST_BITNET_SCALE, None, dtype), constant(n, dtype))
    return back(op.Mul(clip(op.Round(op.Div(wide, step)), -n - 1, n, dtype), step), x)


def dorefa_weight(w: Value, bits: int, per_channel: bool) -> list[Value]:
    dtype = arithmetic(w)
    t, n = op.Tanh(widened(w)), constant(2**bits - 1, dtype)
    half, one, two = (constant(number, dtype) for number in (0.5, 1, 2))
    largest = _largest(op.Abs(t), _members(w, per_channel), dtype)
    small = op.Less(largest, constant(_LEAST_DOREFA_MAXIMUM, dtype))
    unit = op.Add(op.Mul(op.Div(t, op.Where(small, one, largest)), half), half)
    return [back(op.Sub(op.Mul(op.Div(op.Round(op.Mul(unit, n)), n), two), one), w)]


def sr_ste(w: Value, n: int, m: int) -> Value:
    """Kept is what fewer than n of its m neighbours come before: larger ones, and of equal ones the first."""
    dims = list(range(rank(w)))
    order = [*dims[:1], *dims[2:], 1] if len(dims) > 1 else dims
    moved = op.Transpose(w, perm=order) if order != dims else w
    size = op.Abs(op.Reshape(widened(moved), integers(-1, m)))
    # A NaN is the largest, and none is larger than another.
    nan = op.IsNaN(size)
    mine, other = (op.Unsqueeze(size, integers(axis)) for axis in (2, 1))
    my_nan, other_nan = (op.Unsqueeze(nan, integers(axis)) for axis in (2, 1))
    larger = op.Or(op.Greater(other, mine), op.And(other_nan, op.Not(my_nan)))
    equal = op.Or(op.Equal(other, mine), op.And(other_nan, my_nan))
    earlier = op.Less(integers(*range(m)), op.Unsqueeze(integers(*range(m)), integers(1)))
    before = op.Cast(op.Or(larger, op.And(equal, earlier)), to=int(ir.DataType.INT64))
    kept = op.Less(op.ReduceSum(before, integers(2), keepdims=0), integers(n))
    kept = op.Reshape(kept, op.Shape(moved))
    if order != dims:
        kept = op.Transpose(kept, perm=[order.index(d) for d in dims])
    return back(op.Where(kept, widened(w), constant(0, arithmetic(w))), w)
