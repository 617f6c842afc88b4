"""What has no range sets no scale: empty tensors, zeros, and what holds a NaN or an infinity."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from ste_ops.nn import LSQ, FakeQuantize, LSQPlus, QuantLinear

MODULES = {
    "FakeQuantize": lambda **k: FakeQuantize(8, **k),
    "FakeQuantize_unsigned": lambda **k: FakeQuantize(8, signed=False, **k),
    "LSQ": lambda **k: LSQ(4, **k),
    "LSQ_unsigned": lambda **k: LSQ(4, signed=False, **k),
    "LSQPlus": lambda **k: LSQPlus(4, **k),
    "LSQPlus_unsigned": lambda **k: LSQPlus(4, signed=False, **k),
}
WITHOUT_RANGE = {
    "zeros": torch.zeros(10),
    "empty": torch.empty(0),
    "0-d": torch.tensor(0.0),
    "nan": torch.tensor([1.0, math.nan, 0.5]),
    "inf": torch.tensor([1.0, math.inf, 0.5]),
    "-inf": torch.tensor([1.0, -math.inf, 0.5]),
    "nan alone": torch.tensor([math.nan]),
}


@pytest.mark.parametrize("first", WITHOUT_RANGE)
@pytest.mark.parametrize("name", MODULES)
def test_the_scale_is_that_of_the_first_tensor_with_a_range(device, name, first):
    module, x = MODULES[name]().to(device), torch.randn(1000, device=device)
    for _ in range(2):
        without = WITHOUT_RANGE[first].to(device)
        out = module(without)
        assert out.shape == without.shape
        assert torch.equal(out.isnan(), without.isnan())
        assert not module.initialized.any()
    expected = MODULES[name]().to(device)
    assert torch.equal(module(x), expected(x))
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    # From then on nothing changes it.
    for later in (100 * x, *(t.to(device) for t in WITHOUT_RANGE.values())):
        module(later)
        torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_the_call_without_a_range_takes_what_is_finite_of_it(name):
    x = torch.randn(100).abs()
    with_nan = torch.cat([x, torch.tensor([math.nan])])
    assert torch.equal(MODULES[name]()(with_nan)[:-1], MODULES[name]()(with_nan.nan_to_num(0.0))[:-1])
    assert torch.equal(MODULES[name]()(torch.zeros(10)), torch.zeros(10))


@pytest.mark.parametrize("name", MODULES)
def test_a_channel_of_zeros_gets_the_scale_of_the_whole_tensor(name):
    x = torch.randn(3, 50)
    x[1] = 0
    module, whole = MODULES[name](axis=0, channels=3), MODULES[name]()
    module(x)
    whole(x)
    torch.testing.assert_close(module.scale[1], whole.scale[0])
    for row in (0, 2):
        alone = MODULES[name]()
        alone(x[row])
        torch.testing.assert_close(module.scale[row], alone.scale[0])
    # One NaN in a channel leaves all of them for the next tensor.
    other = MODULES[name](axis=0, channels=3)
    bad = x.clone()
    bad[2, 7] = math.nan
    other(bad)
    assert not other.initialized.any()
    other(x)
    torch.testing.assert_close(other.state_dict(), module.state_dict())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("first", ["zeros", "nan"])
def test_compiled_it_stays_one_graph_until_the_host_has_looked(name, first):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = MODULES[name]()
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    bad = torch.zeros(4, 8) if first == "zeros" else torch.full((4, 8), math.nan)
    for step, x in enumerate([bad, bad, torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8)]):
        if step in (1, 4):
            module.train()
        torch.testing.assert_close(compiled(x), eager(x), equal_nan=True)
        assert module._settled == (step == 4)
    torch.testing.assert_close(module.state_dict(), eager.state_dict())
    assert counter.frame_count == 2


def test_what_only_looks_on_sets_nothing():
    """A mode that only follows shapes must not make the host believe that the scale is set."""
    module = LSQ(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module(torch.randn(100))
    x = torch.randn(100)
    expected = LSQ(4)
    assert torch.equal(module(x), expected(x))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [FakeQuantize, lambda bits, axis: LSQ(bits, axis=axis)], ids=["FakeQuantize", "LSQ"])
def test_weights_that_start_at_zero_are_trained(make, axis, compiled):
    """As the second factor of LoRA does, whose first step says nothing of the range that it will take."""
    torch._dynamo.reset()
    layer = QuantLinear(8, 4, bias=False, weight_quantizer=make(8, axis=axis))
    nn.init.zeros_(layer.weight)
    forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    x, target = torch.randn(64, 8), torch.randn(4, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    for _ in range(150):
        loss = (forward(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * (x @ target.T).square().mean()
    # In evaluation it is set, if it was not, and stays.
    out = layer.eval()(x)
    assert layer.weight_quantizer.initialized == 1
    state = copy.deepcopy(layer.weight_quantizer.state_dict())
    assert torch.equal(layer.train()(x), out)
    with torch.no_grad():
        layer.weight.mul_(2)
    layer(x)
    torch.testing.assert_close(layer.weight_quantizer.state_dict(), state, rtol=0, atol=0)


def test_spikes_after_silent_steps_are_seen():
    module = FakeQuantize(8, signed=False)
    for _ in range(3):
        module(torch.zeros(5, 8))
    spikes = (torch.rand(5, 8) > 0.5).float()
    torch.testing.assert_close(module(spikes), spikes)
