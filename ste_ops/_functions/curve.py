"""Functions and fake kernels of the surrogates that are curves: their derivative, and the derivative of that."""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function
from ste_ops._library import ops

# A surrogate's number and its parameters a and b.
Curve: TypeAlias = tuple[int, float, float]


@fake("curve_backward")
def _(grad: Tensor, x: Tensor, surrogate: int, a: float, b: float, parameters: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@fake("curve_second")
def _(upper: Tensor, grad: Tensor, x: Tensor, surrogate: int, a: float, b: float, parameters: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def curve_gradient(grad: Tensor, x: Tensor, parameters: Tensor | None, curve: Curve) -> Tensor:
    """grad s'(x), and exactly 0 where s'(x) is 0."""
    call = CurveBackward.apply if needs_function(grad) or needs_function(x) else ops.curve_backward
    return call(grad, x, *curve, parameters)


def curve_second(upper: Tensor, grad: Tensor, x: Tensor, parameters: Tensor | None, curve: Curve) -> Tensor:
    """upper grad s''(x), and exactly 0 where s''(x) is 0."""
    recorded = needs_function(upper) or needs_function(grad) or needs_function(x)
    return (CurveSecond.apply if recorded else ops.curve_second)(upper, grad, x, *curve, parameters)


def refuse_batched_parameters(dim: int | None) -> None:
    if dim is not None:
        raise ValueError("vmap: a surrogate's fields must be the same for the whole batch, got a batched tensor")


class _Curve(NativeFunction):
    """A product of `factors` tensors and a derivative at x: `forward(*factors, x, surrogate, a, b, parameters)`."""

    factors: int

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, surrogate, a, b, parameters = inputs
        ctx.save_for_backward(*tensors, parameters)
        ctx.save_for_forward(*tensors, parameters)
        ctx.set_materialize_grads(False)
        ctx.curve = surrogate, a, b

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        refuse_batched_parameters(in_dims[-1])
        count = cls.factors + 1
        return cls.apply(*batch_first(info, in_dims, *args[:count]), *args[count:]), 0


class CurveBackward(_Curve):
    """grad s'(x)."""

    factors = 1

    @staticmethod
    def forward(grad: Tensor, x: Tensor, surrogate: int, a: float, b: float, parameters: Tensor | None) -> Tensor:
        return ops.curve_backward(grad, x, surrogate, a, b, parameters)

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> tuple[Tensor | None, ...]:
        of_grad = of_x = None
        if upper is not None:
            grad, x, parameters = ctx.saved_tensors
            if ctx.needs_input_grad[0]:
                of_grad = curve_gradient(upper, x, parameters, ctx.curve)
            if ctx.needs_input_grad[1]:
                of_x = curve_second(upper, grad, x, parameters, ctx.curve)
        return of_grad, of_x, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_grad: Tensor | None, of_x: Tensor | None, *_: None) -> Tensor | None:
        grad, x, parameters = ctx.saved_tensors
        terms = []
        if of_grad is not None:
            terms.append(curve_gradient(of_grad, x, parameters, ctx.curve))
        if of_x is not None:
            terms.append(curve_second(of_x, grad, x, parameters, ctx.curve))
        return sum(terms[1:], terms[0]) if terms else None


def _refuse_third() -> NoReturn:
    raise NotImplementedError(
        "curve_second: the third derivative of a curve with respect to x is not implemented; "
        "expected at most the second, or surrogate.Custom, which autograd differentiates to any order"
    )


class CurveSecond(_Curve):
    """upper grad s''(x)."""

    factors = 2

    @staticmethod
    def forward(
        upper: Tensor, grad: Tensor, x: Tensor, surrogate: int, a: float, b: float, parameters: Tensor | None
    ) -> Tensor:
        return ops.curve_second(upper, grad, x, surrogate, a, b, parameters)

    @staticmethod
    def backward(ctx: Any, top: Tensor | None) -> tuple[Tensor | None, ...]:
        of_upper = of_grad = None
        if top is not None:
            if ctx.needs_input_grad[2]:
                _refuse_third()
            upper, grad, x, parameters = ctx.saved_tensors
            if ctx.needs_input_grad[0]:
                of_upper = curve_second(top, grad, x, parameters, ctx.curve)
            if ctx.needs_input_grad[1]:
                of_grad = curve_second(upper, top, x, parameters, ctx.curve)
        return of_upper, of_grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_upper: Tensor | None, of_grad: Tensor | None, of_x: Tensor | None, *_: None) -> Tensor | None:
        if of_x is not None:
            _refuse_third()
        upper, grad, x, parameters = ctx.saved_tensors
        terms = []
        if of_upper is not None:
            terms.append(curve_second(of_upper, grad, x, parameters, ctx.curve))
        if of_grad is not None:
            terms.append(curve_second(upper, of_grad, x, parameters, ctx.curve))
        return sum(terms[1:], terms[0]) if terms else None
