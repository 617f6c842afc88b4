"""Weights of zeros, and so small ones that a scale of theirs is none: their gradients are finite and train them."""

import pytest
import torch
from support.surrogate_table import DTYPES, forward_and_gradient

import ste_ops
from ste_ops import reference

TRAINED = {
    "xnor_weight": ste_ops.xnor_weight,
    "dorefa_weight of 1 bit": lambda w: ste_ops.dorefa_weight(w, 1),
    "dorefa_weight of 2 bits": lambda w: ste_ops.dorefa_weight(w, 2),
    "bitnet_weight": ste_ops.bitnet_weight,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-310, 1e-45, 1e-39, 1e-30, 5e-8, 6e-5], ids=str)
def test_weights_too_small_to_divide_by_pass_the_gradient(device, dtype, size):
    """Below 2^-14 the maximum counts as 1."""
    w = torch.tensor([size, -size, size / 2, 0.0], dtype=torch.float64, device=device).to(dtype)
    upstream = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=dtype, device=device)
    for module in (ste_ops, reference):
        out, gradient = forward_and_gradient(lambda w, module=module: module.dorefa_weight(w, 4), w, upstream)
        torch.testing.assert_close(gradient, upstream)
        torch.testing.assert_close(out.abs(), torch.full_like(out, 1 / 15))  # the two levels in the middle
    w.requires_grad_()
    (found,) = torch.autograd.grad(ste_ops.dorefa_weight(w, 4), w, upstream, create_graph=True)
    torch.testing.assert_close(found, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_least_maximum_divides(device, dtype):
    """The gradient of a weight that is no maximum is then 16384 times the incoming one, which float16 holds."""
    w = torch.tensor([2.0**-14 * 1.001, 0.0], dtype=torch.float64, device=device).to(dtype).nextafter(torch.ones(()))
    upstream = torch.tensor([0.0, 2.0], dtype=dtype, device=device)
    for module in (ste_ops, reference):
        out, gradient = forward_and_gradient(lambda w, module=module: module.dorefa_weight(w, 4), w, upstream)
        assert out[0] == 1
        torch.testing.assert_close(gradient.double()[1].item(), 2 / w[0].item(), rtol=1e-2, atol=0)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", TRAINED)
def test_zeros_can_be_trained(device, name):
    """A layer that starts at 0 and another share one norm; both learn."""
    target = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]], device=device)
    w = torch.zeros(2, 3, device=device, requires_grad=True)
    other = torch.zeros(4, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([w, other], lr=0.1)
    for step in range(40):
        optimizer.zero_grad()
        loss = (TRAINED[name](w) - target).square().mean() + (other - 1).square().mean()
        loss.backward()
        ste_ops.clip_grad_norm_([w, other], 1.0)
        assert step or (bool((w.grad != 0).all()) and bool((other.grad.abs() > 0.1).all()))
        optimizer.step()
    assert (w.detach().sign() == target).all()
    assert (other.detach() > 0.5).all()


def test_a_channel_of_zeros(device):
    """xnor_weight: the paper's gradient where the mean is 0, summed over the channel. magnitude_aware_sign: nothing."""
    w = torch.tensor([[0.0, -0.0, 0.0], [0.3, -0.6, 0.0]], device=device)
    upstream = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 4.0]], device=device)
    # The mean of the second is 0.3; its sum of grad * sign(w) over 3 is (1 - 2 + 4) / 3.
    expected = torch.tensor([[3.0, 3.0, 3.0], [0.3 + 1, 0.6 - 1, 1.2 + 1]], device=device)
    for module in (ste_ops, reference):
        out, gradient = forward_and_gradient(module.xnor_weight, w, upstream)
        torch.testing.assert_close(gradient, expected)
        assert out[0].tolist() == [0, 0, 0]
        _, gradient = forward_and_gradient(module.magnitude_aware_sign, w, upstream)
        assert gradient[0].tolist() == [0, 0, 0]
    x = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(ste_ops.xnor_weight(x), x, upstream, create_graph=True)
    torch.testing.assert_close(found, expected)
    _, tangent = torch.func.jvp(ste_ops.xnor_weight, (w,), (upstream,))
    torch.testing.assert_close(tangent, torch.tensor([[3.0, 3.0, 3.0], [0.3 + 1, 0.6 - 1, 1.2 + 1]], device=device))
