"""heaviside and sign inside autograd: incoming gradients, second order, and everything the tutorial does."""

import math

import pytest
import torch
from support.surrogate_table import (
    ALL_STEPS,
    assert_same_bits,
    filler,
    first_instances,
    forward_and_gradient,
    pairs,
    representatives,
)

import ste_ops
from ste_ops import reference
from ste_ops.surrogate import Clip, Identity

nan, inf = math.nan, math.inf


# Incoming gradients.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_layout", ["contiguous", "transposed", "sliced", "channels_last"])
def test_gradients_of_any_strides(device, x_layout, dtype):
    fill = filler(dtype, Clip(1.0), device)
    x = {
        "contiguous": lambda: fill(4, 6, 10, 8),
        "transposed": lambda: fill(8, 10, 6, 4).permute(3, 2, 1, 0),
        "sliced": lambda: fill(8, 6, 20, 8)[::2, :, ::2],
        "channels_last": lambda: fill(4, 6, 10, 8).contiguous(memory_format=torch.channels_last),
    }[x_layout]()
    grads = {
        "contiguous": fill(4, 6, 10, 8),
        "transposed": fill(10, 6, 8, 4).permute(3, 1, 0, 2),
        "sliced": fill(4, 12, 10, 16)[:, ::2, :, 8:],
        "channels_last": fill(4, 6, 10, 8).contiguous(memory_format=torch.channels_last),
        "expanded": fill(6, 1, 8).expand(4, 6, 10, 8),
        "scalar": fill().expand(4, 6, 10, 8),
        "offset": fill(4 * 6 * 10 * 8 + 1)[1:].view(4, 6, 10, 8),
    }
    for name, grad in grads.items():
        _, gradient = forward_and_gradient(ste_ops.sign, x, grad)
        assert_same_bits(gradient, torch.where(x.abs() > 1, torch.zeros_like(grad), grad), name)


def test_a_closed_mask_stops_nan_and_infinity(device):
    x = torch.tensor([2.0, -2.0, inf, -inf, 0.5], device=device)
    for value in (nan, inf, -inf, -0.0):
        _, gradient = forward_and_gradient(ste_ops.heaviside, x, torch.full_like(x, value))
        expected = torch.tensor([0.0, 0.0, 0.0, 0.0, value], device=device)
        assert_same_bits(gradient, expected, str(value))


# Autograd, as the tutorial uses it.


def test_no_grad_detach_and_requires_grad(device):
    x = torch.randn(9, device=device, requires_grad=True)
    with torch.no_grad():
        assert not ste_ops.sign(x).requires_grad
    with torch.inference_mode():
        assert ste_ops.sign(x).is_inference()
    with torch.set_grad_enabled(False):
        assert ste_ops.heaviside(x).grad_fn is None
    assert not ste_ops.sign(x.detach()).requires_grad
    y = ste_ops.sign(x)
    assert y.requires_grad
    assert not y.is_leaf
    assert not y.detach().requires_grad
    assert not ste_ops.sign(torch.randn(3, device=device)).requires_grad


def test_retain_grad_zero_grad_and_accumulation(device):
    x = torch.tensor([0.5, 2.0], device=device, requires_grad=True)
    y = ste_ops.heaviside(x)
    y.retain_grad()
    (3 * y).sum().backward()
    assert y.grad.tolist() == [3, 3]
    ste_ops.sign(x).sum().backward()
    assert x.grad.tolist() == [4, 0]
    torch.optim.SGD([x], lr=1.0).zero_grad()
    assert x.grad is None
    loss = ste_ops.sign(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert x.grad.tolist() == [2, 0]


def test_backward_of_several_roots(device):
    x = torch.tensor([0.5, 2.0, -0.5], device=device, requires_grad=True)
    a, b = ste_ops.heaviside(x), ste_ops.sign(x, Identity())
    torch.autograd.backward([a, b], [torch.tensor([1.0, 2.0, 3.0], device=device), torch.ones(3, device=device)])
    assert x.grad.tolist() == [2, 1, 4]
    ste_ops.sign(x).backward(gradient=torch.tensor([1.0, 1.0, -1.0], device=device), inputs=[x])
    assert x.grad.tolist() == [3, 1, 3]


def test_the_gradient_is_not_the_incoming_tensor_written_over(device):
    x = torch.tensor([0.5, 2.0], device=device, requires_grad=True)
    grad = torch.tensor([1.0, 1.0], device=device)
    for surrogate in first_instances():
        torch.autograd.grad(ste_ops.sign(x, surrogate), x, grad)
        assert grad.tolist() == [1, 1]


def curved(module, step, surrogate):
    def fn(x):
        return getattr(module, step)(x, surrogate=surrogate)

    return lambda x: (fn(x) * x.sin() + fn(x * 0.7) ** 2).sum()


@pytest.mark.parametrize(("step", "surrogate"), pairs(), ids=repr)
def test_second_order(device, step, surrogate):
    x = torch.randn(11, dtype=torch.float64, device=device) * 1.5
    native, slow = curved(ste_ops, step, surrogate), curved(reference, step, surrogate)
    functional = torch.autograd.functional
    torch.testing.assert_close(functional.hessian(native, x), functional.hessian(slow, x))
    torch.testing.assert_close(
        functional.jacobian(lambda x: getattr(ste_ops, step)(x, surrogate=surrogate), x),
        functional.jacobian(lambda x: getattr(reference, step)(x, surrogate=surrogate), x),
    )
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(native(z), z, create_graph=True)
    (expected,) = torch.autograd.grad(slow(z), z, create_graph=True)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(
        torch.autograd.grad(gradient.square().sum(), z)[0], torch.autograd.grad(expected.square().sum(), z)[0]
    )


@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
def test_a_gradient_penalty_trains_through_the_step(device, surrogate):
    def gradients(sign):
        torch.manual_seed(0)
        critic = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1)).to(device).double()
        x = torch.randn(5, 6, dtype=torch.float64, device=device, requires_grad=True)
        score = critic[2](sign(critic[0](x), surrogate) * critic[1](critic[0](x)))
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        ((gradient.norm(2, dim=1) - 1) ** 2).mean().backward()
        return [p.grad for p in critic.parameters() if p.grad is not None]

    received, expected = gradients(ste_ops.sign), gradients(reference.sign)
    assert len(received) == len(expected) >= 3
    assert any(bool(g.abs().sum() > 0) for g in received)
    torch.testing.assert_close(received, expected)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_autocast_keeps_the_dtype(device, step):
    layer = torch.nn.Linear(6, 5).to(device)
    x = torch.randn(3, 6, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        assert getattr(ste_ops, step)(x).dtype == torch.float32
        y = getattr(ste_ops, step)(layer(x))
        assert y.dtype == torch.bfloat16
        y.sum().backward()
    assert x.grad.dtype == torch.float32
    # sum's gradient is 1 everywhere, so the mask of what the layer gave is the gradient of it.
    with torch.autocast(device, torch.bfloat16):
        passes = (layer(x).abs() <= 1).float()
    torch.testing.assert_close(x.grad, passes @ layer.weight, rtol=1e-2, atol=1e-2)
