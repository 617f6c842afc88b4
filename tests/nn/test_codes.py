"""`Codes`: the integers of every quantizer, and the numbers that come back of them."""

from __future__ import annotations

import functools

import pytest
import torch

import ste_ops
from ste_ops import nn

# Of weights (12, 24) in a linear layer and (12, 8, 3) in a convolution: a quantizer, its bits, and how many scales.
WEIGHTS = {
    "Sign": (nn.Sign, 1, 1),
    "Heaviside": (nn.Heaviside, 1, 1),
    "Ternary": (lambda: nn.Ternary(threshold=0.1), 2, 1),
    "StochasticRound": (lambda: nn.StochasticRound().eval(), 1, 1),
    "LSQ": (lambda: nn.LSQ(4), 4, 1),
    "LSQ, channels": (lambda: nn.LSQ(8, axis=0), 8, 12),
    "LSQ, groups": (lambda: nn.LSQ(3, group_size=4), 3, 72),
    "LSQ, 16 bits": (lambda: nn.LSQ(16, axis=0), 16, 12),
    "LSQ, 24 bits": (lambda: nn.LSQ(24), 24, 1),
    "LSQPlus": (lambda: nn.LSQPlus(8, False, scale=0.01, offset=-0.7), 8, 1),
    "LSQPlus, channels": (lambda: nn.LSQPlus(4, axis=0), 4, 12),
    "FakeQuantize": (lambda: nn.FakeQuantize(8), 8, 1),
    "FakeQuantize, channels": (lambda: nn.FakeQuantize(8, signed=False, axis=0), 8, 12),
    "FakeQuantize, groups": (lambda: nn.FakeQuantize(4, signed=False, group_size=4), 4, 72),
    "PACT": (lambda: nn.PACT(0.2, 4), 4, 1),
    "DoReFaActivation": (lambda: nn.DoReFaActivation(7), 7, 1),
    "DoReFaWeight": (lambda: nn.DoReFaWeight(8), 8, 1),
    "DoReFaWeight, 16 bits": (lambda: nn.DoReFaWeight(16), 16, 1),
    "DoReFaWeight, groups": (lambda: nn.DoReFaWeight(3, group_size=4), 3, 1),
    "DoReFaWeight, signs": (lambda: nn.DoReFaWeight(1), 1, 1),
    "XNORWeight": (nn.XNORWeight, 1, 12),
    "XNORWeight, groups": (lambda: nn.XNORWeight(group_size=4), 1, 72),
    "MagnitudeAwareSign": (nn.MagnitudeAwareSign, 1, 12),
    "BitNetWeight": (nn.BitNetWeight, 2, 1),
    "BitNetWeight, groups": (lambda: nn.BitNetWeight(group_size=4), 2, 72),
    "BitNetActivation": (nn.BitNetActivation, 8, None),
    "sign": (lambda: ste_ops.sign, 1, 1),
    "floor": (lambda: ste_ops.floor, 1, 1),
    "xnor_weight": (lambda: ste_ops.xnor_weight, 1, 12),
    "dorefa_weight": (lambda: functools.partial(ste_ops.dorefa_weight, bits=2), 2, 1),
    "bitnet_weight": (lambda: functools.partial(ste_ops.bitnet_weight, group_size=4), 2, 72),
    "fake_quantize": (
        lambda: functools.partial(ste_ops.fake_quantize, scale=0.01, zero_point=0.3, quant_min=-8, quant_max=7),
        4,
        1,
    ),
}
ELSEWHERE = {"SRSTE", "ChannelThreshold"}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def layers(make, dtype=torch.float32):
    torch.manual_seed(0)
    yield nn.QuantLinear(24, 12, weight_quantizer=make()).to(dtype).eval()
    yield nn.QuantConv1d(8, 12, 3, weight_quantizer=make()).to(dtype).eval()


def test_every_quantizer_has_a_row():
    found = {name for name in nn.__all__ if isinstance(getattr(nn, name), type)}
    found = {name for name in found if issubclass(getattr(nn, name), nn.Quantizer)} - {"Quantizer"}
    assert found - ELSEWHERE == {name.split(",")[0] for name in WEIGHTS} & found


