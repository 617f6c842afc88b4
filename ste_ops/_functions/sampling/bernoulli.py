"""The Function of the Bernoulli draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, fake
from ste_ops._library import ops


@fake("bernoulli")
def _(p: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(p)


class Bernoulli(NativeFunction):
    """0 or 1 forward, the identity backward. `forward(p, seed) -> out`; nothing is saved."""

    @staticmethod
    def forward(p: Tensor, seed: Tensor) -> Tensor:
        return ops.bernoulli(p, seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: None) -> Tensor | None:
        # A new tensor object: forward-mode AD does not take its input back as the tangent of another output.
        return None if tangent is None else tangent.view_as(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], p: Tensor, seed: Tensor) -> tuple[Tensor, int]:
        # A row of the batch is drawn as it would be alone: under its own seed, or all under the one seed.
        size = info.batch_size
        p = p.expand(size, *p.shape) if in_dims[0] is None else p.movedim(in_dims[0], 0)
        seed = seed.expand(size, *seed.shape) if in_dims[1] is None else seed.movedim(in_dims[1], 0)
        seeds = seed.reshape(-1)
        rows = p.reshape(seeds.numel(), p.numel() // max(seeds.numel(), 1))
        return Bernoulli.apply(rows.contiguous(), seeds.contiguous()).reshape(p.shape), 0
