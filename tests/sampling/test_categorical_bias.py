"""The published bias of each gradient of categorical_ste, against expectations that are enumerated or integrated.

Those of straight_through and reinmax depend on the draw alone, so that their expectation is a sum over the categories.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ste_ops
from ste_ops._functions.sampling.categorical import REINMAX, STRAIGHT_THROUGH
from ste_ops._library import ops

LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
VALUES = torch.tensor([0.7, -0.4, 1.1, 0.2], dtype=torch.float64)
MATRIX = torch.tensor(
    [[1.0, 0.5, -2.0, 0.3], [0.1, -1.0, 0.4, 0.9], [2.0, 0.2, 0.5, -0.7], [0.3, 1.5, -0.2, 0.8]], dtype=torch.float64
)


def exact_gradient(f) -> Tensor:
    x = LOGITS.clone().requires_grad_()
    value = sum(p * f(d) for p, d in zip(torch.softmax(x, -1), torch.eye(4, dtype=torch.float64), strict=True))
    return torch.autograd.grad(value, x)[0]


def expected_gradient(f, estimator: int, tau: float = 1.0, device: str = "cpu") -> Tensor:
    total = torch.zeros_like(LOGITS)
    for i, p in enumerate(torch.softmax(LOGITS, -1)):
        drawn = torch.eye(4, dtype=torch.float64)[i].requires_grad_()
        (grad,) = torch.autograd.grad(f(drawn), drawn)
        index, seed = torch.tensor(i, device=device), torch.tensor([0], device=device)
        total += p * ops.categorical_backward(grad.to(device), LOGITS.to(device), seed, index, estimator, tau).cpu()
    return total


def linear(d: Tensor) -> Tensor:
    return (d * VALUES).sum()


def quadratic(d: Tensor) -> Tensor:
    return d @ MATRIX @ d + linear(d)


def test_straight_through_is_exact_for_linear_functions(device: str) -> None:
    exact = exact_gradient(linear)
    torch.testing.assert_close(expected_gradient(linear, STRAIGHT_THROUGH, device=device), exact)
    for wrong in (
        expected_gradient(linear, STRAIGHT_THROUGH, tau=1.1, device=device),
        expected_gradient(quadratic, STRAIGHT_THROUGH, device=device) - exact_gradient(quadratic) + exact,
    ):
        assert not torch.allclose(wrong, exact, rtol=1e-2)


def test_reinmax_is_exact_for_quadratic_functions(device: str) -> None:
    exact = exact_gradient(quadratic)
    torch.testing.assert_close(expected_gradient(quadratic, REINMAX, device=device), exact)
    assert not torch.allclose(expected_gradient(quadratic, REINMAX, tau=1.1, device=device), exact, rtol=1e-2)
    assert not torch.allclose(expected_gradient(quadratic, STRAIGHT_THROUGH, device=device), exact, rtol=1e-2)


def test_the_bias_shrinks_at_the_order_of_the_estimator(device: str) -> None:
    """Of f(s D) as s shrinks: straight_through leaves out what is of second order in s, reinmax of third."""

    def bias(estimator: int, scale: float) -> float:
        def f(d: Tensor) -> Tensor:
            return (scale * d * VALUES).sum().exp()

        return (expected_gradient(f, estimator, device=device) - exact_gradient(f)).norm().item()

    for estimator, order in ((STRAIGHT_THROUGH, 2), (REINMAX, 3)):
        assert bias(estimator, 0.02) / bias(estimator, 0.01) == pytest.approx(2**order, rel=0.03)
    assert bias(REINMAX, 1.0) < bias(STRAIGHT_THROUGH, 1.0) / 2


def mean_and_error(estimator: str, tau: float, f, rows: int, logits: Tensor, device: str) -> tuple[Tensor, Tensor]:
    x = logits.to(device).expand(rows, -1).contiguous().requires_grad_()
    (grad,) = torch.autograd.grad(f(ste_ops.categorical_ste(x, estimator, tau)).sum(), x)
    return grad.mean(0).cpu(), grad.std(0).cpu() / rows**0.5


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_drawn_gradients_average_to_the_expectation(device: str) -> None:
    """Within 6 standard errors, which chance passes once in 10^8; a function that the estimator is biased for fails."""
    matrix, values = MATRIX.to(device), VALUES.to(device)
    functions = {
        "straight_through": (lambda d: d @ values, linear),
        "reinmax": (lambda d: ((d @ matrix) * d).sum(-1) + d @ values, quadratic),
    }
    for estimator, (rowwise, alone) in functions.items():
        mean, error = mean_and_error(estimator, 1.0, rowwise, 100_000, LOGITS, device)
        assert ((mean - exact_gradient(alone)).abs() < 6 * error + 1e-12).all()
    mean, error = mean_and_error("straight_through", 1.0, functions["reinmax"][0], 100_000, LOGITS, device)
    assert ((mean - exact_gradient(quadratic)).abs() > 6 * error).any()


def relaxed_derivative(difference: float, tau: float) -> float:
    """d/dx E[sigmoid((x + L) / tau)], L the logistic difference of two Gumbels: what gumbel is of two categories."""
    at = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    soft = torch.sigmoid((difference + at) / tau)
    return torch.trapezoid(soft * (1 - soft) / tau * torch.sigmoid(at) * torch.sigmoid(-at), at).item()


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_gumbel_averages_to_the_relaxed_gradient(device: str, tau: float) -> None:
    logits = torch.tensor([0.9, 0.2], dtype=torch.float64)
    mean, error = mean_and_error("gumbel", tau, lambda d: d[..., 0], 200_000, logits, device)
    truth = torch.tensor([1.0, -1.0]).double() * relaxed_derivative(0.7, tau)
    assert ((mean - truth).abs() < 6 * error).all()
    assert ((mean - truth * relaxed_derivative(0.7, tau * 1.3) / relaxed_derivative(0.7, tau)).abs() > 6 * error).all()
    p = torch.sigmoid(torch.tensor(0.7)).item()
    assert relaxed_derivative(0.7, 0.02) == pytest.approx(p * (1 - p), rel=1e-3)
