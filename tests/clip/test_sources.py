"""clip_grad_agc_ against numbers from its paper's equation, unit by unit.

Brock et al. (arXiv:2102.06171), eq. 3: a unit's gradient G is lambda max(|W|, eps) / |G| G where |G| / max(|W|, eps) is
greater than lambda, and G elsewhere. Their code: google-deepmind/deepmind-research, nfnets/agc_optax.py, my_clip and
unitwise_norm, which also scales where the two are equal, and takes |G| as 1e-6 at least. timm: timm/utils/agc.py.
"""

import math

import pytest
import torch

import ste_ops

# The weights of a unit, its gradient, of a (12, 3) layer.
UNITS = [
    ([3.0, 4.0, 0.0], [0.03, 0.04, 0.0]),  # a norm of 5: 0.05 is the bound at 0.01
    ([3.0, 4.0, 0.0], [0.3, 0.4, 0.0]),
    ([3.0, 4.0, 0.0], [0.029, 0.04, 0.0]),
    ([0.3, -0.4, 0.0], [1.0, -2.0, 2.0]),
    ([0.3, -0.4, 0.0], [1e-3, -2e-3, 2e-3]),
    ([0.0, 0.0, 0.0], [1.0, 2.0, 2.0]),  # weights of zeros: eps instead
    ([0.0, 0.0, 0.0], [1e-6, 2e-6, 2e-6]),
    ([5e-4, 0.0, 0.0], [0.0, 1.0, 0.0]),
    ([1e-2, 0.0, 0.0], [0.0, 1.0, 0.0]),
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
    ([100.0, -50.0, 25.0], [3.0, 4.0, -12.0]),
    ([1e-2, 2e-2, -2e-2], [7.0, 0.1, -5.0]),
]


def norm(unit):
    return math.sqrt(sum(x * x for x in unit))


def clipped(weights, gradient, clip_factor, eps):
    bound = clip_factor * max(norm(weights), eps)
    if norm(gradient) < bound:
        return gradient
    return [g * bound / max(norm(gradient), 1e-6) for g in gradient]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("clip_factor", "eps"), [(0.01, 1e-3), (0.16, 1e-3), (0.01, 0.1), (2.0, 0.0)])
@pytest.mark.parametrize("shape", [(12, 3), (12, 1, 3), (12, 3, 1, 1)], ids=str)
def test_units_of_a_layer(device, shape, clip_factor, eps, dtype):
    """Outputs come first here, and last in the authors' code; a unit is what one output is made of in both."""
    layer, gradients = (torch.tensor([u[i] for u in UNITS], dtype=torch.float64).to(dtype) for i in (0, 1))
    rows = zip(layer.tolist(), gradients.tolist(), strict=True)
    expected = [clipped(w, g, clip_factor, eps) for w, g in rows]
    w = layer.view(shape).to(device).requires_grad_()
    w.grad = gradients.view(shape).to(device)
    ste_ops.clip_grad_agc_([w], clip_factor, eps)
    received = w.grad.view(12, 3).double().cpu()
    rtol = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(received, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize(("weights", "gradient"), UNITS, ids=str)
def test_a_vector_is_one_unit(device, weights, gradient):
    w = torch.tensor(weights, dtype=torch.float64, device=device, requires_grad=True)
    w.grad = torch.tensor(gradient, dtype=torch.float64, device=device)
    ste_ops.clip_grad_agc_([w])
    assert w.grad.tolist() == pytest.approx(clipped(weights, gradient, 0.01, 1e-3), rel=1e-14, abs=0)


def test_a_layer_of_one_output_is_one_unit(device):
    """One row: the authors' code squeezes it to a vector first, with the same unit. One column is different there: all
    of it one unit, as a vector; here each row is a unit of one, as in timm."""
    w = torch.tensor([[3.0, 4.0]], device=device, requires_grad=True)
    w.grad = torch.tensor([[0.3, 0.4]], device=device)
    ste_ops.clip_grad_agc_([w])
    assert w.grad.tolist() == [pytest.approx([0.03, 0.04])]
    w = torch.tensor([[3.0], [4.0]], device=device, requires_grad=True)
    w.grad = torch.tensor([[0.3], [0.4]], device=device)
    ste_ops.clip_grad_agc_([w])
    assert w.grad.tolist() == [[pytest.approx(0.03)], [pytest.approx(0.04)]]
