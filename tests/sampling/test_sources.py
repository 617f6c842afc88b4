"""categorical_ste's gradients against numbers from the equations of their papers, in Python's math.

ReinMax (Liu et al., arXiv:2304.08612), algorithm 2: microsoft/ReinMax, reinmax/reinmax.py, ReinMaxCore. Its authors
take the mean off the gradient of each row, which is 0 but for rounding, and refuse tau < 1.
Straight-through (Bengio et al., arXiv:1308.3432), with the temperature of the softmax behind it (ReinMax).
Gumbel-softmax, straight-through (Jang et al., arXiv:1611.01144; Maddison et al., arXiv:1611.00712).
"""

import math

import pytest
import torch
from support.categorical_cases import seeded

import ste_ops
from ste_ops._library import ops

# Twelve rows of four logits, and what comes in.
LOGITS = [
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 2.0, 3.0, 4.0],
    [-1.0, 0.5, 0.25, -3.0],
    [10.0, 0.0, -10.0, 5.0],
    [0.1, 0.2, -0.3, 0.4],
    [-2.0, -2.0, 2.0, 2.0],
    [3.0, -1.0, -1.0, -1.0],
    [0.7, 0.7, 0.6, 0.5],
    [100.0, 99.0, 98.0, 97.0],
    [-50.0, -51.0, -50.5, -49.0],
    [1.5, -0.5, 0.0, 2.5],
    [0.0, -1e-3, 1e-3, 2e-3],
]
GRADS = [[math.sin(1 + 3 * i + j * j) for j in range(4)] for i in range(len(LOGITS))]
TAUS = [1.0, 1.25, 2.0, 0.5]


def softmax(x):
    powers = [math.exp(v - max(x)) for v in x]
    return [p / sum(powers) for p in powers]


def through(p, grad):
    """J(p) grad with J(p) = diag(p) - p p^T, the Jacobian of softmax."""
    inner = sum(a * b for a, b in zip(p, grad, strict=True))
    return [a * (b - inner) for a, b in zip(p, grad, strict=True)]


def reinmax(logits, drawn, grad, tau):
    """That of pi_2 = 2 pi_1 - pi_0 / 2, where pi_1 is a softmax whose value is (D + softmax(theta / tau)) / 2."""
    pi_0 = softmax(logits)
    pi_1 = [(d + q) / 2 for d, q in zip(drawn, softmax([x / tau for x in logits]), strict=True)]
    return [2 * a - b / 2 for a, b in zip(through(pi_1, grad), through(pi_0, grad), strict=True)]


def straight_through(logits, drawn, grad, tau):
    return [g / tau for g in through(softmax([x / tau for x in logits]), grad)]


EQUATIONS = {"reinmax": reinmax, "straight_through": straight_through}


def draw(estimator, tau, dtype, device, seed):
    logits = torch.tensor(LOGITS, dtype=dtype, device=device, requires_grad=True)
    drawn = ste_ops.categorical_ste(logits, estimator, tau, generator=seeded(seed, device))
    (gradient,) = torch.autograd.grad(drawn, logits, torch.tensor(GRADS, dtype=dtype, device=device))
    return drawn.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("estimator", EQUATIONS)
def test_gradient_of_its_source(device, estimator, tau, dtype):
    for seed in range(3):
        drawn, gradient = draw(estimator, tau, dtype, device, seed)
        rows = zip(LOGITS, drawn.tolist(), GRADS, strict=True)
        expected = torch.tensor([EQUATIONS[estimator](*row, tau) for row in rows], dtype=torch.float64)
        eps = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double().cpu(), expected, rtol=eps, atol=eps)
        # What the authors take off.
        assert float(gradient.double().mean(-1).abs().max()) < eps


@pytest.mark.parametrize("tau", TAUS)
def test_gumbel_softmax(device, tau):
    """The noise is the operator's own; softmax((theta + noise) / tau) is differentiated, the draw is its largest."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, device=device, requires_grad=True)
    seed = torch.tensor([7], device=device)
    drawn, index = ops.categorical(logits.detach(), seed)
    noise = ops.gumbel_noise(logits.detach(), seed).tolist()
    grad = torch.tensor(GRADS, dtype=torch.float64, device=device)
    gradient = ops.categorical_backward(grad, logits.detach(), seed, index, 1, tau)
    for i, (row, added) in enumerate(zip(LOGITS, noise, strict=True)):
        keys = [x + n for x, n in zip(row, added, strict=True)]
        assert drawn[i].tolist() == [float(k == max(keys)) for k in keys]
        expected = [g / tau for g in through(softmax([k / tau for k in keys]), GRADS[i])]
        assert gradient[i].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_reinmax_is_heuns_method(device):
    """Of a function quadratic in the draw the expected gradient is exact at tau = 1, as the paper proves."""
    logits = LOGITS[10]
    p = softmax(logits)
    matrix = [[math.cos(i * j + i) for j in range(4)] for i in range(4)]

    def value(k):
        return matrix[k][k]

    def gradient_of_value(k):  # d/dD of D^T M D at the draw of k
        return [matrix[j][k] + matrix[k][j] for j in range(4)]

    expected = through(p, [value(k) for k in range(4)])  # of sum_k p_k f(k)
    x = torch.tensor([logits], dtype=torch.float64, device=device)
    total = [0.0] * 4
    for k in range(4):
        grad = torch.tensor([gradient_of_value(k)], dtype=torch.float64, device=device)
        index = torch.tensor([k], device=device)
        row = ops.categorical_backward(grad, x, torch.tensor([0], device=device), index, 2, 1.0)[0].tolist()
        total = [a + p[k] * b for a, b in zip(total, row, strict=True)]
    assert total == pytest.approx(expected, rel=1e-12)
