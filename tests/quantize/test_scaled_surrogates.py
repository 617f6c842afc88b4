"""Scaled weights whose sign has the gradient of a surrogate, against their references, on every device."""

import math

import pytest
import torch
from support.surrogate_table import SURROGATES, assert_same_bits, forward_and_gradient

import ste_ops
from ste_ops import reference
from ste_ops.surrogate import ApproxSign, Clip, Custom, Tanh


@pytest.mark.parametrize("name", ["xnor_weight", "magnitude_aware_sign"])
def test_the_default_is_one_kernel_and_the_same_as_its_parts(device, name):
    fn = getattr(ste_ops, name)
    w, upstream = torch.randn(6, 70, device=device), torch.randn(6, 70, device=device)
    given = forward_and_gradient(fn, w, upstream)
    for surrogate in (Clip(1.0), Clip(1)):
        for received, expected in zip(
            forward_and_gradient(lambda w, s=surrogate: fn(w, s), w, upstream), given, strict=True
        ):
            assert_same_bits(received, expected)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fn(w.requires_grad_(), Clip(1.0))
    assert len(saved) == 2  # w and the means: no mask
    # A bound that no weight lies between.
    near = math.nextafter(1.0, 2.0)
    torch.testing.assert_close(forward_and_gradient(lambda w: fn(w, Clip(near)), w.detach(), upstream), given)


@pytest.mark.parametrize("surrogate", [s for some in SURROGATES.values() for s in some], ids=repr)
@pytest.mark.parametrize("name", ["xnor_weight", "magnitude_aware_sign"])
def test_every_surrogate_stands_in_for_the_sign(device, name, surrogate):
    w, upstream = torch.randn(4, 33, device=device), torch.randn(4, 33, device=device)
    w[0, :3] = torch.tensor([0.0, 1.0, -1.0])
    received, expected = (
        forward_and_gradient(lambda w, module=module: getattr(module, name)(w, surrogate), w, upstream)
        for module in (ste_ops, reference)
    )
    torch.testing.assert_close(received, expected, rtol=2e-5, atol=1e-6)
    mean, sign = w.abs().mean(1, keepdim=True), torch.where(w >= 0, 1.0, -1.0)
    of_mean = sign * (upstream * sign).mean(1, keepdim=True) if name == "xnor_weight" else 0.0
    expected = upstream * mean * surrogate.derivative(w) + of_mean
    torch.testing.assert_close(received[1], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["xnor_weight", "magnitude_aware_sign"])
def test_a_callable_and_tensors_as_fields(device, name):
    fn = getattr(ste_ops, name)
    w, upstream = torch.randn(3, 9, device=device), torch.randn(3, 9, device=device)
    tent = Custom(lambda x: (2 - 2 * x.abs()).clamp(min=0))
    torch.testing.assert_close(
        forward_and_gradient(lambda w: fn(w, tent), w, upstream),
        forward_and_gradient(lambda w: fn(w, ApproxSign()), w, upstream),
    )
    torch.testing.assert_close(
        forward_and_gradient(lambda w: fn(w, Tanh(torch.tensor(2.0), torch.tensor(0.5))), w, upstream),
        forward_and_gradient(lambda w: fn(w, Tanh(2.0, 0.5)), w, upstream),
    )


@pytest.mark.parametrize("name", ["xnor_weight", "magnitude_aware_sign"])
def test_what_is_no_surrogate_is_refused(name):
    with pytest.raises(TypeError, match=f"{name}: surrogate must be one of ste_ops.surrogate, got 'clip'"):
        getattr(ste_ops, name)(torch.ones(2), "clip")
    module = {"xnor_weight": ste_ops.nn.XNORWeight, "magnitude_aware_sign": ste_ops.nn.MagnitudeAwareSign}[name]
    with pytest.raises(TypeError, match=f"{module.__name__}: surrogate must be one of ste_ops.surrogate, got 2"):
        module(2)
    quantizer, w = module(), torch.randn(3, 5)
    assert repr(quantizer) == f"{module.__name__}()"
    quantizer.surrogate = ApproxSign()
    assert repr(quantizer) == repr(module(ApproxSign())) == f"{module.__name__}(ApproxSign())"
    received = forward_and_gradient(quantizer, w, torch.ones_like(w))
    expected = forward_and_gradient(
        lambda w: getattr(reference, name)(w, surrogate=ApproxSign()), w, torch.ones_like(w)
    )
    torch.testing.assert_close(received, expected)
