"""Functions whose gradient passes where something holds of x, in arithmetic that a compiler sees.

The native ones keep that as a bit an element, which no compiler can take apart. These keep x, from which it is computed
again where that is cheaper than to keep it: the compiler decides.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor

from ste_ops._dynamo import allow_in_graph
from ste_ops._functions.base import NativeFunction, widen
from ste_ops._functions.binarize import BINARIZERS, Binarize, binarize
from ste_ops._functions.compiled.arithmetic import beside, clamped, is_whole, quantized, steps_of
from ste_ops._functions.learned_surrogate import FORMULAS
from ste_ops._functions.quantize.uniform import DorefaActivation, FakeQuantize
from ste_ops._functions.sharding import Sharding
from ste_ops._torch import functorch_active


class Transparent(NativeFunction):
    """`forward(x, *parameters, ...) -> out`; nothing but x gets a gradient."""

    parameters: ClassVar[int] = 0
    sharding: ClassVar[Sharding | None] = Sharding()

    @classmethod
    def native(cls, *args: Any) -> type[NativeFunction]:
        """The Function that keeps a mask, which has rules of its own for the transforms."""
        raise NotImplementedError

    @classmethod
    def is_exact(cls, *args: Any) -> bool:
        """Whether compiled code gives the kernel's bits for such arguments (arithmetic.py)."""
        return True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # A symbol is not rounded to the arithmetic, and as an argument of an operator it is a number.
        if functorch_active() or any(isinstance(arg, torch.SymFloat) for arg in args) or not cls.is_exact(*args):
            return cls.native(*args).apply(*cls.operands(*args))[0]
        # With dynamic=True the number of a surrogate is a symbol, which no list takes.
        return super().apply(*[int(arg) if isinstance(arg, torch.SymInt) else arg for arg in args])

    @staticmethod
    def value(x: Tensor, *others: Any) -> Tensor:
        """Of an x in the arithmetic."""
        raise NotImplementedError

    @staticmethod
    def gradient(grad: Tensor, x: Tensor, *others: Any) -> Tensor:
        raise NotImplementedError

    @classmethod
    def forward(cls, x: Tensor, *others: Any) -> Tensor:
        return cls.value(widen(x), *others).to(x.dtype)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        saved = inputs[: 1 + cls.parameters]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)
        ctx.rest = inputs[1 + cls.parameters :]

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return cls._through(ctx, grad), *[None] * (cls.parameters + len(ctx.rest))

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return cls._through(ctx, tangent)

    @classmethod
    def _through(cls, ctx: Any, grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        x, *parameters = ctx.saved_tensors
        return cls.gradient(grad, widen(x.detach()), *parameters, *ctx.rest)


class TransparentStep(Transparent):
    """`forward(x, step, surrogate, a, b, factor, ...) -> out`, of a surrogate that is a mask."""

    @classmethod
    def native(cls, x: Tensor, step: str, *_: Any) -> type[Binarize]:
        return BINARIZERS[step]

    @classmethod
    def operands(cls, x: Tensor, step: str, *args: Any) -> tuple[Any, ...]:
        return x, *args[:4], None, *args[4:]

    @staticmethod
    def value(x: Tensor, step: str, surrogate: int, a: float, b: float, factor: float, *threshold: float) -> Tensor:
        if step == "ternary":
            bound = threshold[0]
            between = torch.where(x.isnan(), x, torch.where(x < -bound, -1.0, 0.0).to(x.dtype))
            return torch.where(x > bound, 1.0, between)
        return torch.where(x > 0 if step == "heaviside" else x >= 0, 1.0, -1.0 if step == "sign" else 0.0)

    @staticmethod
    def gradient(
        grad: Tensor, x: Tensor, step: str, surrogate: int, a: float, b: float, factor: float, *_: float
    ) -> Tensor:
        slope = FORMULAS[surrogate](a, b)._derivative(x)
        passed = torch.where(slope == 0, 0.0, grad)
        return passed if factor == 1 else (widen(passed) * factor).to(grad.dtype)


@allow_in_graph
def transparent_step(x: Tensor, *args: Any) -> Tensor:
    """`TransparentStep`, or `binarize` of numbers that are symbols, which makes one graph for all their values."""
    symbolic = any(isinstance(arg, torch.SymFloat) for arg in args)
    out: Tensor = binarize(x, *args) if symbolic else TransparentStep.apply(x, *args)
    return out


class TransparentDorefaActivation(Transparent):
    """`forward(x, bits) -> out`."""

    @classmethod
    def native(cls, *args: Any) -> type[NativeFunction]:
        return DorefaActivation

    @classmethod
    def is_exact(cls, x: Tensor, bits: int) -> bool:
        return x.device.type == "cpu"

    @staticmethod
    def value(x: Tensor, bits: int) -> Tensor:
        levels = 2**bits - 1
        return torch.round(clamped(x, 0, 1) * levels) / levels

    @staticmethod
    def gradient(grad: Tensor, x: Tensor, bits: int) -> Tensor:
        return torch.where((x >= 0) & (x <= 1), grad, 0.0)


def _in_arithmetic(number: float, x: Tensor) -> float:
    return number if x.dtype == torch.float64 else ctypes.c_float(number).value


class TransparentFakeQuantize(Transparent):
    """`forward(x, scale, zero_point, scale_number, zero_point_number, quant_min, quant_max, axis) -> out`."""

    parameters = 2
    sharding = FakeQuantize.sharding

    @classmethod
    def native(cls, *args: Any) -> type[NativeFunction]:
        return FakeQuantize

    @staticmethod
    def _is_affine(zero_point: Tensor | None, zero: float) -> bool:
        """Whether a zero point need not be whole."""
        return not zero.is_integer() if zero_point is None else zero_point.is_floating_point()

    @classmethod
    def is_exact(cls, x: Tensor, *others: Any) -> bool:
        _, zero_point, _, zero, quant_min, quant_max, _ = others
        whole = is_whole(quant_min, quant_max) or zero_point is not None or zero != 0
        return whole and (x.device.type == "cpu" or not cls._is_affine(zero_point, zero))

    @classmethod
    def _integers(cls, x: Tensor, scale: Any, zero_point: Any, number: float, zero: float, axis: int) -> Any:
        """Not yet clamped, with the scale and the zero point."""
        step: Any = _in_arithmetic(number, x)
        inverse: Any = _in_arithmetic(1 / step, x)
        zeros: Any = _in_arithmetic(zero, x)
        if scale is not None:
            step, inverse = steps_of("fake_quantize", x, axis, scale)
        if zero_point is not None:
            zeros = beside(zero_point.reshape(-1).to(x.dtype), x, axis)
        v = x * inverse
        q = torch.round(v + zeros) if cls._is_affine(zero_point, zero) else torch.round(v) + zeros
        return q, step, zeros

    @classmethod
    def value(
        cls,
        x: Tensor,
        scale: Any,
        zero_point: Any,
        number: float,
        zero: float,
        quant_min: int,
        quant_max: int,
        axis: int,
    ) -> Tensor:
        q, step, zeros = cls._integers(x, scale, zero_point, number, zero, axis)
        if zero_point is None and zero == 0:
            return quantized(q, step, quant_min, quant_max)
        return (clamped(q, quant_min, quant_max) - zeros) * step

    @classmethod
    def gradient(
        cls,
        grad: Tensor,
        x: Tensor,
        scale: Any,
        zero_point: Any,
        number: float,
        zero: float,
        quant_min: int,
        quant_max: int,
        axis: int,
    ) -> Tensor:
        q, _, _ = cls._integers(x, scale, zero_point, number, zero, axis)
        return torch.where((q >= quant_min) & (q <= quant_max), grad, 0.0)
