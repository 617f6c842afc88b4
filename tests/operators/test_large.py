"""More than 2^31 elements: `make large`, 19 GB of memory at the peak; on a GPU twice that, for torch's temporaries."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import ste_ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("STE_OPS_LARGE") != "1", reason="opt-in: STE_OPS_LARGE=1, and 19 GB of memory"),
    pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True),
]
N = 2**31 + 9
LAST = [-2.0, 2.0, -1.0, 1.0, 0.5, 3.0, -3.0, 0.0, 1.0]


@pytest.fixture(autouse=True)
def _memory(device: str) -> Iterator[None]:
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip(f"40 GB of the GPU's memory are needed, {torch.cuda.mem_get_info()[0] / 1e9:.0f} GB are free")
    yield
    if device == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def x(device: str) -> Tensor:
    zeros = torch.zeros(N, dtype=torch.bfloat16, device=device)
    zeros[-9:] = torch.tensor(LAST)
    return zeros


def test_three_billion_elements_transposed(device: str) -> None:
    rows, columns = 2**16, 45777  # 3.0e9 elements, 6 GB
    memory = torch.zeros(rows, columns, dtype=torch.bfloat16, device=device)
    memory[-1, -9:] = torch.tensor(LAST)
    x = memory.t()
    assert not x.is_contiguous()
    out = ste_ops.sign(x.requires_grad_())
    del memory
    assert out.stride() == x.stride()
    assert out.detach()[-9:, -1].tolist() == [-1, 1, -1, 1, 1, 1, -1, 1, 1]
    edge = torch.autograd.graph.get_gradient_edge(out)
    del out
    (gradient,) = torch.autograd.grad(edge, x, torch.ones((), dtype=torch.bfloat16, device=device).expand(x.shape))
    assert gradient[-9:, -1].tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert bool((gradient[:, :-1] == 1).all())


def test_a_curve(x: Tensor, device: str) -> None:
    edge = torch.autograd.graph.get_gradient_edge(ste_ops.heaviside(x.requires_grad_(), ste_ops.surrogate.ATan()))
    (gradient,) = torch.autograd.grad(edge, x, torch.ones((), dtype=torch.bfloat16, device=device).expand(N))
    torch.testing.assert_close(gradient[-9:].cpu(), ste_ops.surrogate.ATan().derivative(torch.tensor(LAST)).bfloat16())
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
    assert float(ste_ops.get_total_norm([x], 0.0)) == sum(v != 0 for v in LAST)
    ste_ops.clip_grad_value_([leaf], 1.0)
    assert leaf.grad[-9:].tolist() == [-1, 1, -1, 1, 0.5, 1, -1, 0, 1]
    x.fill_(1)
    assert float(ste_ops.get_total_norm([x], 0.0)) == pytest.approx(N, rel=1e-7)
    assert float(ste_ops.clip_grad_norm_([leaf], 1.0)) == pytest.approx(N**0.5, rel=1e-7)
    assert bool((x == x[0]).all())
    assert float(x[0]) == pytest.approx(N**-0.5, rel=2**-8)


def test_draws(x: Tensor, device: str) -> None:
    if device == "cpu":
        pytest.skip("a table of 17 GB beside the weights: on a GPU alone")
    w = x.clamp_(min=0)
    drawn = ste_ops.multinomial(w, 100_000, replacement=True) - (N - 9)
    shares = torch.bincount(drawn, minlength=9).double() / 100_000
    torch.testing.assert_close(shares.cpu(), torch.tensor(LAST).clamp(min=0).double() / 7.5, rtol=0, atol=0.01)
    assert (ste_ops.multinomial(w, 5).sort().values - (N - 9)).tolist() == [1, 3, 4, 5, 8]
    assert ste_ops.bernoulli_ste(w.clamp_(max=1))[-9:].tolist()[:4] == [0, 1, 0, 1]
