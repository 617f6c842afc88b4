"""torch.fx.symbolic_trace, which hands proxies instead of tensors: refused with what mends it, which works."""

import pytest
import torch

import ste_ops


def quantize(x):
    return ste_ops.fake_quantize(x, 0.1, 0, -8, 7)


torch.fx.wrap("quantize")


class Net(torch.nn.Module):
    def forward(self, x):
        return quantize(x)


@pytest.mark.parametrize("fn", [ste_ops.sign, ste_ops.round, ste_ops.xnor_weight])
def test_a_proxy_is_refused_with_the_mend(fn):
    with pytest.raises(TypeError, match=r"\w+: [xw] must be a tensor, got Proxy; .* torch\.fx\.wrap of a function"):
        torch.fx.symbolic_trace(fn)


def test_a_wrapped_function_is_one_call_with_its_gradient():
    traced = torch.fx.symbolic_trace(Net())
    x = torch.tensor([-0.9, 0.33, 2.0], requires_grad=True)
    assert torch.equal(traced(x), quantize(x))
    traced(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]
