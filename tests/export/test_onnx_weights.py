"""Quantized weights in ONNX files: integers, and of them the weights again."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support import onnx_cases as cases
from torch import nn

import ste_ops
from ste_ops import surrogate as s
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    BitNetWeight,
    DoReFaActivation,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    LSQPlus,
    MagnitudeAwareSign,
    QuantConv2d,
    QuantLinear,
    Sign,
    Ternary,
    XNORWeight,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# The quantizer, and the type of the integers in the file.
QUANTIZERS: dict[str, tuple[Any, str]] = {
    "Sign": (Sign(), "INT4"),
    "Sign, learned": (Sign(s.ATan(nn.Parameter(torch.tensor(2.0)))), "INT4"),
    "sign, custom": (partial(ste_ops.sign, surrogate=s.Custom(lambda x: 1 / (1 + x * x))), "INT4"),
    "Heaviside": (Heaviside(), "UINT4"),
    "Ternary": (Ternary(), "INT4"),
    "FakeQuantize": (FakeQuantize(8), "INT8"),
    "FakeQuantize, axis": (FakeQuantize(4, axis=0), "INT4"),
    "FakeQuantize, zero points": (FakeQuantize(4, signed=False, axis=0), "UINT4"),
    "FakeQuantize, 8 bits, zero points": (FakeQuantize(8, signed=False, axis=1), "UINT8"),
    "FakeQuantize, 12 bits": (FakeQuantize(12), "INT16"),
    "FakeQuantize, 20 bits": (FakeQuantize(20), "INT32"),
    "FakeQuantize, 20 bits, zero point": (FakeQuantize(20, signed=False), "INT32"),
    "FakeQuantize, groups": (FakeQuantize(4, group_size=4), "INT4"),
    "LSQ": (LSQ(3), "INT4"),
    "LSQ, axis": (LSQ(8, axis=0), "INT8"),
    "LSQ, groups": (LSQ(4, group_size=4), "INT4"),
    "LSQPlus": (LSQPlus(4, axis=0, scale=0.2, offset=0.05), "INT4"),
    "PACT": (PACT(2.0, 4), "UINT4"),
    "DoReFaActivation": (DoReFaActivation(4), "UINT4"),
    "XNORWeight": (XNORWeight(), "INT4"),
    "XNORWeight, groups": (XNORWeight(group_size=4), "INT4"),
    "MagnitudeAwareSign": (MagnitudeAwareSign(), "INT4"),
    "MagnitudeAwareSign, curve": (MagnitudeAwareSign(s.ApproxSign()), "INT4"),
    "DoReFaWeight, 1 bit": (DoReFaWeight(1), "INT4"),
    "DoReFaWeight": (DoReFaWeight(2), "UINT4"),
    "DoReFaWeight, 8 bits": (DoReFaWeight(8), "UINT8"),
    "BitNetWeight": (BitNetWeight(), "INT4"),
    "SRSTE": (SRSTE(), "FLOAT"),
    "round": (ste_ops.round, "FLOAT"),
}


def exported(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ste_ops.onnx.export(model, inputs, **options)


def stored(program: Any) -> dict[str, Any]:
    return dict(program.model.graph.initializers)


class Layers(nn.Module):
    """Each layer's weight, by an identity."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            QuantLinear(8, 8, bias=False, weight_quantizer=quantizer, dtype=dtype)
            for quantizer, _ in QUANTIZERS.values()
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_are_integers_in_the_file_and_the_same_numbers(dtype):
    model, x = Layers(dtype).eval(), torch.eye(8, dtype=dtype)
    model(x)
    program = exported(model, x)
    for name, layer, out in zip(QUANTIZERS, model.layers, cases.run(program, x), strict=True):
        assert torch.equal(out.T, layer.quantized_weight().detach()), name
    types = {name: str(value.dtype) for name, value in stored(program).items()}
    for place, (name, (_, expected)) in enumerate(QUANTIZERS.items()):
        found = types.get(f"layers.{place}.weight_codes")
        folded = types.get(f"layers.{place}.weight_folded")
        assert (found == expected) if expected != "FLOAT" else folded is not None, name
        assert f"layers.{place}.weight" not in types, name


def test_a_file_holds_half_a_byte_a_weight_of_four_bits(tmp_path):
    layer = QuantConv2d(32, 64, 3, bias=False, weight_quantizer=LSQ(4, axis=0)).eval()
    x = torch.randn(2, 32, 5, 5)
    layer(x)
    exported(layer, x, path=tmp_path / "layer.onnx")
    size = (tmp_path / "layer.onnx").stat().st_size
    assert layer.weight.numel() / 2 < size < layer.weight.numel() / 2 + 2000


@pytest.mark.parametrize(
    ("quantizer", "dtype"), [(LSQ(4, axis=0), "INT4"), (SRSTE(), "FLOAT")], ids=["codes", "floats"]
)
def test_a_weight_of_two_layers_is_stored_once(quantizer, dtype):
    """One beyond the thousand elements up to which torch's exporter joins equal constants by itself."""
    layer = QuantLinear(64, 64, bias=False, weight_quantizer=quantizer).eval()
    layer(torch.randn(2, 64))
    program = exported(nn.Sequential(layer, layer), torch.randn(2, 64))
    large = [str(value.dtype) for value in stored(program).values() if value.const_value.size > 64]
    assert large == [dtype]


class WrittenInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.clone()
        seen = ste_ops.sign(weight)
        weight.neg_()
        return x @ (ste_ops.lsq(weight, torch.tensor([0.1]), -8, 7) + 100 * seen)


def test_a_weight_that_is_written_in_place_is_what_it_was_at_each_place():
    model, x = WrittenInPlace().eval(), torch.eye(8)
    assert torch.equal(cases.run(exported(model, x), x)[0], model(x).detach())


def test_a_weight_with_a_nan_stays_floats_with_a_nan():
    layer = QuantLinear(4, 4, bias=False, weight_quantizer=Ternary()).eval()
    with torch.no_grad():
        layer.weight[1, 2] = torch.nan
    program = exported(layer, torch.eye(4))
    assert np.isnan(stored(program)["weight_folded"].const_value.numpy()).sum() == 1
