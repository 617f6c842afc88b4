"""Quantization that is switched off and on, and scales that are held, while a model trains."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel

import ste_ops
from ste_ops import nn as quantized
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    FakeQuantize,
    Quantizer,
    QuantLinear,
    Sign,
    disable_quantization,
    enable_quantization,
    freeze_scales,
    quantize_,
    unfreeze_scales,
)

SETTINGS = {
    "LSQ": lambda: LSQ(3),
    "LSQPlus": lambda: quantized.LSQPlus(3),
    "PACT": lambda: PACT(0.5, 2),
    "SRSTE": lambda: SRSTE(2, 4),
    "DoReFaActivation": lambda: quantized.DoReFaActivation(2),
    "DoReFaWeight": lambda: quantized.DoReFaWeight(2),
    "FakeQuantize": lambda: FakeQuantize(3),
    "ChannelThreshold": lambda: quantized.ChannelThreshold(torch.ones(8), torch.zeros(8)),
}
NAMES = sorted(
    name
    for name, kind in vars(quantized).items()
    if isinstance(kind, type) and issubclass(kind, Quantizer) and kind is not Quantizer
)


@pytest.mark.parametrize("name", NAMES)
def test_every_quantizer_can_be_disabled(name):
    module = SETTINGS.get(name, vars(quantized)[name])()
    x = torch.randn(4, 8)
    torch.manual_seed(1)
    expected = module(x)
    assert not torch.equal(expected, x)
    for each in (module.disable(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not each.enabled
        given = x.clone().requires_grad_()
        out = each(given)
        assert torch.equal(out, x)
        assert torch.equal(torch.autograd.grad(out.sum(), given)[0], torch.ones_like(x))
    torch.manual_seed(1)
    assert torch.equal(module.eval().train().enable()(x), expected) or name == "LSQ"


def net(weight=None, input=None):
    return quantize_(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), weight=weight, input=input)


@pytest.mark.parametrize("start", [{"scale": 0.5}, {"momentum": 0.1}, {}])
def test_each_state_is_one_graph(start):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = net(weight=FakeQuantize(4, **start), input=FakeQuantize(8, **(start or {"scale": 0.1})))
    x = torch.randn(3, 6)
    model(x)
    eager, compiled = copy.deepcopy(model), torch.compile(model, fullgraph=True, backend=counter)
    switches = [lambda m: m, freeze_scales, disable_quantization, unfreeze_scales, enable_quantization]
    if not start:  # what was found is found anew when it is enabled after training, which is another graph
        switches = [lambda m: m.eval(), disable_quantization, enable_quantization]
    seen = []
    for _ in range(2):
        for switch in switches:
            for each in (model, eager):
                switch(each)
            for _ in range(2):
                torch.testing.assert_close(compiled(x), eager(x))
            torch.testing.assert_close(model.state_dict(), eager.state_dict())
        seen.append(counter.frame_count)
    assert seen[0] == seen[1] <= len(switches)


def test_the_state_keeps_it():
    model = net(weight=LSQ(4, axis=0), input=FakeQuantize(8, momentum=0.1))
    x = torch.randn(3, 6)
    model(x)
    fresh = copy.deepcopy(model.state_dict())
    freeze_scales(disable_quantization(model))
    other = net(weight=LSQ(4, axis=0), input=FakeQuantize(8, momentum=0.1))
    other.load_state_dict(model.state_dict())
    assert all(q.frozen and not q.enabled for q in other.modules() if isinstance(q, Quantizer))
    assert torch.equal(other(x), model(x))
    assert list(fresh) == list(model.state_dict())  # averages walk through two states side by side
    other.load_state_dict(fresh)
    assert not any(q.frozen or not q.enabled for q in other.modules() if isinstance(q, Quantizer))
    # States of before had no such key.
    freeze_scales(other)
    other.load_state_dict({key: value for key, value in fresh.items() if not key.endswith("_extra_state")})
    assert not other[0].weight_quantizer.frozen
    average = AveragedModel(disable_quantization(model), use_buffers=True)
    average.update_parameters(model)
    assert not average.module[0].weight_quantizer.enabled


def trained(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [partial(LSQ, 4), partial(FakeQuantize, 4)], ids=["LSQ", "FakeQuantize"])
def test_a_delayed_start_finds_scales_that_fit(make, compiled):
    torch._dynamo.reset()
    x = torch.randn(16, 6)
    model = disable_quantization(net(weight=make(axis=0), input=make()))
    plain = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    plain.load_state_dict(model.state_dict(), strict=False)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    trained(forward, x)
    trained(plain, x)
    torch.testing.assert_close([layer.weight for layer in model], [layer.weight for layer in plain])
    enable_quantization(model)
    expected = quantize_(plain, weight=make(axis=0), input=make())
    torch.testing.assert_close(forward(x), expected(x))
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    # After an evaluation without it, or where it is given or frozen, it stays.
    state = copy.deepcopy(model.state_dict())
    disable_quantization(model).eval()(100 * x)
    torch.testing.assert_close(enable_quantization(model).state_dict(), state)
    frozen = freeze_scales(model).train()
    disable_quantization(frozen)(100 * x)
    assert torch.equal(enable_quantization(frozen)[0].input_quantizer.scale, state["0.input_quantizer.scale"])
    given = make(scale=0.5).disable()
    given(x)
    assert given.enable().scale == 0.5


def test_an_average_follows_while_nothing_is_quantized_unless_it_is_frozen():
    module, x = FakeQuantize(8, momentum=0.5), torch.linspace(-1, 1, 9)
    module(x)
    module.disable()
    assert torch.equal(module(3 * x), 3 * x)
    torch.testing.assert_close(module.high, torch.tensor([2.0]))
    module.freeze()(9 * x)
    module.enable()(9 * x)
    torch.testing.assert_close(module.high, torch.tensor([2.0]))
    assert "frozen" in repr(module)
    module.unfreeze()(4 * x)
    torch.testing.assert_close(module.high, torch.tensor([3.0]))


def test_a_frozen_step_is_not_learned():
    layer, x = QuantLinear(6, 4, weight_quantizer=LSQ(4), input_quantizer=LSQ(4)), torch.randn(8, 6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        return layer.input_quantizer.scale.item(), layer.weight_quantizer.scale.item()

    first = step()
    assert step() != first
    held = step()
    freeze_scales(layer)
    assert step() == held
    unfreeze_scales(layer)
    assert step() != held
    # What is not set yet is found all the same.
    assert LSQ(4).freeze()(x).isfinite().all()


def test_what_cannot_be_switched_is_refused():
    layer = QuantLinear(6, 4, weight_quantizer=ste_ops.sign, input_quantizer=Sign())
    model = nn.Sequential(layer)
    for function in (disable_quantization, enable_quantization):
        with pytest.raises(ValueError, match=f"{function.__name__}: 0 has the function sign as weight_quantizer"):
            function(model)
        with pytest.raises(ValueError, match="must hold a quantizer of ste_ops"):
            function(nn.Linear(2, 2))
    assert layer.input_quantizer.enabled
    for function in (freeze_scales, unfreeze_scales):
        with pytest.raises(ValueError, match=f"{function.__name__}: model must hold a quantizer with a scale"):
            function(model)
