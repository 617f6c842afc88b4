"""Whole nets as ONNX files in onnxruntime, at another batch than the one of the export."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import onnx_cases as cases
from support.onnx_nets import NETS, trained

import ste_ops

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Sums are in another order; of what lies on a tie by chance, with these seeds nothing does.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


WITH_INTEGERS = ["MLP", "ResNet, LSQ of 4 bits", "attached"]


@pytest.mark.parametrize(
    ("name", "qdq"),
    [*((name, False) for name in NETS if name != "attached"), *((name, True) for name in WITH_INTEGERS)],
)
def test_a_net_in_onnxruntime_is_that_of_eager_mode(name, qdq, tmp_path):
    model, example = trained(name), NETS[name][1]
    path = str(tmp_path / "net.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = ste_ops.onnx.export(model, (example(4),), path, dynamic_batch=True, qdq=qdq)
    x = example(7)
    with torch.no_grad():
        torch.testing.assert_close(cases.run(path, x)[0], model(x), **TOLERANCE)
    kinds = [node.op_type for node in program.model.graph]
    assert ("QuantizeLinear" in kinds) == qdq
    assert "DequantizeLinear" in kinds or name == "spiking net"


def test_an_own_export_of_torch_needs_the_table_alone():
    model, example = trained("Bi-Real ResNet"), NETS["Bi-Real ResNet"][1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = ste_ops.onnx.translations()
        program = torch.onnx.export(model, (example(4),), dynamo=True, custom_translation_table=table, verbose=False)
    x = example(4)
    with torch.no_grad():
        torch.testing.assert_close(cases.run(program, x)[0], model(x), **TOLERANCE)
