"""torch.fx.symbolic_trace: a function called with a proxy is one node with all its arguments, and works as before."""

import inspect
import pickle

import pytest
import torch
from torch.fx import Proxy

import ste_ops
from ste_ops import surrogate

# Arguments after the tensor, none of them a default.
ARGUMENTS = {
    "heaviside": (surrogate.ATan(3.0),),
    "sign": (surrogate.Clip(0.5),),
    "ternary": (surrogate.Custom(torch.cos), 0.3),
    "binary_linear": (torch.linspace(-1, 1, 16).view(2, 8), torch.tensor([0.5, 0.25])),
    "round": (),
    "floor": (),
    "ceil": (),
    "trunc": (),
    "clamp": (-0.5, 0.7),
    "stochastic_round": (),
    "fake_quantize": (torch.tensor([0.1, 0.2, 0.3]), 1, -4, 3, 0),
    "lsq": (torch.tensor([0.1, 0.2, 0.3]), -4, 3, 0, 0.5),
    "lsq_plus": (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.1, 0.0]), -4, 3, 0, 0.5),
    "pact": (torch.tensor(0.8), 2),
    "dorefa_activation": (3,),
    "dorefa_weight": (3,),
    "xnor_weight": (),
    "magnitude_aware_sign": (),
    "bitnet_weight": (),
    "bitnet_activation": (4,),
    "sr_ste": (1, 2, 0.1),
    "bernoulli_ste": (),
    "categorical_ste": ("gumbel", 0.7),
    "subset_ste": (3, 0.7),
    "clip_gradient_value": (0.25,),
    "clip_gradient_norm": (0.5, 3.0, 1),
}


class Net(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.w = torch.nn.Parameter(torch.linspace(0.05, 0.95, 24).view(3, 8))

    def forward(self, x):
        return getattr(ste_ops, self.name)(self.w * x, *ARGUMENTS[self.name]).square().sum()


def trained(module):
    torch.manual_seed(3)
    module.zero_grad()
    out = module(torch.linspace(0.5, 1, 8))
    out.backward()
    return out.detach(), next(module.parameters()).grad


def test_every_function_that_takes_a_tensor_is_here():
    first = {}
    for name in {*ste_ops.functional.__all__, "round"}:
        function = getattr(ste_ops, name)
        if inspect.isfunction(function):
            first[name] = next(iter(inspect.signature(function).parameters), "")
    tensors = {name for name, argument in first.items() if argument in ("x", "w", "p", "logits")}
    # Some change a gradient in place, and bits have none.
    assert {name for name in tensors if not name.endswith("_")} - {"pack_bits"} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_function_is_one_node_with_all_its_arguments(name):
    net = Net(name)
    traced = torch.fx.symbolic_trace(net)
    traced.graph.lint()
    (node,) = [node for node in traced.graph.nodes if node.target is getattr(ste_ops, name)]
    _, *others = inspect.signature(getattr(ste_ops, name)).parameters
    assert len(node.args) == 1
    assert [*node.kwargs] == others
    expected = trained(net)
    for module in (traced, torch.fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(trained(module), expected, rtol=0, atol=0)


def test_a_tensor_beside_a_proxy():
    x = torch.tensor([0.3, 0.9, 5.0])
    for fn in (lambda scale: ste_ops.lsq(x, scale, -4, 3), lambda alpha: ste_ops.pact(x, alpha, 2)):
        parameter = torch.tensor(0.7)
        assert torch.equal(torch.fx.symbolic_trace(fn)(parameter), fn(parameter))


def test_a_generator_and_a_called_surrogate():
    def fn(x):
        spikes = surrogate.ATan(2.0)(x) + surrogate.Custom(torch.cos)(x)
        return spikes + ste_ops.stochastic_round(x, generator=generator)

    generator = torch.Generator()
    traced = torch.fx.symbolic_trace(fn)
    x = torch.randn(50)
    generator.manual_seed(1)
    expected = fn(x)
    generator.manual_seed(1)
    assert torch.equal(traced(x), expected)


def test_what_is_neither_a_tensor_nor_a_proxy_is_refused_as_before():
    assert not issubclass(Proxy, torch.Tensor)
    with pytest.raises(TypeError, match="sign: x must be a tensor, got list"):
        ste_ops.sign([1.0])