@pytest.mark.parametrize("name", WEIGHTS)
def test_numbers_come_back_bit_for_bit(name):
    make, bits, scales = WEIGHTS[name]
    for dtype in DTYPES:
        for layer in layers(make, dtype):
            codes = layer.weight_codes()
            back = codes.dequantize()
            assert back.dtype == dtype
            assert torch.equal(back, layer.quantized_weight())
            assert not codes.values.is_floating_point()
            assert codes.values.shape == layer.weight.shape
            assert codes.bits == bits
            assert scales in (None, codes.scale.numel())
            rows = codes.values.double()
            rows = rows if codes.group_size is None else rows.reshape(-1, codes.group_size)
            near = ((rows - codes.zero_point) * codes.scale).reshape(back.shape)
            torch.testing.assert_close(near.to(dtype), back, atol=0.02 if dtype.itemsize == 2 else 3e-7, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_are_those_of_the_float32_weight(dtype):
    """In 16 bits two integers may stand for one number: still it is that of the weight."""
    layer = nn.QuantLinear(64, 12, weight_quantizer=nn.FakeQuantize(8, signed=False, axis=0)).to(dtype)
    codes = layer.weight_codes()
    assert codes.zero_point.unique().numel() > 1
    w = layer.weight.detach().float() * (1 / codes.scale)
    assert codes.values.dtype == torch.uint8
    assert torch.equal(codes.values.float(), (w.round() + codes.zero_point).clamp(0, 255))


def test_integers_take_the_least_dtype():
    x = torch.linspace(-1, 1, 99)
    cases = {(8, True): torch.int8, (8, False): torch.uint8, (9, True): torch.int16, (17, True): torch.int32}
    for (bits, signed), dtype in cases.items():
        assert nn.LSQ(bits, signed, scale=1e-3).codes(x).values.dtype == dtype


def test_inputs_have_codes_too():
    x = torch.randn(3, 5, 8)
    layer = nn.QuantLinear(8, 2, input_quantizer=nn.LSQ(4, signed=False, axis=2, channels=8, scale=0.3))
    codes = layer.input_codes(x)
    assert torch.equal(codes.dequantize(), layer.input_quantizer(x))
    assert codes.scale.shape == (1, 1, 8)
    layer.input_quantizer = nn.BitNetActivation(4)
    assert layer.input_codes(x).scale.shape == (3, 5, 1)
    assert torch.equal(layer.input_codes(x).dequantize(), layer.input_quantizer(x))
    layer.input_quantizer = ste_ops.heaviside
    assert torch.equal(layer.input_codes(x).values, (x > 0).to(torch.int8))
    layer.input_quantizer = nn.ChannelThreshold(torch.ones(5), torch.arange(5.0) / 5)
    codes = layer.input_codes(x)
    assert torch.equal(codes.dequantize(), layer.input_quantizer(x))
    assert codes.values.unique().tolist() == [-1, 1]


def test_a_channel_of_zeros_has_signs_and_no_scale():
    layer = nn.QuantLinear(4, 2, weight_quantizer=nn.XNORWeight())
    with torch.no_grad():
        layer.weight[0] = 0
    codes = layer.weight_codes()
    assert codes.values[0].tolist() == [1, 1, 1, 1]
    assert torch.equal(codes.dequantize(), layer.quantized_weight())


def test_a_first_use_finds_the_scale_of_weights_that_were_set_since():
    layer = nn.QuantLinear(4, 2, weight_quantizer=nn.LSQ(4))
    with torch.no_grad():
        layer.weight.mul_(100)
    assert torch.equal(layer.weight_codes().dequantize(), layer.quantized_weight())


class Own(nn.QuantLinear):
    def quantized_weight(self):
        return super().quantized_weight() * 2


class OwnSign(nn.Sign):
    def forward(self, x):
        return super().forward(x)


def zeros(quantizer):
    layer = nn.QuantLinear(4, 2)
    torch.nn.init.zeros_(layer.weight)
    layer.weight_quantizer = quantizer
    return layer


def with_nan():
    layer = nn.QuantLinear(4, 2, weight_quantizer=nn.XNORWeight())
    layer.weight.data[0, 0] = float("nan")
    return layer


def of(quantizer):
    return nn.QuantLinear(4, 2, weight_quantizer=quantizer)


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        (
            lambda: of(nn.SRSTE(2, 4)),
            TypeError,
            r"weight_codes: the quantizer must .* integers .*, got SRSTE",
        ),
        (lambda: of(functools.partial(ste_ops.sr_ste, n=2, m=4)), TypeError, "got sr_ste"),
        (lambda: of(nn.StochasticRound()), TypeError, "got StochasticRound"),
        (lambda: of(lambda w: w), TypeError, "got .*lambda"),
        (lambda: of(OwnSign()), TypeError, "got OwnSign"),
        (lambda: of(None), TypeError, "QuantLinear.weight_codes: the layer must have a weight quantizer .*, got none"),
        (
            lambda: Own(4, 2, weight_quantizer=nn.Sign()),
            TypeError,
            "Own.weight_codes: .* a quantized_weight of its own",
        ),
        (lambda: zeros(nn.LSQ(4)), RuntimeError, "weight_codes: the scale of LSQ is not set yet"),
        (lambda: of(nn.XNORWeight().disable()), ValueError, "XNORWeight is disabled"),
        (with_nan, ValueError, "XNORWeight must make numbers of it, got a NaN"),
    ],
)
def test_what_has_no_integers_is_refused_by_name(layer, error, words):
    with pytest.raises(error, match=words):
        layer().weight_codes()


def test_inputs_without_integers_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"QuantLinear.input_codes: the scale of FakeQuantize is not set yet"):
        nn.QuantLinear(4, 2, input_quantizer=nn.FakeQuantize(8)).input_codes(torch.randn(3, 4))
    with pytest.raises(TypeError, match="must have an input quantizer, got none"):
        nn.QuantLinear(4, 2).input_codes(torch.randn(3, 4))
    with pytest.raises(TypeError, match=r"StochasticRound.codes: .* got StochasticRound"):
        nn.StochasticRound().codes(torch.randn(3))
