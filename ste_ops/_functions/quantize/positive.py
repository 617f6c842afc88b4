"""Functions of a learned scale or bound that an optimizer may push to 0 or below, where it means nothing.

It is then taken as `LEAST_STEP`, within the Function: a `clamp` before it would be a node more. Its gradient passes as
through that. What is kept is the one in use, since the parameter may be moved before the backward.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ste_ops._functions.quantize.lsq import LSQ, Learned, LSQPlus, MaskedLSQ, MaskedLSQPlus
from ste_ops._functions.quantize.rounding import Clamp
from ste_ops._functions.quantize.uniform import PACT
from ste_ops._library import ops

# What a step or bound that was pushed lower is taken as; `eps` of torch's observers.
LEAST_STEP = 2.0**-23


def in_use(held: Tensor) -> Tensor:
    """The step or bound that is computed with.

    By our own operator, whose way through the dispatcher the quantizer is about to go too: in a training step, where
    caches are cold, torch's takes 4 us more.
    """
    return ops.clamp(held, LEAST_STEP, None)


class PositiveMaskedLSQ(MaskedLSQ):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_masked(x, in_use(scale), *rest)


class PositiveMaskedLSQPlus(MaskedLSQPlus):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_plus_masked(x, in_use(scale), offset, *rest)


def _stand_in_operands(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Any, ...]:
    """In a program the clamp is an operator of its own."""
    return x, Clamp.apply(scale, LEAST_STEP, None), *rest


def _vmap(plain: Any, info: Any, in_dims: tuple[int | None, ...], x: Tensor, scale: Tensor, *rest: Any) -> Any:
    """The batch rule of the Function that is `plain` of the scale in use."""
    step = Clamp.apply(scale, LEAST_STEP, None)
    out, dims = plain.vmap(info, in_dims, x, step, *rest)
    if not plain.returns_more:
        out, dims = (out,), (dims,)
    return (*out, step.detach()), (*dims, in_dims[1])


class PositiveLearned(Learned):
    """`forward(x, scale, ...) -> (out, step)`: `plain` of the step, which is the scale in use."""

    plain: ClassVar[type[Learned]]
    returns_more = True
    operands = staticmethod(_stand_in_operands)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        step, last = output[1], 1 + cls.of_gradient.parameters
        saved = inputs[0], step, *inputs[2:last]
        ctx.mark_non_differentiable(step)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.rest = inputs[last:]

    @classmethod
    def again(cls, ctx: Any) -> Tensor:
        return cls.plain.again(ctx)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Any:
        return super().jvp(ctx, *tangents), None

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _vmap(cls.plain, info, in_dims, *inputs)


class PositiveLSQ(PositiveLearned):
    plain, of_gradient, masked = LSQ, LSQ.of_gradient, PositiveMaskedLSQ
    _operator, sharding = LSQ._operator, LSQ.sharding

    @staticmethod
    def forward(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        step = in_use(scale)
        return ops.lsq(x, step, *rest[:3]), step


class PositiveLSQPlus(PositiveLearned):
    plain, of_gradient, masked = LSQPlus, LSQPlus.of_gradient, PositiveMaskedLSQPlus
    _operator, sharding = LSQPlus._operator, LSQPlus.sharding

    @staticmethod
    def forward(x: Tensor, scale: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        step = in_use(scale)
        return ops.lsq_plus(x, step, offset, *rest[:3]), step


class PositivePACT(PACT):
    """`forward(x, alpha, bits) -> (out, inside, above, bound)`, the bound being the alpha in use."""

    operands = staticmethod(_stand_in_operands)

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, bits: int) -> tuple[Tensor, ...]:
        bound = in_use(alpha)
        return *ops.pact(x, bound, bits), bound

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        PACT.keep(ctx, output[0], output[1:])

    @classmethod
    def jvp(cls, ctx: Any, of_x: Tensor | None, of_alpha: Tensor | None, *_: None) -> Any:
        return *super().jvp(ctx, of_x, of_alpha), None

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _vmap(PACT, info, in_dims, *inputs)
