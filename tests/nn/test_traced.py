"""Quantized models under torch.fx, with a tracer as that of torchvision's feature extraction, and torch.jit.trace."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Tracer, symbolic_trace

import ste_ops
from ste_ops.nn import (
    LSQ,
    PACT,
    BitNetActivation,
    BitNetWeight,
    ClipGradientValue,
    DoReFaWeight,
    FakeQuantize,
    QuantLinear,
    Sign,
    StochasticRound,
    XNORWeight,
    quantize_,
)

QUANTIZERS = {
    "lsq": (LSQ(4, axis=0), LSQ(4)),
    "fake_quantize": (FakeQuantize(8, axis=0), FakeQuantize(8, signed=False)),
    "xnor": (XNORWeight(), Sign()),
    "dorefa": (DoReFaWeight(3), PACT(bits=4)),
    "bitnet": (BitNetWeight(), BitNetActivation()),
    "functions": (ste_ops.sign, ste_ops.sign),
}


def network(name, settled=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), ClipGradientValue(0.5), nn.Flatten(), nn.Linear(64, 5)]
    model = nn.Sequential(*layers)
    weight, input = QUANTIZERS[name]
    quantize_(model, weight=weight, input=input)
    if settled:
        model(images(4))
    return model


def images(batch):
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


def trained(module):
    module.zero_grad()
    out = module(images(5))
    out.square().sum().backward()
    return out.detach(), {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_layer_is_one_node(name):
    model = network(name)
    traced = symbolic_trace(model)
    traced.graph.lint()
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["0", "1", "2", "3", "4", "5"]
    expected = trained(model)
    for module in (traced, pickle.loads(pickle.dumps(traced)), copy.deepcopy(traced), symbolic_trace(traced)):
        torch.testing.assert_close(trained(module), expected)


@pytest.mark.parametrize("settled", [False, True])
def test_a_trace_before_the_first_batch_sets_the_scales_when_it_runs(settled):
    model = network("lsq", settled)
    traced, reference = symbolic_trace(model), copy.deepcopy(model)
    assert torch.equal(traced(images(3)), reference(images(3)))
    assert torch.equal(model[0].input_quantizer.scale, reference[0].input_quantizer.scale)


class ToFeatures(Tracer):
    """As torchvision.models.feature_extraction: what a node is of is found by the modules that are entered."""

    def __init__(self):
        super().__init__()
        self.nodes, self.entered = {}, []

    def call_module(self, m, forward, args, kwargs):
        self.entered.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.entered.pop()

    def create_proxy(self, kind, *args, **kwargs):
        proxy = super().create_proxy(kind, *args, **kwargs)
        self.nodes[proxy.node] = self.entered[-1] if self.entered else ""
        return proxy


def test_features_are_found_under_the_names_of_the_layers():
    model, tracer = network("lsq"), ToFeatures()
    graph = tracer.trace(model)
    (node,) = [node for node, name in tracer.nodes.items() if name == "2"]
    cut = Graph()
    copies = {}
    for old in graph.nodes:
        copies[old] = cut.node_copy(old, copies.__getitem__)
        if old is node:
            cut.output(copies[old])
            break
    assert torch.equal(GraphModule(model, cut)(images(3)), model[:3](images(3)))


@pytest.mark.parametrize(
    "module",
    [
        Sign(),
        LSQ(4, scale=0.3),
        FakeQuantize(8, scale=0.1),
        PACT(bits=3),
        StochasticRound(),
        ClipGradientValue(0.1),
        QuantLinear(4, 4, weight_quantizer=LSQ(4, axis=0), input_quantizer=ste_ops.sign),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_module_traced_by_itself(module):
    traced, x = symbolic_trace(module), torch.randn(3, 4)
    torch.manual_seed(2)
    expected = module(x)
    torch.manual_seed(2)
    assert torch.equal(traced(x), expected)


def test_modes_go_on_to_count():
    traced = symbolic_trace(nn.Sequential(StochasticRound(), nn.Identity()))
    x = torch.full((100,), 0.5)
    assert traced(x).unique().numel() == 2
    assert traced.eval()(x).unique().numel() == 1


@pytest.mark.parametrize("quantizer", [LSQ(4), FakeQuantize(8)], ids=lambda module: type(module).__name__)
def test_without_a_scale_there_is_nothing_to_trace(quantizer):
    sentence = r"\w+: no scale is set yet, so nothing can be traced; run one batch before"
    with pytest.raises(RuntimeError, match=sentence):
        symbolic_trace(quantizer)
    with pytest.raises(RuntimeError, match=sentence):
        torch.jit.trace(quantizer, (torch.randn(3),))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", QUANTIZERS)
def test_torch_jit_trace_trains_and_loads(name):
    model = network(name)
    expected = trained(model)
    traced = torch.jit.trace(model, (images(2),))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for module in (traced, torch.jit.load(file)):
        torch.testing.assert_close(trained(module), expected)


def test_layers_take_their_input_by_name_as_those_of_torch_do():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(input=x)

    x = torch.randn(2, 4)
    model = ste_ops.nn.quantize_(Named(), ste_ops.nn.LSQ(4)).eval()
    expected = model.layer(x)
    assert torch.equal(model(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
    ste_ops.nn.pack_(model)
    assert torch.equal(model(x), expected)
