"""Reference of the categorical draw."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits


def categorical_ste(
    logits: Tensor, estimator: str = "straight_through", tau: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """The largest of logits plus Gumbel noise, one-hot; under the gradient of the estimator's surrogate, as published.

    In float64 throughout: the draw of the native operator but where two keys of float32 are nearly equal. The second
    derivative of ``"reinmax"`` is that of its published surrogate, whose stop_gradient holds part of it.
    """
    noise = gumbel_noise(logits, draw_seed("categorical_ste", logits.device, generator))
    x = logits.double()
    drawn = torch.nn.functional.one_hot((x.detach() + noise).argmax(-1), x.shape[-1]).double()
    if estimator == "straight_through":
        soft = torch.softmax(x / tau, -1)
    elif estimator == "gumbel":
        soft = torch.softmax((x + noise) / tau, -1)
    else:  # algorithm 2 of arXiv:2304.08612
        pi_0 = torch.softmax(x, -1)
        pi_1 = (drawn + torch.softmax(x / tau, -1)) / 2
        held = torch.where(pi_1 > 0, pi_1.log() - x, 0.0).detach()
        soft = 2 * torch.softmax(held + x, -1) - pi_0 / 2
    return straight_through(logits, drawn, soft)


def straight_through(like: Tensor, drawn: Tensor, soft: Tensor) -> Tensor:
    """The drawn numbers with the gradient of the soft ones, in the dtype and layout of `like`."""
    out = torch.empty_like(like).copy_(drawn)
    return out + (soft - soft.detach()).to(like.dtype)


def gumbel_noise(logits: Tensor, seed: Tensor) -> Tensor:
    """-log(-log(1 - v)), v from two halves of 31 random bits; an element's bits belong to its place."""
    return torch.tensor(
        [_gumbel(random_bits(int(seed) & MASK64, 0, i // 2)[i % 2]) for i in range(logits.numel())],
        dtype=torch.float64,
        device=logits.device,
    ).reshape(logits.shape)


def _gumbel(random: int) -> float:
    bits = (random >> 33) << 31 | (random & 0xFFFFFFFF) >> 1
    exponential = -math.log1p(-(bits + 0.5) * 2.0**-62) if bits < 2**61 else -math.log((2**62 - bits - 0.5) * 2.0**-62)
    return -math.log(exponential)
