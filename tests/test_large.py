"""More than 2^31 elements on the CPU: `make large`, 19 GB of memory at the peak."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import ste_ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("STE_OPS_LARGE") != "1", reason="opt-in: STE_OPS_LARGE=1, and 19 GB of memory"),
]
N = 2**31 + 9
LAST = [-2.0, 2.0, -1.0, 1.0, 0.5, 3.0, -3.0, 0.0, 1.0]


@pytest.fixture
def x() -> Tensor:
    return torch.zeros(N, dtype=torch.bfloat16).index_copy_(0, torch.arange(N - 9, N), torch.tensor(LAST).bfloat16())


def test_three_billion_elements_transposed() -> None:
    rows, columns = 2**16, 45777  # 3.0e9 elements, 6 GB
    memory = torch.zeros(rows, columns, dtype=torch.bfloat16)
    memory[-1, -9:] = torch.tensor(LAST)
    x = memory.t()
    assert not x.is_contiguous()
    out = ste_ops.sign(x.requires_grad_())
    del memory
    assert out.stride() == x.stride()
    assert out.detach()[-9:, -1].tolist() == [-1, 1, -1, 1, 1, 1, -1, 1, 1]
    edge = torch.autograd.graph.get_gradient_edge(out)
    del out
    (gradient,) = torch.autograd.grad(edge, x, torch.ones((), dtype=torch.bfloat16).expand(x.shape))
    assert gradient[-9:, -1].tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert bool((gradient[:, :-1] == 1).all())


def test_a_curve(x: Tensor) -> None:
    edge = torch.autograd.graph.get_gradient_edge(ste_ops.heaviside(x.requires_grad_(), ste_ops.surrogate.ATan()))
    (gradient,) = torch.autograd.grad(edge, x, torch.ones((), dtype=torch.bfloat16).expand(N))
    torch.testing.assert_close(gradient[-9:], ste_ops.surrogate.ATan().derivative(torch.tensor(LAST)).bfloat16())
    assert bool((gradient[: 2**31] == 1).all())


def test_quantizers(x: Tensor) -> None:
    out = ste_ops.fake_quantize(x, 0.5, 0.0, -3, 3)
    assert out[-9:].tolist() == [-1.5, 1.5, -1, 1, 0.5, 1.5, -1.5, 0, 1]
    assert float(out[: 2**31].abs().amax()) == 0
    del out
    assert ste_ops.round(x)[-9:].tolist() == [-2, 2, -1, 1, 0, 3, -3, 0, 1]


def test_clipping(x: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    leaf.grad = x.detach()
    exact = sum(v * v for v in LAST) ** 0.5
    assert float(ste_ops.get_total_norm([x])) == pytest.approx(exact, rel=1e-6)
    assert float(ste_ops.get_total_norm([x], 0.0)) == pytest.approx(N, rel=1e-7)
    ste_ops.clip_grad_value_([leaf], 1.0)
    assert leaf.grad[-9:].tolist() == [-1, 1, -1, 1, 0.5, 1, -1, 0, 1]
    x.fill_(1)
    assert float(ste_ops.clip_grad_norm_([leaf], 1.0)) == pytest.approx(N**0.5, rel=1e-7)
    assert bool((x == x[0]).all())
    assert float(x[0]) == pytest.approx(N**-0.5, rel=2**-8)
