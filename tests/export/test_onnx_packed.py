"""Packed layers in ONNX files: the integers that they hold, the same weights, and products of signs to the last bit."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from support import onnx_cases as cases
from support import packed_nets
from torch import nn

import ste_ops
from ste_ops.nn import (
    LSQ,
    PACT,
    BitNetWeight,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    LSQPlus,
    MagnitudeAwareSign,
    PackedLayer,
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
    Sign,
    Ternary,
    XNORWeight,
    fold_batch_norm_,
    pack_,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

QUANTIZERS: dict[str, tuple[Any, str]] = {
    "Sign": (Sign(), "INT4"),
    "Heaviside": (Heaviside(), "UINT4"),
    "Ternary": (Ternary(), "INT4"),
    "LSQ, 2 bits": (LSQ(2, axis=0), "INT4"),
    "LSQ": (LSQ(8), "INT8"),
    "LSQ, axis 1": (LSQ(4, axis=1), "INT4"),
    "LSQ, groups": (LSQ(4, group_size=4), "INT4"),
    "LSQPlus": (LSQPlus(4, axis=0, scale=0.2, offset=0.05), "INT4"),
    "PACT": (PACT(2.0, 4), "UINT4"),
    "FakeQuantize, zero points": (FakeQuantize(8, signed=False, axis=1), "UINT8"),
    "FakeQuantize, 4 bits, zero points": (FakeQuantize(4, signed=False, axis=0), "UINT4"),
    "fake_quantize, between": (
        partial(ste_ops.fake_quantize, scale=0.02, zero_point=0.3, quant_min=-8, quant_max=7),
        "INT4",
    ),
    "fake_quantize, beyond": (
        partial(ste_ops.fake_quantize, scale=0.02, zero_point=20, quant_min=-8, quant_max=7),
        "INT4",
    ),
    "XNORWeight": (XNORWeight(), "INT4"),
    "XNORWeight, groups": (XNORWeight(group_size=4), "INT4"),
    "DoReFaWeight, 1 bit": (DoReFaWeight(1), "INT4"),
    "DoReFaWeight": (DoReFaWeight(3), "UINT4"),
    "DoReFaWeight, 8 bits": (DoReFaWeight(8), "UINT8"),
    "BitNetWeight": (BitNetWeight(), "INT4"),
}


class Beside(nn.Module):
    """The output of each of several layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x if y is None or i % 2 == 0 else y) for i, layer in enumerate(self.layers))


def exported(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ste_ops.onnx.export(model, inputs, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed_weights_are_integers_in_the_file_and_the_same_numbers(dtype):
    layers = [QuantLinear(8, 8, bias=False, weight_quantizer=q, dtype=dtype) for q, _ in QUANTIZERS.values()]
    model, x = Beside(layers).eval(), torch.eye(8, dtype=dtype)
    model(x)
    pack_(model)
    program = exported(model, x)
    for name, layer, out in zip(QUANTIZERS, model.layers, cases.run(program, x), strict=True):
        assert torch.equal(out.T, layer.unpacked(dtype)), name
    types = {name: str(value.dtype) for name, value in program.model.graph.initializers.items()}
    for place, (name, (_, expected)) in enumerate(QUANTIZERS.items()):
        assert types[f"layers.{place}.weight_codes"] == expected, name
    assert not [name for name in types if name.endswith((".codes", ".panels", ".format"))]


def test_products_of_signs_have_the_bits_of_eager_mode():
    signs = {"input_quantizer": Sign()}
    model = Beside(
        [
            QuantLinear(40, 8, weight_quantizer=XNORWeight(), **signs),
            QuantConv2d(6, 8, 3, padding=1, weight_quantizer=MagnitudeAwareSign(), **signs),
            QuantLinear(40, 8, weight_quantizer=Sign(), input_quantizer=Heaviside()),
            QuantConv2d(6, 8, 3, stride=2, groups=2, weight_quantizer=Sign(), **signs),
            QuantLinear(40, 8, bias=False, weight_quantizer=DoReFaWeight(1), **signs),
            QuantConv2d(6, 8, 2, padding=1, padding_mode="circular", weight_quantizer=XNORWeight(), **signs),
            nn.Sequential(nn.Flatten(1), QuantLinear(40, 8, bias=False, weight_quantizer=Sign(), **signs)),
            nn.Sequential(nn.Flatten(2), QuantConv1d(6, 8, 5, weight_quantizer=XNORWeight(), **signs)),
        ]
    ).eval()
    with torch.no_grad():
        model.layers[0].weight[3] = 0  # a factor of 0
        pack_(model)
        assert all(layer.panels is not None for layer in model.modules() if isinstance(layer, PackedLayer))
        inputs = torch.randn(4, 40), torch.randn(4, 6, 7, 7)
        before = {name: value.clone() for name, value in model.named_buffers()}
        program = exported(model, *inputs, dynamic_batch=True)
        inputs = torch.randn(7, 40), torch.randn(7, 6, 7, 7)
        expected = model(*inputs)
    for place, (out, made) in enumerate(zip(cases.run(program, *inputs), expected, strict=True)):
        assert torch.equal(out, made), place
    after = dict(model.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_folded_and_packed_net_takes_any_batch(tmp_path):
    model, x = packed_nets.trained("resnet"), packed_nets.images()
    pack_(fold_batch_norm_(model, x))
    exported(model, x, path=tmp_path / "net.onnx", dynamic_batch=True)
    for given in (x[:1], torch.randn(9, 1, 8, 8)):
        with torch.no_grad():
            made = model(given)
        torch.testing.assert_close(cases.run(str(tmp_path / "net.onnx"), given)[0], made, rtol=1e-5, atol=1e-6)


class Unpacks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ste_ops.binary_linear(x, torch.ones(3, 4))


def test_what_calls_a_product_of_bits_itself_is_refused():
    with pytest.raises(NotImplementedError, match=r"ste_ops.binary_linear .*ONNX has no product of packed bits"):
        exported(Unpacks(), torch.rand(2, 4))


def test_a_forward_of_the_layer_itself_is_refused_and_kept():
    layer = pack_(QuantLinear(8, 4, weight_quantizer=LSQ(4)).eval())
    of_class = layer.forward
    layer.forward = lambda x: 2 * of_class(x)
    kept = layer.forward
    with pytest.raises(NotImplementedError, match="got a PackedLinear whose forward was set on the layer itself"):
        exported(nn.Sequential(layer).eval(), torch.randn(2, 8))
    assert layer.forward is kept
