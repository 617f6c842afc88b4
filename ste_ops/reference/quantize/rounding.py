"""Rounding and clamping, with the identity as gradient."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits
from ste_ops.reference._arithmetic import round_scaled, widen
from ste_ops.reference.quantize._through import through


def round(x: Tensor) -> Tensor:
    """Half to even."""
    return through(torch.round(widen(x)), x)


def floor(x: Tensor) -> Tensor:
    """The largest integer not above x."""
    return through(torch.floor(widen(x)), x)


def ceil(x: Tensor) -> Tensor:
    """The smallest integer not below x."""
    return through(torch.ceil(widen(x)), x)


def trunc(x: Tensor) -> Tensor:
    """The integer part of x."""
    return through(torch.trunc(widen(x)), x)


def clamp(x: Tensor, min: float, max: float) -> Tensor:
    """A NaN stays."""
    return through(widen(x).clamp(min, max), x)


def stochastic_round(x: Tensor, *, generator: Generator | None = None) -> Tensor:
    """The magnitude rounded away from zero with the probability of its fraction, toward zero otherwise.

    The fraction abs(x) - trunc(abs(x)) is exact and read to 64 binary places, at least 2^-64. The draw belongs to the
    element's place in memory; NaN and infinities stay.
    """
    seed = int(draw_seed("stochastic_round", x.device, generator)) & MASK64
    out = torch.empty_like(x)
    memory, values = out.detach().as_strided((out.numel(),), (1,)), torch.empty_like(out).copy_(x.detach())
    for i, value in enumerate(values.as_strided((out.numel(),), (1,)).tolist()):
        if math.isfinite(value):
            low = math.floor(abs(value))
            fraction = abs(value) - low
            threshold = max(round_scaled(fraction, 64), int(fraction > 0))
            away = random_bits(seed, 0, i)[0] < threshold
            memory[i] = math.copysign(float(low + away), value)
        else:
            memory[i] = value
    return through(out, x)
