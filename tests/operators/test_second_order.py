"""Derivatives of derivatives, forward and backward mode in every order: the four agree."""

import pytest
import torch
from torch.func import jacfwd, jacrev

import ste_ops
from ste_ops.surrogate import ATan, Clip, Custom, Identity, Rect


def drawn(function, *arguments):
    return lambda x: function(x, *arguments, generator=torch.Generator(x.device).manual_seed(3))


# Of a vector of four. The clips and the decay of sr_ste, which act in a backward alone, are given nothing to do.
FUNCTIONS = {
    "Custom": lambda x: ste_ops.heaviside(x, Custom(lambda x: torch.exp(-x * x))),
    "ATan": lambda x: ste_ops.heaviside(x, ATan()),
    "Clip": lambda x: ste_ops.sign(x, Clip()),
    "Rect": lambda x: ste_ops.ternary(x, Rect(0.3)),
    "Identity": lambda x: ste_ops.sign(x, Identity()),
    "round": ste_ops.round,
    "clamp": lambda x: ste_ops.clamp(x, -0.1, 0.1),
    "fake_quantize": lambda x: ste_ops.fake_quantize(x.view(2, 2).t(), 0.3, 0, -4, 3).t().reshape(-1),
    "lsq": lambda x: ste_ops.lsq(x, x.abs().mean() * 0.3, -4, 3),
    "lsq(constant scale)": lambda x: ste_ops.lsq(x, x.new_tensor(0.3), -4, 3),
    "pact": lambda x: ste_ops.pact(x, x.abs().mean(), 3),
    "dorefa_activation": lambda x: ste_ops.dorefa_activation(x, 3),
    "dorefa_weight": lambda x: ste_ops.dorefa_weight(x, 2),
    "xnor_weight": lambda x: ste_ops.xnor_weight(x.view(1, 4)).view(4),
    "magnitude_aware_sign": lambda x: ste_ops.magnitude_aware_sign(x.view(1, 4)).view(4),
    "bitnet_weight": ste_ops.bitnet_weight,
    "bitnet_activation": ste_ops.bitnet_activation,
    "sr_ste": lambda x: ste_ops.sr_ste(x, 1, 2, 0.0),
    "straight_through": drawn(ste_ops.categorical_ste, "straight_through", 1.3),
    "gumbel": drawn(ste_ops.categorical_ste, "gumbel", 1.3),
    "reinmax": drawn(ste_ops.categorical_ste, "reinmax", 1.3),
    "subset_ste": drawn(ste_ops.subset_ste, 2, 0.7),
    "bernoulli_ste": lambda x: drawn(ste_ops.bernoulli_ste)(x.sigmoid()),
    "clip_gradient_value": lambda x: ste_ops.clip_gradient_value(x, 1e3),
    "clip_gradient_norm": lambda x: ste_ops.clip_gradient_norm(x, 1e3),
}


def forward(f):
    return jacfwd(f, randomness="same")


def loss_of(function, device):
    weights = torch.tensor([1.0, 2.0, -1.5, 0.7], dtype=torch.float64, device=device)
    return lambda x: (function(x * x + 0.5 * x) * weights).sum() + (function(x.sin()) * weights).square().sum()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_orders_of_differentiation_agree(device, name):
    loss = loss_of(FUNCTIONS[name], device)
    x = torch.tensor([0.3, -0.7, 0.45, -0.2], dtype=torch.float64, device=device)
    expected = jacrev(jacrev(loss))(x)
    assert expected.abs().sum() > 0.1
    for outer, inner in ((forward, forward), (forward, jacrev), (jacrev, forward)):
        torch.testing.assert_close(outer(inner(loss))(x), expected)


@pytest.mark.parametrize("name", ["Custom", "dorefa_weight", "xnor_weight", "gumbel"])
def test_a_third_order_too(name):
    loss = loss_of(FUNCTIONS[name], "cpu")
    x = torch.tensor([0.3, -0.7, 0.45, -0.2], dtype=torch.float64)
    torch.testing.assert_close(forward(forward(forward(loss)))(x), jacrev(jacrev(jacrev(loss)))(x))
