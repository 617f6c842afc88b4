"""`Codes`: what a quantizer makes of a tensor, as integers and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._dtensor import is_dtensor
from ste_ops.functional.quantize._groups import rows_of_groups
from ste_ops.functional.quantize._law import Law, bound, law_of, widen
from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn.quantizer import Quantizer, is_as_written


@dataclass(frozen=True, eq=False)
class Codes:
    """Quantized weights or inputs as integers: ``(values - zero_point) * scale``, and `dequantize` to the last bit.

    Attributes:
        values: the integers, in the shape of what was quantized; int8 or uint8 where these hold them, else int16 or
            int32. Binary ones are -1 and 1 of `Sign` and scaled signs, 0 and 1 of `Heaviside`.
        scale: the step, in the dtype that the quantizer computes in, float64 for float64 and float32 elsewhere. It
            broadcasts with values, or with groups with ``values.reshape(-1, group_size)``.
        zero_point: the integer that stands for 0, as scale; of `LSQPlus` and of `DoReFaWeight` not a whole one.
        bits: how many an integer needs, 1 for two of them.
        dtype: of what was quantized.
        group_size: None, or how many neighbours in row-major order share a scale.

    Example:
        >>> import torch, ste_ops
        >>> layer = ste_ops.nn.QuantLinear(4, 2, weight_quantizer=ste_ops.nn.LSQ(4, axis=0))
        >>> codes = layer.weight_codes()
        >>> codes.values.dtype, codes.scale.shape, codes.bits
        (torch.int8, torch.Size([2, 1]), 4)
        >>> torch.equal(codes.dequantize(), layer.quantized_weight())
        True
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    dtype: torch.dtype = torch.float32
    group_size: int | None = None
    _law: Law = field(default_factory=lambda: Law(0, 1), repr=False)

    def dequantize(self) -> Tensor:
        """The numbers that the quantizer puts out, to the last bit but the sign of a zero, which no integer has."""
        v = self.values.to(self.scale.dtype)
        rows = v if self.group_size is None else v.reshape(-1, self.group_size)
        return self._law.numbers(rows).reshape(v.shape).to(self.dtype)


def codes_of(caller: str, quantizer: Any, x: Tensor) -> Codes:
    """The integers to which a module or an operator of ste_ops rounds x; what is none raises in the caller's name."""
    function, arguments = operator_of(caller, quantizer, x)
    group_size = arguments.get("group_size")
    with torch.no_grad():
        x = x.detach()
        wide = widen(x)
        rows = wide if group_size is None else rows_of_groups(caller, wide, group_size)
        law = law_of(function, rows, **arguments)
        if law is None:
            raise _no_integers(caller, quantizer)
        q = _call(function, rows, arguments)
        v = law.integers(q)
        if law.stride == 2 and law.scale is not None:  # a channel of zeros has scale 0
            v = torch.where(rows.isnan(), torch.nan, torch.where(rows >= 0, 1.0, -1.0).double())
        exact = _exact(law, v, q)
        if exact is None:
            raise ValueError(f"{caller}: {name_of(quantizer)} must make numbers of it, got a NaN or an infinity")
        return _codes(law, exact.reshape(x.shape), x.dtype, group_size)


def _call(function: Any, rows: Tensor, arguments: dict[str, Any]) -> Tensor:
    if "group_size" in arguments and function in _WITHOUT_GROUPS:
        arguments = {key: value for key, value in arguments.items() if key != "group_size"}
    made: Tensor = function(rows, **arguments)
    return made


def _exact(law: Law, v: Tensor, q: Tensor) -> Tensor | None:
    """The integers whose numbers are q: where these are coarser than float32 tells apart, maybe a neighbour."""
    right = law.numbers(v.to(q.dtype)) == q
    for step in (-law.stride, law.stride):
        if not bool(right.all()):
            beside = (v + step).clamp(law.low, law.high)
            v = torch.where(right, v, torch.where(law.numbers(beside.to(q.dtype)) == q, beside, v))
            right = law.numbers(v.to(q.dtype)) == q
    return v if bool(right.all()) else None


def _codes(law: Law, v: Tensor, dtype: torch.dtype, group_size: int | None) -> Codes:
    rows = v if group_size is None else v.reshape(-1, group_size)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    one = torch.ones((), dtype=wide, device=v.device)
    scale = one * law.span / law.steps if law.steps is not None else one if law.scale is None else law.scale
    zero = one * 0 if law.zero_point is None else law.zero_point
    scale, zero = (p.reshape(()) if p.numel() == 1 else law.along(p, rows) for p in (scale, zero))
    if law.offset is not None:
        offset = law.offset.reshape(()) if law.offset.numel() == 1 else law.along(law.offset, rows)
        zero = zero - offset / scale
    return Codes(v.to(integer_dtype(law.low, law.high)), scale, zero, law.bits, dtype, group_size, law)


def integer_dtype(low: int, high: int) -> torch.dtype:
    """The least that holds both; signed where both do."""
    for dtype in (torch.int8, torch.uint8, torch.int16):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


def operator_of(caller: str, quantizer: Any, x: Tensor, trained: bool = True) -> tuple[Any, dict[str, Any]]:
    """The operator that a quantizer is, with its settings; where it is not trained, its scale need not be set."""
    if is_dtensor(x):
        raise TypeError(f"{caller}: a plain tensor is expected, got a DTensor; full_tensor() makes one of it")
    if not isinstance(quantizer, nn.Module):
        return bound(quantizer)
    if not isinstance(quantizer, Quantizer) or not is_as_written(quantizer):
        raise _no_integers(caller, quantizer)
    if not quantizer.enabled:
        raise ValueError(f"{caller}: {name_of(quantizer)} is disabled, so there are no integers; enable() it before")
    if trained:
        check_set(caller, quantizer)
    operator = quantizer._operator()
    if operator is None:
        raise _no_integers(caller, quantizer)
    return operator


def check_set(caller: str, quantizer: Any) -> None:
    """Refuses a scale that no tensor has set yet."""
    if isinstance(quantizer, UniformQuantizer):
        held, scale = quantizer.initialized, quantizer.scale
        if not held.is_meta and (scale.numel() == 0 or not bool((held >= 1).all() & (scale != 0).any())):
            raise RuntimeError(
                f"{caller}: the scale of {name_of(quantizer)} is not set yet; train the model, or give it a batch or "
                "ste_ops.nn.calibrate, before"
            )


def name_of(quantizer: Any) -> str:
    if isinstance(quantizer, nn.Module):
        return type(quantizer).__name__
    function = bound(quantizer)[0]
    return str(getattr(function, "__qualname__", repr(function)))


def _no_integers(caller: str, quantizer: Any) -> TypeError:
    return TypeError(
        f"{caller}: the quantizer must be a module or an operator of ste_ops that puts out integers times a scale, "
        f"got {name_of(quantizer)}"
    )


_WITHOUT_GROUPS = frozenset({functional.lsq, functional.fake_quantize})  # of a module, which views its groups as rows
