"""A weight that is loaded without the scale of its quantizer, as from a float checkpoint."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from ste_ops.nn import LSQ, PACT, FakeQuantize, QuantLinear, calibrate, quantize_


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def checkpoint():
    return {key: 100 * value for key, value in net().state_dict().items()}


WEIGHTS = {
    "LSQ": lambda: LSQ(8),
    "LSQ_channels": lambda: LSQ(8, axis=0),
    "FakeQuantize": lambda: FakeQuantize(8),
    "FakeQuantize_unsigned": lambda: FakeQuantize(8, signed=False, axis=0),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("moment", ["attached", "used"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_scale_of_a_weight_is_found_again(name, moment, assign):
    model, x, state = quantize_(net(), weight=WEIGHTS[name]()), torch.randn(4, 8), checkpoint()
    if moment == "used":
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(state, strict=False, assign=assign)
    plain = net()
    plain.load_state_dict(state)
    expected = quantize_(plain, weight=WEIGHTS[name]())
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    torch.testing.assert_close(model(x), expected(x))
    torch.testing.assert_close(model.state_dict(), expected.state_dict())


def test_a_layer_loads_the_keys_of_a_float_one():
    layer, x = QuantLinear(8, 4, weight_quantizer=LSQ(8, axis=0)), torch.randn(3, 8)
    layer(x)
    plain = nn.Linear(8, 4)
    with torch.no_grad():
        plain.weight.mul_(100)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert (layer(x) - plain(x)).norm() < 0.1 * plain(x).norm()


def test_scales_that_are_loaded_or_given_stay():
    model, x = quantize_(net(), weight=LSQ(4, axis=0), input=LSQ(4)), torch.randn(4, 8)
    model(x)
    with torch.no_grad():
        model[0].weight_quantizer.scale.mul_(1.5)
    state = copy.deepcopy(model.state_dict())
    other = quantize_(net(), weight=LSQ(4, axis=0), input=LSQ(4))
    other.load_state_dict(state)
    other(x)
    torch.testing.assert_close(other.state_dict(), state, rtol=0, atol=0)
    given = quantize_(net(), weight=LSQ(4, scale=0.5))
    with torch.no_grad():
        given[0].weight_quantizer.scale.mul_(1.5)
    given.load_state_dict(checkpoint(), strict=False)
    assert given[0].weight_quantizer.scale == 0.75
    # Nor is anything found again where the state is that of other layers, or of the bias alone.
    other.load_state_dict({"0.bias": torch.zeros(16)}, strict=False)
    assert torch.equal(other[0].weight_quantizer.scale, state["0.weight_quantizer.scale"])


def test_parametrized_weights_are_found_again_in_the_next_forward():
    plain = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    layer, x = quantize_(copy.deepcopy(plain), weight=LSQ(8, axis=0)), torch.randn(3, 8)
    layer(x)
    with torch.no_grad():
        plain.parametrizations.weight.original0.mul_(100)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert (layer(x) - plain(x)).norm() < 0.1 * plain(x).norm()


def test_one_warning_says_that_scales_of_inputs_stay():
    model, x = quantize_(net(), weight=LSQ(4), input=FakeQuantize(8)), torch.randn(4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(checkpoint(), strict=False)  # none is set yet
    calibrate(model, [x])
    state = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.warns(UserWarning, match="stays as it was") as caught:
            missing = model.load_state_dict(checkpoint(), strict=False).missing_keys
        assert [str(w.message).split(" is not in")[0] for w in caught] == ["FakeQuantize: 0.input_quantizer.scale"]
        assert {"0.input_quantizer.scale", "2.input_quantizer.scale"} < set(missing)
    assert torch.equal(model[2].input_quantizer.scale, state["2.input_quantizer.scale"])


def test_a_float_checkpoint_loads_into_memory_that_is_not_yet_set():
    with torch.device("meta"):
        model = quantize_(net(), weight=LSQ(8, axis=0), input=PACT(4.0, 4))
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, PACT):
            module.reset_parameters()
    for quantizer in (model[0].weight_quantizer, model[2].weight_quantizer):
        for tensor in quantizer.state_dict().values():
            tensor.fill_(77)
    state = checkpoint()
    model.load_state_dict(state, strict=False)
    plain = net()
    plain.load_state_dict(state)
    expected = quantize_(plain, weight=LSQ(8, axis=0), input=PACT(4.0, 4))
    torch.testing.assert_close(model.state_dict(), expected.state_dict())


MODULES = {
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 3), lambda: (torch.randn(2, 3, 5),)),
    "Embedding": (lambda: nn.Embedding(6, 4), lambda: (torch.arange(6),)),
    "Bilinear": (lambda: nn.Bilinear(3, 5, 4), lambda: (torch.randn(2, 3), torch.randn(2, 5))),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(8, 2), lambda: (torch.randn(3, 2, 8),) * 3),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("module", MODULES)
def test_so_is_that_of_a_module_with_a_forward_of_its_own(module, name):
    make, inputs = MODULES[module]
    plain, x = make(), inputs()
    model = quantize_(copy.deepcopy(plain), weight=WEIGHTS[name](), also=[type(plain)])
    model(*x)
    state = {key: 100 * value if value.dim() > 1 else value for key, value in plain.state_dict().items()}
    model.load_state_dict(state, strict=False)
    plain.load_state_dict(state)
    expected = quantize_(copy.deepcopy(plain), weight=WEIGHTS[name](), also=[type(plain)])
    torch.testing.assert_close(model(*x), expected(*x))


def test_a_hooked_scale_of_inputs_is_warned_of():
    plain = nn.ConvTranspose1d(3, 4, 3)
    model, x = copy.deepcopy(plain), torch.randn(2, 3, 5)
    quantize_(model, weight=LSQ(4), input=LSQ(4), also=[nn.ConvTranspose1d])(x)
    with pytest.warns(UserWarning, match=r"LSQ: input_quantizer\.scale is not in the state that is loaded"):
        model.load_state_dict(plain.state_dict(), strict=False)
