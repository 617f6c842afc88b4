"""A surrogate is a function too: heaviside with itself."""

from __future__ import annotations

import pytest
import torch
from support.surrogate_table import DTYPES, assert_same_bits, filler, first_instances

import ste_ops
from ste_ops.surrogate import Surrogate


def through(fn, x):
    x = x.detach().clone().requires_grad_()
    out = fn(x)
    grad = torch.linspace(-2, 2, out.numel(), dtype=out.dtype, device=x.device).view(out.shape)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


def assert_is_heaviside(fn, surrogate: Surrogate, x: torch.Tensor) -> None:
    received, expected = through(fn, x), through(lambda x: ste_ops.heaviside(x, surrogate), x)
    assert received[0].unique().numel() == 2
    for one, other in zip(received, expected, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("surrogate", first_instances(), ids=lambda s: type(s).__name__)
def test_a_call_is_heaviside(device, surrogate, dtype):
    assert_is_heaviside(surrogate, surrogate, filler(dtype, surrogate, device)(7, 31))


@pytest.mark.parametrize("surrogate", first_instances(), ids=lambda s: type(s).__name__)
def test_a_call_compiles_into_one_graph(surrogate):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: surrogate(x), fullgraph=True, backend="aot_eager")
    assert_is_heaviside(compiled, surrogate, filler(torch.float32, surrogate, "cpu")(7, 31))


def test_a_call_refuses_what_heaviside_refuses():
    for wrong in (torch.ones(3, dtype=torch.int64), [1.0]):
        with pytest.raises(TypeError, match="heaviside: x must be "):
            ste_ops.surrogate.ATan()(wrong)
