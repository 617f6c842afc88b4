"""`pack_`: the packed layers give what the trained ones do, from a file too."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.packed_nets import NETS, images, trained

import ste_ops
from ste_ops import nn
from ste_ops.nn import fold_batch_norm_, folded, pack_

# Quantizers of weights, and the bits in which they are held.
WEIGHTS = {
    "Sign": (nn.Sign, 1),
    "Heaviside": (nn.Heaviside, 1),
    "Ternary": (lambda: nn.Ternary(threshold=0.1), 2),
    "LSQ": (lambda: nn.LSQ(4), 4),
    "LSQ, channels": (lambda: nn.LSQ(8, axis=0), 8),
    "LSQ, input channels": (lambda: nn.LSQ(3, axis=1), 4),
    "LSQ, groups": (lambda: nn.LSQ(2, group_size=4), 2),
    "LSQPlus": (lambda: nn.LSQPlus(8, False, scale=0.01, offset=-0.7), 8),
    "LSQPlus, channels": (lambda: nn.LSQPlus(5, axis=0), 8),
    "FakeQuantize": (lambda: nn.FakeQuantize(8), 8),
    "FakeQuantize, channels": (lambda: nn.FakeQuantize(6, signed=False, axis=0), 8),
    "FakeQuantize, groups": (lambda: nn.FakeQuantize(4, signed=False, group_size=4), 4),
    "PACT": (lambda: nn.PACT(0.2, 4), 4),
    "DoReFaActivation": (lambda: nn.DoReFaActivation(7), 8),
    "DoReFaWeight": (lambda: nn.DoReFaWeight(8), 8),
    "DoReFaWeight, groups": (lambda: nn.DoReFaWeight(3, group_size=4), 4),
    "DoReFaWeight, signs": (lambda: nn.DoReFaWeight(1), 1),
    "XNORWeight": (nn.XNORWeight, 1),
    "XNORWeight, groups": (lambda: nn.XNORWeight(group_size=4), 1),
    "MagnitudeAwareSign": (nn.MagnitudeAwareSign, 1),
    "BitNetWeight": (nn.BitNetWeight, 2),
    "BitNetWeight, groups": (lambda: nn.BitNetWeight(group_size=4), 2),
    "BitNetActivation": (lambda: nn.BitNetActivation(4), 4),
    "xnor_weight": (lambda: ste_ops.xnor_weight, 1),
    "dorefa_weight": (lambda: functools.partial(ste_ops.dorefa_weight, bits=2), 2),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def layers(make, dtype=torch.float32):
    torch.manual_seed(0)

    def of(cls, *args, **kwargs):
        return cls(*args, weight_quantizer=make(), input_quantizer=nn.PACT(1.5, 4), **kwargs)

    yield of(nn.QuantLinear, 24, 12), (5, 24)
    yield of(nn.QuantConv1d, 8, 12, 3, stride=2, bias=False), (2, 8, 9)
    yield of(nn.QuantConv2d, 8, 12, 3, groups=2, padding="same", padding_mode="circular"), (2, 8, 5, 5)
    yield of(nn.QuantConv3d, 4, 6, 2, dilation=2), (4, 5, 5, 5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_packed_layer_gives_the_bits_of_the_trained_one(name):
    make, bits = WEIGHTS[name]
    for dtype in DTYPES:
        for layer, shape in layers(make):
            layer, x = layer.to(dtype).eval(), torch.randn(shape).to(dtype)
            with torch.no_grad():
                expected, weight = layer(x), layer.quantized_weight()
                assert pack_(layer) is layer
                assert isinstance(layer, nn.PackedLayer)
                assert torch.equal(layer.unpacked(dtype), weight)
                assert torch.equal(layer(x), expected)
            assert layer.codes.dtype == torch.uint8
            assert layer.codes.numel() == (weight.numel() * bits + 7) // 8
            assert "weight" not in dict(layer.named_parameters())


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_that_is_not_trained_takes_the_state(name):
    """Also one on the meta device; nothing of its own numbers counts."""
    make, _ = WEIGHTS[name]
    layer = nn.QuantLinear(24, 12, weight_quantizer=make(), input_quantizer=nn.LSQ(4)).eval()
    x = torch.randn(5, 24)
    with torch.no_grad():
        expected = layer(x)
    state = pack_(layer).state_dict()
    assert all(type(held) is torch.Tensor for held in state.values())
    for device in ("cpu", "meta"):
        other = nn.QuantLinear(24, 12, weight_quantizer=make(), input_quantizer=nn.LSQ(4)).to(device).eval()
        pack_(other, state_dict=state)
        with torch.no_grad():
            assert torch.equal(other(x), expected)


def test_nets_are_folded_packed_saved_and_read_in_another_process(tmp_path):
    x, expected = images(), {}
    for name in NETS:
        model = trained(name)
        with torch.no_grad():
            plain = model(x)
            expected[name] = fold_batch_norm_(model, x)(x)
            torch.testing.assert_close(expected[name], plain, rtol=1e-3, atol=1e-3)
            packed = pack_(model)(x)
            # Behind a factor and a threshold the trained layer computes in float, which rounds each sum.
            assert torch.equal(packed, expected[name]) or name == "resnet"
            torch.testing.assert_close(packed, expected[name], rtol=1e-5, atol=1e-5)
            expected[name] = packed
        assert folded(model).left == ()
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    program = Path(sys.modules["support.packed_nets"].__file__)
    subprocess.run([sys.executable, program, tmp_path], check=True, timeout=120)
    for name in NETS:
        assert torch.equal(torch.load(tmp_path / f"{name}.pt"), expected[name])


def test_a_packed_model_is_copied_and_saved_whole():
    model, x = pack_(trained("resnet")), images()
    expected, file = model(x), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for other in copies:
        assert torch.equal(other(x), expected)
        assert repr(other) == repr(model)


def test_hooks_and_the_bias_stay():
    layer, calls = nn.QuantLinear(8, 4, weight_quantizer=nn.Sign(), input_quantizer=ste_ops.sign), []
    layer.register_forward_hook(lambda *_: calls.append("called"))
    bias = layer.bias
    pack_(layer.eval())(torch.randn(2, 8))
    assert calls == ["called"]
    assert layer.bias is bias
    assert repr(layer) == "PackedLinear(in_features=8, out_features=4, bias=True, weight_bits=1, input_quantizer=sign)"


def test_large_weights_come_in_tiles_with_the_bits_of_the_whole(monkeypatch):
    from ste_ops.nn import packed

    torch.manual_seed(0)
    for quantizer, batch in ((nn.LSQ(8, axis=0), 1), (nn.BitNetWeight(), 7), (nn.FakeQuantize(4, False, axis=0), 33)):
        layer = nn.QuantLinear(1021, 4200, weight_quantizer=quantizer).eval()
        x = torch.randn(batch, 1021)
        with torch.no_grad():
            expected = layer(x)
            assert len(list(pack_(layer)._tiles())) == 4
            assert torch.equal(layer(x), expected)
    conv = nn.QuantConv2d(16, 1200, 3, weight_quantizer=nn.LSQ(4, axis=0)).eval()
    x = torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        expected = conv(x)
        monkeypatch.setattr(packed, "TILE", 1 << 15)
        assert len(list(pack_(conv)._tiles())) == 9
        assert torch.equal(conv(x), expected)


def test_binary_layers_take_a_thirtieth_of_their_bytes():
    conv = nn.QuantConv2d(64, 64, 3, bias=False, weight_quantizer=nn.XNORWeight(), input_quantizer=nn.Sign())
    floats = conv.weight.nbytes
    assert 25 * sum(held.nbytes for held in pack_(conv).state_dict().values()) <= floats


def of(quantizer=None, cls=nn.QuantLinear, **kwargs):
    return torch.nn.Sequential(cls(8, 4, weight_quantizer=quantizer, **kwargs)).eval()


class Own(nn.QuantLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def unset():
    layer = nn.QuantLinear(4, 2)
    torch.nn.init.zeros_(layer.weight)
    layer.weight_quantizer = nn.LSQ(4)
    return layer


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (unset, RuntimeError, "QuantLinear.weight_codes: the scale of LSQ is not set yet"),
        (
            lambda: of(nn.Sign(), input_quantizer=nn.LSQ(4)),
            RuntimeError,
            "'0.input_quantizer': the scale of LSQ",
        ),
        (lambda: of(nn.SRSTE(2, 4)), TypeError, "got SRSTE"),
        (lambda: of(lambda w: w), TypeError, "got .*lambda"),
        (lambda: of(nn.LSQ(9)), ValueError, r"pack_: '0': weights must have 8 bits at most, got 9 \(LSQ\)"),
        (lambda: of(ste_ops.floor), TypeError, "pack_: '0': the integers of the weights must have a range, got floor"),
        (lambda: of(), ValueError, "pack_: model must have a layer with a weight quantizer"),
        (lambda: 3, TypeError, "pack_: model must be a module, got int"),
        (lambda: of(nn.Sign(), Own), ValueError, "pack_: '0': Linear and Conv1d to Conv3d have a packed class, Own"),
        (
            lambda: nn.quantize_(torch.nn.Bilinear(2, 2, 2), nn.Sign(), also=[torch.nn.Bilinear]),
            ValueError,
            "ParametrizedBilinear has none; skip leaves it",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(model, error, words):
    with pytest.raises(error, match=words):
        pack_(model())


def test_a_refused_model_is_unchanged_and_skip_leaves_layers():
    model = torch.nn.Sequential(of(nn.Sign()), of(nn.SRSTE(2, 4)))
    with pytest.raises(TypeError, match="got SRSTE"):
        pack_(model)
    assert type(model[0][0]) is nn.QuantLinear
    pack_(model, skip=["1"])
    assert [type(part[0]) for part in model] == [nn.PackedLinear, nn.QuantLinear]
    for skip, got in (("1", "'1'"), (["2"], r"\['2'\]")):
        with pytest.raises(ValueError, match=f"skip must be a collection of names .*, got {got}"):
            pack_(model, skip=skip)
    with pytest.raises(TypeError, match="PackedLinear: pack_ makes it of a trained layer"):
        nn.PackedLinear(3, 2)


def changed(state, key, change):
    held = state[key].clone()
    return {**state, key: change(held)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: changed(s, "0.format", lambda f: f + (torch.arange(len(f)) == 0)), "is of format version 2, this"),
        (
            lambda s: pack_(of(nn.LSQ(4, axis=0))).state_dict(),
            r"must have \(bits, .*\) = \(1, -1, 1, .*got \(4, -8, 7, ",
        ),
        (lambda s: changed(s, "0.codes", lambda c: c[:-1]), "codes must be 4 bytes .uint8., got 3 of torch.uint8"),
        (lambda s: of(nn.Sign()).state_dict(), "must have the format and codes of a packed layer, got one of a layer"),
        (lambda s: changed(s, "0.bias", lambda b: b[:-1]), "size mismatch for 0.bias"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, words):
    state = pack_(of(nn.Sign())).state_dict()
    with pytest.raises(RuntimeError, match=words):
        pack_(of(nn.Sign()), state_dict=change(state))


def test_a_file_holds_bytes_and_says_the_rest(tmp_path):
    """The first weight is in the lowest bit of the first byte, whatever machine wrote it."""
    layer = nn.QuantLinear(10, 1, bias=False, weight_quantizer=nn.Sign())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1, -1, 1, -1, -1, -1, -1, 1, 1]))
    save_file(pack_(layer).state_dict(), tmp_path / "layer.safetensors")
    state = load_file(tmp_path / "layer.safetensors")
    assert state["codes"].tolist() == [0b1001, 0b11]
    assert state["format"].tolist() == [1, 1, -1, 1, 2, 0, 1, -1, 0, 1, 10]
