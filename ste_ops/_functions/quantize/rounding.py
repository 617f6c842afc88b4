"""Functions and fake kernels of rounding and clamping: the gradient is the incoming one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, fake
from ste_ops._functions.mask import batch_first, new_tangent
from ste_ops._library import ops


@fake("round")
@fake("floor")
@fake("ceil")
@fake("trunc")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@fake("clamp")
def _(x: Tensor, min: float, max: float) -> Tensor:
    return torch.empty_like(x)


@fake("stochastic_round")
def _(x: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(x)


class PassThrough(NativeFunction):
    """`forward(x, ...) -> out` with the identity as gradient of x; nothing is saved."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.arguments = len(inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return grad, *[None] * (ctx.arguments - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return new_tangent(tangent)

    @classmethod
    def _vmap(cls, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int | None]:
        return cls.apply(x, *rest), in_dims[0]


class Round(PassThrough):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.round(x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        return Round._vmap(in_dims, *args)


class Floor(PassThrough):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.floor(x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        return Floor._vmap(in_dims, *args)


class Ceil(PassThrough):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.ceil(x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        return Ceil._vmap(in_dims, *args)


class Trunc(PassThrough):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.trunc(x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        return Trunc._vmap(in_dims, *args)


class Clamp(PassThrough):
    @staticmethod
    def forward(x: Tensor, min: float, max: float) -> Tensor:
        return ops.clamp(x, min, max)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        return Clamp._vmap(in_dims, *args)


class StochasticRound(PassThrough):
    @staticmethod
    def forward(x: Tensor, seed: Tensor) -> Tensor:
        return ops.stochastic_round(x, seed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, seed: Tensor) -> tuple[Tensor, int]:
        # A row of the batch is rounded as it would be alone: under its own seed, or all under the one seed.
        x = batch_first(x, in_dims[0], info.batch_size)
        seeds = batch_first(seed, in_dims[1], info.batch_size).reshape(-1)
        rows = x.reshape(seeds.numel(), x.numel() // max(seeds.numel(), 1))
        return StochasticRound.apply(rows.contiguous(), seeds.contiguous()).reshape(x.shape), 0
