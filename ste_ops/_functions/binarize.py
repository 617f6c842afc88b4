"""Functions and fake kernels of heaviside, sign and ternary with a surrogate of the library."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ste_ops._checks import check_plain
from ste_ops._dynamo import allow_in_graph
from ste_ops._functions.base import FAKES, NativeFunction, fake, memory_order, new_tangent, recorded, recording
from ste_ops._functions.curve import curve_gradient, refuse_batched_parameters
from ste_ops._functions.learned_surrogate import HELD, Held, LearnedStep, as_numbers
from ste_ops._functions.mask import batch_of_masks, from_mask_rows, mask_bytes, mask_rows, saved_mask_gradient
from ste_ops._functions.sharding import Sharding
from ste_ops._library import ops
from ste_ops._torch import tracked

Saves: TypeAlias = Literal["nothing", "mask", "input"]

# Name of each surrogate of the library, and what it keeps for the backward; its number is its place.
SURROGATES: list[tuple[str, Saves]] = [tuple(entry.split(":")) for entry in ops.surrogates().split()]  # type: ignore[misc]


def surrogate_number(name: str) -> int:
    return [known for known, _ in SURROGATES].index(name)


def saves(number: int) -> Saves:
    """What the surrogate of that number keeps for the backward."""
    # Under torch.compile(dynamic=True) the number is a SymInt, which no list takes.
    return SURROGATES[int(number)][1]


@fake("heaviside")
@fake("heaviside_from_zero")
@fake("sign")
def _(x: Tensor, surrogate: int, a: float, b: float) -> tuple[Tensor, Tensor]:
    numel = x.numel() if saves(surrogate) == "mask" else 0
    return torch.empty_like(x), x.new_empty(mask_bytes(numel), dtype=torch.uint8)


@fake("ternary")
def _(x: Tensor, surrogate: int, a: float, b: float, threshold: float) -> tuple[Tensor, Tensor]:
    return FAKES["sign"](x, surrogate, a, b)


@fake("binarize_held")
def _(x: Tensor, step: str, surrogate: int, parameters: Tensor) -> tuple[Tensor, Tensor]:
    return FAKES["sign"](x, surrogate, 0.0, 0.0)


class Binarize(NativeFunction):
    """A step forward, its surrogate backward.

    `forward(x, surrogate, a, b, factor, parameters, ...) -> (out, mask)`: a mask's gradients are multiplied by factor;
    `parameters` stand in for a, b and a threshold where they are a tensor, as factor may be one.
    """

    returns_more = True
    sharding = Sharding()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, surrogate, a, b, factor, parameters = inputs[:6]
        out, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.others = (None,) * (len(inputs) - 1)
        ctx.saves = saves(surrogate)
        if ctx.saves == "mask":
            ctx.order, ctx.factor = memory_order(out), factor
            held: tuple[Tensor, ...] = (mask,)
            if parameters is not None and isinstance(factor, Tensor):
                held, ctx.factor = (mask, factor), None
            ctx.save_for_backward(*held)
            ctx.save_for_forward(*held)
        elif ctx.saves == "input":
            parameters = None if parameters is None else parameters[:2]
            ctx.save_for_backward(x, parameters)
            ctx.save_for_forward(x, parameters)
            ctx.curve = surrogate, a, b

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        return _surrogate_gradient(ctx, grad), *ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        gradient = _surrogate_gradient(ctx, tangent)
        return new_tangent(gradient) if gradient is tangent else gradient, None

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int, ...], x: Tensor, surrogate: int, *others: Any) -> Any:
        for dim in in_dims[1:]:
            refuse_batched_parameters(dim)
        dim = in_dims[0]
        if saves(surrogate) != "mask":
            return cls.apply(x, surrogate, *others), (dim, None)
        x = x.movedim(dim, 0)
        out, mask = cls.apply(mask_rows(x), surrogate, *others)
        return (from_mask_rows(out, x.shape), batch_of_masks(mask, x.shape)), (0, 0)


def _surrogate_gradient(ctx: Any, grad: Tensor | None) -> Tensor | None:
    """grad times the surrogate's derivative, which is the backward and, of a tangent, the forward mode."""
    if grad is None or ctx.saves == "nothing":
        return grad
    if ctx.saves == "mask":
        return saved_mask_gradient(ctx, grad, ctx.order)
    x, parameters = ctx.saved_tensors
    return curve_gradient(grad, x, parameters, ctx.curve)


@recorded("heaviside")
class Heaviside(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float, factor: Held, parameters: Tensor | None) -> Any:
        if parameters is not None:
            return ops.binarize_held(x, "heaviside", surrogate, parameters)
        return ops.heaviside(x, surrogate, a, b)


@recorded("heaviside_from_zero")
class HeavisideFromZero(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float, factor: Held, parameters: Tensor | None) -> Any:
        if parameters is not None:
            return ops.binarize_held(x, "heaviside_from_zero", surrogate, parameters)
        return ops.heaviside_from_zero(x, surrogate, a, b)


@recorded("sign")
class Sign(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float, factor: Held, parameters: Tensor | None) -> Any:
        if parameters is not None:
            return ops.binarize_held(x, "sign", surrogate, parameters)
        return ops.sign(x, surrogate, a, b)


@recorded("ternary")
class Ternary(Binarize):
    @staticmethod
    def forward(
        x: Tensor, surrogate: int, a: float, b: float, factor: Held, parameters: Tensor | None, threshold: float
    ) -> Any:
        if parameters is not None:
            return ops.binarize_held(x, "ternary", surrogate, parameters)
        return ops.ternary(x, surrogate, a, b, threshold)


BINARIZERS: dict[str, type[Binarize]] = {
    "heaviside": Heaviside,
    "heaviside_from_zero": HeavisideFromZero,
    "sign": Sign,
    "ternary": Ternary,
}

# Whose forward makes no mask.
IDENTITY = surrogate_number("Identity")


@allow_in_graph
def binarize(x: Tensor, step: str, surrogate: int, a: Held, b: Held, factor: Held, *threshold: Held) -> Tensor:
    """A step whose numbers may be tensors or, under torch.compile, symbols.

    As the argument of an operator each value of a symbol would be a graph of its own; as a factor of a tensor it is one
    for all. Dynamo does not look in here, where a symbol can be told from a number that is the same at every call.
    """
    numbers = (a, b, *threshold)
    if not any(isinstance(number, HELD) for number in numbers):
        return BINARIZERS[step].apply(x, surrogate, a, b, factor, None, *threshold)[0]
    # A recorded program may be trained where it runs.
    if any(isinstance(number, Tensor) and (recording() or tracked(number)) for number in (a, b)):
        check_plain(step, "x", x)  # the ranks would each find a part of a field's gradient
        return LearnedStep.apply(x, as_numbers((a, b), x.device), surrogate, step, IDENTITY, *threshold)
    parameters = as_numbers(numbers, x.device)
    factor = as_numbers((factor,), x.device) if isinstance(factor, HELD) else factor
    return BINARIZERS[step].apply(x, surrogate, 0.0, 0.0, factor, parameters, *[0.0] * len(threshold))[0]
