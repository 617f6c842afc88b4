"""The Function of a step whose surrogate learns its parameters, and the fake kernel of its backward.

The surrogate's primitive s stands in for the step, so x gets grad ds/dx and a parameter the sum of grad ds/da: by the
kernel, in one pass, where nothing is recorded. Under create_graph and the transforms both are in plain torch, by the
formulas of the surrogate's class, which autograd differentiates to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, recorded, widen
from ste_ops._library import ops

# A number, or one that a tensor of one element holds.
Held: TypeAlias = float | Tensor
HELD = (Tensor, torch.SymFloat)

# Of each surrogate with parameters, by number: an object of its class from the parameters, as tensors of any shape. The
# classes bring themselves here, a floor above.
FORMULAS: dict[int, Callable[..., Any]] = {}


@fake("learned_surrogate_backward")
def _(grad: Tensor, x: Tensor, surrogate: int, parameters: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), parameters.new_empty(2)


def as_numbers(numbers: Sequence[Held], device: torch.device) -> Tensor:
    """As the operators read them."""
    for number in numbers:
        if isinstance(number, Tensor) and number.is_meta and device.type != "meta":
            raise ValueError(
                f"ste_ops: a field of a surrogate is on the meta device, without a number; x is on {device}"
            )
    one = torch.ones((), dtype=torch.float64, device=device)
    return torch.stack([n.reshape(()).to(one) if isinstance(n, Tensor) else one * n for n in numbers])


def as_operands(threshold: Sequence[Held]) -> tuple[float | None, Tensor | None]:
    """A threshold as the operators take it that stand in recorded programs: a number or a tensor."""
    if not threshold:
        return None, None
    return (None, threshold[0]) if isinstance(threshold[0], Tensor) else (threshold[0], None)


def from_operands(number: float | None, tensor: Tensor | None) -> tuple[Held, ...]:
    return (tensor,) if tensor is not None else () if number is None else (number,)


def step_without_mask(x: Tensor, step: str, identity: int, threshold: Sequence[Held]) -> Tensor:
    """The step alone; `identity` is the number of a surrogate that makes no mask, `threshold` is that of ternary."""
    if threshold and isinstance(threshold[0], HELD):
        numbers = as_numbers((0.0, 0.0, threshold[0]), x.device).detach()
        return ops.binarize_held(x, step, identity, numbers)[0]
    return getattr(ops, step)(x, identity, 0.0, 0.0, *threshold)[0]


def _formulas(wide: Tensor, parameters: Tensor, surrogate: int) -> Any:
    """The surrogate with the parameters of each element of `wide`."""
    lead = parameters.dim() - 1
    shape = (*parameters.shape[:-1], *[1] * (wide.dim() - lead))
    return FORMULAS[int(surrogate)](*(p.reshape(shape) for p in parameters.to(wide.dtype).unbind(-1)))


def _times(grad: Tensor, slope: Tensor) -> Tensor:
    """Exactly 0 where the slope is."""
    return torch.where(slope == 0, 0.0, grad * slope)


def _gradients(grad: Tensor, x: Tensor, parameters: Tensor, surrogate: int) -> tuple[Tensor, Tensor]:
    """What the kernel gives, where it may be recorded or the parameters are those of a batch."""
    wide, over = widen(x), list(range(parameters.dim() - 1, x.dim()))
    formulas = _formulas(wide, parameters, surrogate)
    of_x = _times(grad, formulas._derivative(wide)).to(x.dtype)
    terms = [_times(grad.double(), by.double()) for by in formulas._by_parameters(wide)]
    sums = [term.sum(over) if over else term for term in terms]
    return of_x, torch.stack([*sums, *[torch.zeros_like(sums[0])] * (2 - len(sums))], -1)


def _tangent(
    of_x: Tensor | None, of_parameters: Tensor | None, x: Tensor, parameters: Tensor, surrogate: int
) -> Tensor | None:
    wide = widen(x)
    formulas, terms = _formulas(wide, parameters, surrogate), []
    if of_x is not None:
        terms.append(_times(of_x, formulas._derivative(wide)))
    if of_parameters is not None:
        lead = parameters.dim() - 1
        shape = (*parameters.shape[:-1], *[1] * (x.dim() - lead))
        moved = [p.reshape(shape) for p in of_parameters.to(wide.dtype).unbind(-1)]
        terms += [_times(p, by) for p, by in zip(moved, formulas._by_parameters(wide), strict=False)]
    return sum(terms[1:], terms[0]).to(x.dtype) if terms else None


@recorded("learned_step")
class LearnedStep(NativeFunction):
    """`forward(x, parameters, surrogate, step, identity, ...) -> out`.

    `parameters` are two float64 numbers along the last dimension; the dimensions before it are those of a batch, with
    which x begins too. The rest are the arguments of `step_without_mask`. Saves x and parameters.
    """

    @classmethod
    def operands(cls, *args: Any) -> tuple[Any, ...]:
        return *args[:5], *as_operands(args[5:])

    @classmethod
    def run(cls, *args: Any) -> Tensor:
        return super().run(*args[:5], *from_operands(*args[5:]))

    @staticmethod
    def forward(x: Tensor, parameters: Tensor, surrogate: int, step: str, identity: int, *threshold: Any) -> Tensor:
        return step_without_mask(x, step, identity, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.set_materialize_grads(False)
        ctx.surrogate = inputs[2]
        ctx.others = (None,) * (len(inputs) - 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, *ctx.others
        x, parameters = ctx.saved_tensors
        if parameters.dim() > 1 or any(needs_function(tensor) for tensor in (grad, x, parameters)):
            return *_gradients(grad, x, parameters, ctx.surrogate), *ctx.others
        return *ops.learned_surrogate_backward(grad, x, ctx.surrogate, parameters), *ctx.others

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_parameters: Tensor | None, *_: None) -> Tensor | None:
        x, parameters = ctx.saved_tensors
        return _tangent(of_x, of_parameters, x, parameters, ctx.surrogate)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], x: Tensor, parameters: Tensor, *others: Any) -> Any:
        if in_dims[1] is None and parameters.dim() == 1:
            return cls.apply(x, parameters, *others), in_dims[0]
        return cls.apply(*batch_first(info, in_dims, x, parameters), *others), 0
