"""Where a number is taken, a tensor of one element is too: the same result, or the reason by name."""

from __future__ import annotations

import pytest
import torch

import ste_ops
from ste_ops import nn

X = torch.linspace(-2, 2, 12).view(3, 4)


def seeded():
    return torch.Generator().manual_seed(3)


def of_parameter(clip):
    """The gradient that a clip in place leaves."""

    def call(value):
        parameter = torch.nn.Parameter(X.clone())
        parameter.grad = 3 * X
        clip(parameter, value)
        return parameter.grad

    return call


def of_layer(module):
    def call(value):
        return gradient(lambda x: module(value)(x))

    return call


def of_scale(step):
    """The gradient of a learned step."""
    (step(X) * X).sum().backward()
    return step.scale.grad


class Step(torch.nn.Module):
    def __init__(self, grad_scale):
        super().__init__()
        self.scale, self.grad_scale = torch.nn.Parameter(torch.tensor(0.3)), grad_scale

    def forward(self, x):
        return ste_ops.lsq(x, self.scale, -4, 3, grad_scale=self.grad_scale)


def gradient(f):
    x = X.clone().requires_grad_()
    out = f(x)
    return torch.cat([out.detach().flatten(), torch.autograd.grad((out * X).sum(), x)[0].flatten()])


NUMBERS = {
    ("ternary", "threshold"): (0.5, lambda v: gradient(lambda x: ste_ops.ternary(x, threshold=v))),
    ("clamp", "min"): (-0.5, lambda v: gradient(lambda x: ste_ops.clamp(x, v, 1.0))),
    ("clamp", "max"): (0.5, lambda v: gradient(lambda x: ste_ops.clamp(x, -1.0, v))),
    ("lsq", "grad_scale"): (0.5, lambda v: of_scale(Step(v))),
    ("sr_ste", "decay"): (0.5, lambda v: gradient(lambda x: ste_ops.sr_ste(x, 1, 2, v))),
    ("categorical_ste", "tau"): (
        0.5,
        lambda v: gradient(lambda x: ste_ops.categorical_ste(x, tau=v, generator=seeded())),
    ),
    ("subset_ste", "tau"): (0.5, lambda v: gradient(lambda x: ste_ops.subset_ste(x, 2, v, generator=seeded()))),
    ("clip_gradient_value", "clip_value"): (0.5, lambda v: gradient(lambda x: ste_ops.clip_gradient_value(x, v))),
    ("clip_gradient_norm", "max_norm"): (0.5, lambda v: gradient(lambda x: ste_ops.clip_gradient_norm(x, v))),
    ("clip_gradient_norm", "norm_type"): (3.0, lambda v: gradient(lambda x: ste_ops.clip_gradient_norm(x, 0.5, v))),
    ("clip_grad_norm_", "max_norm"): (0.5, of_parameter(lambda p, v: ste_ops.clip_grad_norm_([p], v))),
    ("clip_grad_norm_", "norm_type"): (3.0, of_parameter(lambda p, v: ste_ops.clip_grad_norm_([p], 0.5, v))),
    ("clip_grad_value_", "clip_value"): (0.5, of_parameter(lambda p, v: ste_ops.clip_grad_value_([p], v))),
    ("clip_grads_with_norm_", "max_norm"): (
        0.5,
        of_parameter(lambda p, v: ste_ops.clip_grads_with_norm_([p], v, torch.tensor(2.0))),
    ),
    ("clip_grad_agc_", "clip_factor"): (0.5, of_parameter(lambda p, v: ste_ops.clip_grad_agc_([p], v))),
    ("clip_grad_agc_", "eps"): (64.0, of_parameter(lambda p, v: ste_ops.clip_grad_agc_([p], 0.01, v))),
    ("Ternary", "threshold"): (0.5, of_layer(lambda v: nn.Ternary(threshold=v))),
    ("LSQ", "grad_scale"): (0.5, lambda v: of_scale(nn.LSQ(4, scale=0.3, grad_scale=v))),
    ("PACT", "alpha"): (0.5, of_layer(lambda v: nn.PACT(v, bits=4))),
    ("SRSTE", "decay"): (0.5, of_layer(lambda v: nn.SRSTE(1, 2, v))),
    ("ClipGradientValue", "clip_value"): (0.5, of_layer(nn.ClipGradientValue)),
    ("ClipGradientNorm", "max_norm"): (0.5, of_layer(nn.ClipGradientNorm)),
}


@pytest.mark.parametrize("name", NUMBERS, ids=".".join)
def test_a_tensor_stands_for_its_number(name):
    number, call = NUMBERS[name]
    expected = call(number)
    assert bool(expected.isfinite().all())
    assert not torch.equal(expected, call(number * 1.5))  # or the number would not matter here
    for tensor in (torch.tensor(number), torch.tensor([number], dtype=torch.float64), torch.tensor(number).half()):
        assert torch.equal(call(tensor), expected)


@pytest.mark.parametrize("name", NUMBERS, ids=".".join)
def test_what_it_can_not_be_is_refused_by_name(name):
    number, call = NUMBERS[name]
    operator, argument = name
    with pytest.raises(ValueError, match=rf"^{operator}: {argument} must require no gradient, which it cannot get"):
        call(torch.tensor(number, requires_grad=True))
    for wrong in (torch.full((2,), number), torch.tensor(1), torch.ones(1, 1, dtype=torch.complex64)):
        with pytest.raises(
            ValueError, match=rf"^{operator}: {argument} must be a number or a floating tensor of one elem"
        ):
            call(wrong)
