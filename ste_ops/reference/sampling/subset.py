"""Reference of the draw of k out of n."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ste_ops._random import draw_seed
from ste_ops.reference.sampling.categorical import gumbel_noise, straight_through


def subset_ste(logits: Tensor, k: int, tau: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """The k largest of logits plus Gumbel noise, k-hot; under the gradient of k softmaxes one after the other, each
    without what those before it took. In float64 throughout."""
    keys = logits.double() + gumbel_noise(logits, draw_seed("subset_ste", logits.device, generator))
    drawn = torch.zeros_like(keys).scatter(-1, keys.detach().topk(k).indices, 1.0)
    return straight_through(logits, drawn, relaxed_subset(keys, k, tau))


def relaxed_subset(keys: Tensor, k: int, tau: float) -> Tensor:
    """The sum of k softmaxes, each without what those before it took."""
    total = torch.zeros_like(keys)
    for taken in range(k):
        if taken:
            keys = keys + log_one_minus_softmax(keys / tau)
        total = total + torch.softmax(keys / tau, -1)
    return total


def log_one_minus_softmax(z: Tensor) -> Tensor:
    """log(sum of e^z over all others) - log(sum of e^z), which 1 - softmax would round away near 0."""
    n = z.shape[-1]
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    others = z.unsqueeze(-2).expand(*z.shape, n).masked_fill(itself, -torch.inf)
    return others.logsumexp(-1) - z.logsumexp(-1, keepdim=True)
