"""Functions and fake kernels of rounding and clamping: the gradient is the incoming one."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import Elementwise, PassThrough, SeededPassThrough, fake, recorded
from ste_ops._library import ops


@fake("round")
@fake("floor")
@fake("ceil")
@fake("trunc")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@fake("clamp")
def _(x: Tensor, min: float | None, max: float | None) -> Tensor:
    return torch.empty_like(x)


@fake("stochastic_round")
def _(x: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(x)


class _Rounding(Elementwise, PassThrough):
    pass


@recorded("round")
class Round(_Rounding):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.round(x)


@recorded("floor")
class Floor(_Rounding):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.floor(x)


@recorded("ceil")
class Ceil(_Rounding):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.ceil(x)


@recorded("trunc")
class Trunc(_Rounding):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.trunc(x)


@recorded("clamp")
class Clamp(_Rounding):
    @staticmethod
    def forward(x: Tensor, min: float | None, max: float | None) -> Tensor:
        return ops.clamp(x, min, max)


@recorded("stochastic_round")
class StochasticRound(SeededPassThrough):
    @staticmethod
    def forward(x: Tensor, seed: Tensor) -> Tensor:
        return ops.stochastic_round(x, seed)
