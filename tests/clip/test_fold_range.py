"""Folding at the ends of what a grad_scale, a float32, can hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD

import ste_ops

CASES = [
    (torch.float64, 1e50, 1.0),
    (torch.float64, 1e300, 1e-3),
    (torch.float64, 1e12, 1e-60),
    (torch.float32, 1e38, 1e-3),
    (torch.float32, 1.5e38, 0.5),
    (torch.float32, 2.0e38, 1.0),
    (torch.bfloat16, 1e38, 1e-3),
    (torch.float32, 1e30, 0.0),
    (torch.float32, 1e12, 1e-30),
]


@pytest.mark.parametrize(("dtype", "value", "max_norm"), CASES)
@pytest.mark.parametrize("scale", [None, 2.0**16, 2.0**-10])
def test_a_coefficient_below_float32(decided, dtype, value, max_norm, scale):
    p = torch.zeros(2, dtype=dtype, requires_grad=True)
    p.grad = torch.full((2,), value * min(scale or 1.0, 1.0), dtype=dtype)
    optimizer = SGD([p], lr=1.0, fused=True)
    if scale is None:
        norm = ste_ops.fold_grad_clip_(optimizer, max_norm)
        assert torch.equal(norm, ste_ops.get_total_norm([p.grad]))
        optimizer.step()
    else:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))
        ste_ops.fold_grad_clip_(optimizer, max_norm, grad_scaler=scaler)
        scaler.step(optimizer)
    expected = torch.full((2,), -max_norm / math.sqrt(2), dtype=dtype)  # where 1e-6 beside the norm is nothing
    torch.testing.assert_close(p.detach(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 3e-6, atol=0)
    torch.testing.assert_close(p.grad, -p.detach())


def test_a_step_that_skips_a_large_norm_leaves_the_gradients(decided):
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([1e50, -1e50], dtype=torch.float64)
    optimizer = SGD([p], lr=1.0, fused=True)
    ste_ops.fold_grad_clip_(optimizer, 1.0, skip_above=1e40)
    optimizer.step()
    assert not p.any()
    assert p.grad.tolist() == [1e50, -1e50]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_skipped_leaves_the_gradients(decided, bad):
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([1e50, bad], dtype=torch.float64)
    before = p.grad.clone()
    optimizer = SGD([p], lr=1.0, fused=True)
    ste_ops.fold_grad_clip_(optimizer, 1.0)
    optimizer.step()
    assert not p.any()
    torch.testing.assert_close(p.grad, before, equal_nan=True, rtol=0, atol=0)
