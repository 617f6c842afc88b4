"""Gradients, layouts and tolerances that the tests of clipping share."""

from __future__ import annotations

import math

import torch

FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MIXED = [torch.bfloat16, torch.float32, torch.float64, torch.float16]
NORM_TYPES = [2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5, 2.5]
LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.mT.contiguous().mT,
    "sliced": lambda t: torch.empty(t.shape[0], 2 * t.shape[1], dtype=t.dtype, device=t.device)[:, ::2].copy_(t),
    "narrowed": lambda t: torch.empty(t.shape[0], t.shape[1] + 3, dtype=t.dtype, device=t.device)[:, :-3].copy_(t),
    "unaligned": lambda t: torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t),
    "offset rows": lambda t: torch.empty(3, *t.shape, dtype=t.dtype, device=t.device)[1].copy_(t),
}


def rounding(dtype):
    """Half a unit in the last place of a product, and the coefficient's own rounding to float32."""
    return {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def parameter(grad):
    p = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
    p.grad = grad
    return p


def copies(grads):
    return [parameter(g.clone()) for g in grads]


def gradients(device, dtypes, shapes=((40, 33), (7,), (), (0, 3), (300, 70), (2, 3, 4, 5))):
    return [torch.randn(s, device=device).to(dtypes[i % len(dtypes)]) for i, s in enumerate(shapes)]


def assert_same_gradients(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=rounding(a.dtype), atol=0, equal_nan=True)
