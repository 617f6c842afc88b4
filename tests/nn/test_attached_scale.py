"""A layer's weights give their scale when the quantizer is attached, and again before their first use."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel

from ste_ops.nn import LSQ, FakeQuantize, LSQPlus, QuantConv2d, QuantLinear, calibrate, quantize_

MAKERS = {
    "LSQ": lambda: LSQ(4),
    "LSQ_channels": lambda: LSQ(4, axis=0),
    "LSQPlus": lambda: LSQPlus(4),
    "LSQPlus_channels": lambda: LSQPlus(4, axis=0),
    "FakeQuantize": lambda: FakeQuantize(8),
    "FakeQuantize_channels": lambda: FakeQuantize(8, signed=False, axis=0),
}


def found(name, weight):
    """The state of a quantizer of its own whose first tensor is the weight."""
    module = MAKERS[name]()
    module._fit_channels(weight)
    module.eval()(weight.detach())
    return module.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_attaching_sets_the_scale(name, dtype):
    layer = QuantConv2d(3, 4, 2, weight_quantizer=MAKERS[name](), dtype=dtype)
    converted = quantize_(nn.Sequential(nn.Linear(5, 4).to(dtype)), weight=MAKERS[name]())[0]
    assigned = QuantLinear(5, 4, dtype=dtype)
    assigned.weight_quantizer = MAKERS[name]()
    for each in (layer, converted, assigned):
        assert each.weight_quantizer.initialized == 1
        torch.testing.assert_close(each.weight_quantizer.state_dict(), found(name, each.weight), check_dtype=False)


@pytest.mark.parametrize("weight", [torch.zeros(4, 5), torch.full((4, 5), math.nan), torch.empty(4, 0)])
@pytest.mark.parametrize("name", MAKERS)
def test_weights_without_a_range_leave_it_unset(name, weight):
    layer = QuantLinear(weight.shape[1], 4)
    layer.weight = nn.Parameter(weight)
    layer.weight_quantizer = MAKERS[name]()
    assert layer.weight_quantizer.initialized == 0
    assert not layer.weight_quantizer.scale.any()
    layer.weight = nn.Parameter(torch.randn(4, 5))
    layer(torch.randn(2, 5))
    torch.testing.assert_close(layer.weight_quantizer.state_dict(), found(name, layer.weight))


def test_what_holds_no_numbers_leaves_it_unset():
    with torch.device("meta"):
        layer = QuantLinear(5, 4, weight_quantizer=LSQ(4, axis=0))
    assert layer.weight_quantizer.scale.is_meta
    with FakeTensorMode():
        fake = QuantLinear(5, 4, weight_quantizer=LSQ(4, axis=0))
    for each in (layer, fake):
        assert not each.weight_quantizer._settled
        assert each.weight_quantizer._attached is None


def write(way, layer):
    if way == "init":
        nn.init.normal_(layer.weight, std=20.0)
    elif way == "data":
        layer.weight.data.normal_(std=20.0)
    elif way == "parameter":
        layer.weight = nn.Parameter(20 * torch.randn(4, 5))
    else:
        layer.reset_parameters()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("way", ["init", "data", "parameter", "reset"])
@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_are_initialized_afterwards_give_it_again(name, way, compiled):
    torch._dynamo.reset()
    layer, x = QuantLinear(5, 4, weight_quantizer=MAKERS[name]()), torch.randn(2, 5)
    counter = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(nn.Sequential(layer), fullgraph=True, backend=counter) if compiled else layer
    write(way, layer)
    expected = found(name, layer.weight)
    forward(x)
    torch.testing.assert_close(layer.weight_quantizer.state_dict(), expected)
    # Once it was used it stays.
    with torch.no_grad():
        layer.weight.mul_(3)
    forward(x)
    layer.train()
    forward(x)
    torch.testing.assert_close(layer.weight_quantizer.state_dict(), expected)
    assert counter.frame_count == int(compiled)


@pytest.mark.parametrize("name", MAKERS)
def test_a_scale_that_was_put_there_stays(name):
    layer = QuantLinear(5, 4, weight_quantizer=MAKERS[name]())
    layer.weight_quantizer.scale.data.fill_(0.3)
    layer(torch.randn(2, 5))
    assert layer.weight_quantizer.scale.unique().tolist() == pytest.approx([0.3])
    # So does the one of a module that two layers share, and of one that is moved to another.
    other = QuantLinear(5, 4, weight_quantizer=layer.weight_quantizer)
    other(torch.randn(2, 5))
    assert other.weight_quantizer.scale.unique().tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("name", MAKERS)
def test_copies_and_averages_begin_with_it(name):
    model = quantize_(nn.Sequential(nn.Linear(5, 4)), weight=MAKERS[name]())
    scale = model[0].weight_quantizer.scale.detach().clone()
    averaged = AveragedModel(model)
    copies = [averaged.module, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for each in copies:
        with torch.no_grad():
            each[0].weight.mul_(2)  # as an average goes on before its first forward
        each(torch.randn(2, 5))
        assert torch.equal(each[0].weight_quantizer.scale, scale)


def test_a_data_parallel_replica_does_not_search_for_ever():
    layer, x = QuantLinear(5, 4, weight_quantizer=FakeQuantize(8)), torch.randn(2, 5)
    nn.init.normal_(layer.weight, std=20.0)
    expected = found("FakeQuantize", layer.weight)
    for _ in range(2):
        quantizer = layer.weight_quantizer._replicate_for_data_parallel()
        quantizer.scale, quantizer.initialized = layer.weight_quantizer.scale, layer.weight_quantizer.initialized
        quantizer(layer.weight)
        torch.testing.assert_close(layer.weight_quantizer.state_dict(), expected)
        with torch.no_grad():
            layer.weight.mul_(2)
    layer(x)
    torch.testing.assert_close(layer.weight_quantizer.state_dict(), expected)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_a_write_for_one_call_only_is_not_taken_for_lasting(name, buffers):
    module, x = MAKERS[name]() if "channels" not in name else LSQ(4, axis=0, channels=3), torch.randn(3, 50)
    expected = copy.deepcopy(module)
    expected(x)
    own = {**dict(module.named_parameters()), **(dict(module.named_buffers()) if buffers else {})}
    given = {key: value.detach().clone() for key, value in own.items()}
    for _ in range(3):
        torch.func.functional_call(module, given, (x,))
    if buffers:
        assert not module.initialized.any()
    module(x)
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    assert torch.equal(module(5 * x), expected(5 * x))


def test_reset_finds_it_again_at_the_next_forward():
    layer = QuantLinear(5, 4, weight_quantizer=LSQ(4))
    layer(torch.randn(2, 5))
    with torch.no_grad():
        layer.weight.mul_(100)
    layer.weight_quantizer.reset_parameters()
    assert layer.weight_quantizer.initialized == 0
    layer(torch.randn(2, 5))
    torch.testing.assert_close(layer.weight_quantizer.state_dict(), found("LSQ", layer.weight))
    assert calibrate(quantize_(nn.Sequential(nn.Linear(5, 4)), weight=LSQ(4)), [torch.randn(2, 5)]) == {}
