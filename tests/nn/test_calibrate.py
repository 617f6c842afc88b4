"""`calibrate`: scales from several batches."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from ste_ops.nn import LSQ, FakeQuantize, LSQPlus, QuantLinear, Sign, calibrate, quantize_

INPUTS = {
    "LSQ": lambda: LSQ(4),
    "LSQ_unsigned": lambda: LSQ(4, signed=False),
    "LSQ_channels": lambda: LSQ(4, axis=1, channels=8),
    "LSQPlus": lambda: LSQPlus(4, signed=False),
    "LSQPlus_channels": lambda: LSQPlus(4, axis=1, channels=8),
    "FakeQuantize": lambda: FakeQuantize(8),
    "FakeQuantize_unsigned": lambda: FakeQuantize(8, signed=False),
    "FakeQuantize_channels": lambda: FakeQuantize(8, axis=-1, channels=8),
}


def net(make):
    return quantize_(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)), input=make(), weight=LSQ(4))


@pytest.mark.parametrize("name", INPUTS)
def test_the_scales_are_those_of_one_tensor_of_all_batches(name):
    model = net(INPUTS[name]).eval()
    batches = [torch.randn(rows, 8) * rows for rows in (2, 5, 1)] + [torch.empty(0, 8)]
    expected = INPUTS[name]()
    expected(torch.cat(batches))
    report = calibrate(model, iter(batches))
    assert list(report) == ["0.input_quantizer", "2.input_quantizer"]
    held = model[0].input_quantizer
    torch.testing.assert_close(held.state_dict(), expected.state_dict())
    assert all(torch.equal(report[key], model.get_submodule(key).scale) for key in report)
    # What passes on is not quantized meanwhile.
    second = INPUTS[name]()
    second(nn.functional.linear(torch.cat(batches), model[0].quantized_weight(), model[0].bias))
    torch.testing.assert_close(model[2].input_quantizer.state_dict(), second.state_dict())
    # All is set now, and stays.
    state = copy.deepcopy(model.state_dict())
    assert calibrate(model, [100 * batches[0]]) == {}
    model(100 * batches[0])
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = QuantLinear(8, 4, input_quantizer=FakeQuantize(8))

    def forward(self, x, scale=1.0):
        assert not torch.is_grad_enabled()
        return self.layer(x * scale)


def test_batches_are_tensors_tuples_and_dicts():
    x = torch.ones(2, 8)
    for batch, largest in ((x, 1.0), ((x, 3.0), 3.0), ({"x": x, "scale": 5.0}, 5.0)):
        model = TwoInputs()
        calibrate(model, [batch])
        torch.testing.assert_close(model.layer.input_quantizer.scale, torch.tensor([largest / 127]))


def test_a_compiled_model_and_its_modes():
    model = net(lambda: LSQ(4))
    model[0].eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    calibrate(compiled, [torch.randn(4, 8)])
    assert [module.training for module in model] == [False, True, True]
    assert not any("forward" in vars(module) for module in model.modules())
    compiled(torch.randn(4, 8))


REFUSED = {
    "no batch": (lambda: net(lambda: LSQ(4)), [], ValueError, "batches must hold at least one batch, got none"),
    "no quantizer": (lambda: nn.Linear(8, 4), [torch.ones(1, 8)], ValueError, "quantizer with a scale.*got none"),
    "no scale": (
        lambda: quantize_(nn.Sequential(nn.Linear(8, 4)), input=Sign()),
        [torch.ones(1, 8)],
        ValueError,
        "quantizer with a scale.*got none",
    ),
    "NaN": (
        lambda: net(lambda: LSQ(4)),
        [torch.ones(1, 8), torch.full((1, 8), math.nan), torch.ones(1, 8)],
        ValueError,
        "batch 1 gives '0.input_quantizer' a NaN or an infinity",
    ),
    "list": (lambda: net(lambda: LSQ(4)), [[torch.ones(1, 8), 1]], TypeError, "got list as batch 0; of a loader"),
    "tensor": (lambda: net(lambda: LSQ(4)), torch.ones(1, 8), TypeError, "iterable of batches, as .batch. is, got Te"),
    "number": (lambda: net(lambda: LSQ(4)), 3, TypeError, "iterable of batches, as .batch. is, got int"),
    "axis": (lambda: LSQ(4, axis=0), [torch.ones(1, 8)], RuntimeError, "channels must be given with axis=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_calibrated_is_refused_and_nothing_is_set(case):
    make, batches, error, words = REFUSED[case]
    model = make()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        calibrate(model, batches)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_was_given_nothing_is_named():
    model = net(lambda: LSQ(4))
    model.add_module("aside", FakeQuantize(8))
    model.forward = lambda x: model[0](x)
    with pytest.warns(UserWarning, match=r"no scale is set for \['2.input_quantizer', 'aside'\]"):
        assert list(calibrate(model, [torch.randn(2, 8)])) == ["0.input_quantizer"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(FakeQuantize(8), [torch.zeros(3), torch.ones(3)])
    with pytest.warns(UserWarning, match="nothing but zeros"):
        assert calibrate(FakeQuantize(8), [torch.zeros(3)]) == {}
