"""Quantized nets as programs: torch.export with an open batch, and AOTInductor packages that run without ste_ops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.onnx_nets import NETS, trained
from torch import nn

import ste_ops
from ste_ops.nn import LSQ, BitNetActivation, BitNetWeight, MagnitudeAwareSign, QuantLinear, Sign

LIBRARY = Path(ste_ops.__file__).parent / "_C.abi3.so"


@pytest.mark.parametrize("name", NETS)
def test_an_exported_program_takes_any_batch(name):
    model, example = trained(name), NETS[name][1]
    program = torch.export.export(model, (example(4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for batch in (3, 6):
        x = example(batch)
        assert torch.equal(program(x), model(x))


# A process that loads the operators and the package, and asks for nothing of ours in Python; then it does, and gets
# nothing for ONNX with it.
RUN = """
import sys, torch
library, package, inputs, outputs = sys.argv[1:]
torch.ops.load_library(library)
compiled = torch._inductor.aoti_load_package(package)
torch.save([compiled(x) for x in torch.load(inputs)], outputs)
assert "ste_ops" not in sys.modules
import ste_ops
assert not {"onnx", "onnxscript", "ste_ops.onnx"} & sys.modules.keys()
assert ste_ops.onnx.__name__ == "ste_ops.onnx"
"""


@pytest.mark.slow
def test_an_aot_inductor_package_needs_the_library_of_operators_alone(tmp_path):
    model = nn.Sequential(
        QuantLinear(8, 16, weight_quantizer=MagnitudeAwareSign(), input_quantizer=Sign()),
        QuantLinear(16, 16, weight_quantizer=LSQ(4, axis=0), input_quantizer=LSQ(8)),
        QuantLinear(16, 5, weight_quantizer=BitNetWeight(), input_quantizer=BitNetActivation()),
    )
    model(torch.randn(4, 8))
    inputs = [torch.randn(batch, 8) for batch in (4, 3)]
    batch = {0: torch.export.Dim("batch", min=2, max=1024)}
    program = torch.export.export(model.eval(), (inputs[0],), dynamic_shapes=(batch,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [LIBRARY, package, tmp_path / "inputs.pt", tmp_path / "outputs.pt"]
    elsewhere = {**os.environ, "PYTHONPATH": str(LIBRARY.parents[1])}
    subprocess.run([sys.executable, "-c", RUN, *map(str, files)], check=True, timeout=120, cwd=tmp_path, env=elsewhere)
    for x, out in zip(inputs, torch.load(files[-1]), strict=True):
        torch.testing.assert_close(out, model(x), rtol=1e-6, atol=1e-6)
