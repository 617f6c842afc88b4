"""Gradients that a step cannot divide where they lie."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

import ste_ops


def parameters(*grads):
    ps = [torch.zeros(grad.shape, requires_grad=True) for grad in grads]
    for p, grad in zip(ps, grads, strict=True):
        p.grad = grad
    return ps


SHARED = torch.ones(4)
TWICE = {
    "one tensor": (SHARED, torch.ones(3), SHARED),
    "two views": (SHARED, torch.ones(3), SHARED.detach()),
    "two shapes": (SHARED, torch.ones(3), SHARED[:2]),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_refuses_gradients_that_share_memory(decided, name, max_norm):
    optimizer = SGD(parameters(*TWICE[name]), lr=1.0, fused=True)
    with pytest.raises(RuntimeError, match="got one place for those at index 0 and 2; clone"):
        ste_ops.fold_grad_clip_(optimizer, max_norm)
    assert "grad_scale" not in vars(optimizer)


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
@pytest.mark.parametrize(
    "grad", [torch.ones(1).expand(3), torch.ones(3, 1).expand(3, 2), torch.ones(4).as_strided((2, 3), (1, 1))]
)
def test_refuses_a_gradient_whose_elements_share_memory(decided, grad, max_norm):
    optimizer = SGD(parameters(torch.ones(2), grad), lr=1.0, fused=True)
    with pytest.raises(RuntimeError, match="the gradient at index 1 cannot be written in place, because several"):
        ste_ops.fold_grad_clip_(optimizer, max_norm)
    assert "grad_scale" not in vars(optimizer)


def test_takes_other_strides_empty_gradients_and_parts_of_one_buffer(decided):
    buffer = torch.ones(8)
    grads = [torch.ones(3, 2).t(), torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)]
    grads += [torch.ones(0), torch.ones(0), buffer[:4], buffer[4:], torch.ones(1).expand(1), torch.ones(())]
    ps = parameters(*grads)
    norm = ste_ops.fold_grad_clip_(SGD(ps, lr=1.0, fused=True), 1.0)
    assert torch.equal(norm, ste_ops.get_total_norm(grads))
