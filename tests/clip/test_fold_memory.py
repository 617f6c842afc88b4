"""Gradients that a step cannot divide where they lie."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

import ste_ops
from ste_ops._functions.tensor_list import sharing


def parameters(*grads):
    ps = [torch.zeros_like(grad, requires_grad=True) for grad in grads]
    for p, grad in zip(ps, grads, strict=True):
        p.grad = grad
    return ps


SHARED = torch.ones(4)
TWICE = {
    "one tensor": (SHARED, torch.ones(3), SHARED),
    "two views": (SHARED, torch.ones(3), SHARED.detach()),
    "two shapes": (SHARED, torch.ones(3), SHARED[:2]),
    "the second in the first": (SHARED, torch.ones(3), SHARED[1:3]),
    "the first in the second": (SHARED[1:3], torch.ones(3), SHARED),
    "the end of one and the beginning of the other": (SHARED[:3], torch.ones(3), SHARED[2:]),
    "rows and columns": ((square := torch.ones(4, 4))[:2], torch.ones(3), square.t()),
    "two dtypes": (SHARED, torch.ones(3), SHARED.view(torch.bfloat16)[7:]),
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


def test_clips_other_strides_empty_gradients_and_parts_of_one_buffer(decided):
    buffer = torch.randn(8)
    grads = [torch.randn(3, 2).t(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)]
    grads += [torch.ones(0), torch.ones(0), buffer[:4], buffer[4:], torch.randn(1).expand(1), torch.randn(())]
    grads += [torch.randn(1, 3).t()]
    ours, theirs = parameters(*grads), parameters(*(grad.clone() for grad in grads))
    optimizers = [SGD(ps, lr=1.0, fused=True) for ps in (ours, theirs)]
    assert torch.equal(ste_ops.fold_grad_clip_(optimizers[0], 1.0), ste_ops.clip_grad_norm_(theirs, 1.0))
    for optimizer in optimizers:
        optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close((p, p.grad), (q, q.grad), rtol=1e-6, atol=0)
        torch.testing.assert_close(p.detach(), -p.grad, rtol=0, atol=0)


OTHERWISE = {
    "transposed": lambda: (torch.zeros(2, 3), torch.ones(3, 2).t()),
    "a transposed parameter": lambda: (torch.zeros(3, 2).t(), torch.ones(2, 3)),
    "with gaps": lambda: (torch.zeros(2, 3), torch.ones(2, 6)[:, ::2]),
    "both with gaps": lambda: (torch.zeros(2, 6)[:, ::2], torch.ones(2, 6)[:, ::2]),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_refuses_a_gradient_that_lies_otherwise_than_its_parameter(decided, name):
    """Torch's fused kernels go through both in the order of memory: on the CPU the step would come out wrong."""
    p, grad = OTHERWISE[name]()
    p.requires_grad_().grad = grad
    optimizer = SGD([*parameters(torch.ones(2)), p], lr=1.0, fused=True)
    with pytest.raises(RuntimeError, match="the gradient at index 1 must lie in memory as its parameter does"):
        ste_ops.fold_grad_clip_(optimizer, 1.0)
    assert "grad_scale" not in vars(optimizer)


def test_refuses_what_is_not_what_its_memory_says():
    fold = ste_ops.fold_grad_clip_
    negative = torch.complex(torch.zeros(2), torch.ones(2)).conj().imag
    with pytest.raises(RuntimeError, match="the gradient at index 1 must lie in memory with its own sign, got torch's"):
        fold(SGD(parameters(torch.ones(2), negative), lr=1.0, fused=True), 1.0)
    later = SGD(parameters(torch.ones(2), torch.ones(2, dtype=torch.complex64)), lr=1.0)
    later.param_groups[0]["fused"] = True
    with pytest.raises(TypeError, match=r"fused optimizers take real gradients, .* got torch\.complex64 at index 1"):
        fold(later, 1.0)
    with torch.inference_mode():
        grad = torch.ones(2)
    (p,) = parameters(torch.ones(2))
    p.grad = grad
    with pytest.raises(RuntimeError, match="the gradient at index 0 must be no inference tensor"):
        fold(SGD([p], lr=1.0, fused=True), 1.0)


def test_memory_is_compared_to_the_byte():
    x = torch.zeros(6, 8)
    apart = [x[:, ::2], x[:, 1::4], x[1:4, 3], x[4:, 3::4], x[:0], torch.zeros(3), torch.zeros(3, device="meta")]
    assert sharing(apart) is None
    assert sharing([x[3:], torch.zeros(2), x[:4]]) == (0, 2)
    assert sharing([*apart, x[4, 5:8:2]]) == (1, 7)
    assert sharing([x[0], x[:, 7].view(torch.int32), x[1].view(torch.bfloat16)[14:]]) == (0, 1)
    assert sharing([x[0, :7], x[:, 7], x[1].view(torch.bfloat16)[15:]]) == (1, 2)
