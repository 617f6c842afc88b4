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
from ste_ops.nn import (
    LSQ,
    PACT,
    BitNetActivation,
    BitNetWeight,
    DoReFaWeight,
    FakeQuantize,
    LSQPlus,
    PackedLayer,
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
    Sign,
    XNORWeight,
    fold_batch_norm_,
    pack_,
)

LIBRARY = Path(ste_ops.__file__).parent / "_C.abi3.so"
HOST = Path(__file__).parents[2] / "examples" / "cpp" / "run_package.cpp"


@pytest.mark.parametrize("name", NETS)
def test_an_exported_program_takes_any_batch(name):
    model, example = trained(name), NETS[name][1]
    program = torch.export.export(model, (example(4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for batch in (3, 6):
        x = example(batch)
        assert torch.equal(program(x), model(x))


def lines(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 8)


def packed() -> nn.Module:
    """Weights of 1, 2, 4 and 8 bits, with a sign before them that is a comparison of each channel; at the end layers
    that are not packed."""
    given = {"padding": 1, "bias": False}
    layers = [
        nn.Unflatten(2, (4, 2)),
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Hardtanh()),
        *(QuantConv2d(32, 32, 3, weight_quantizer=Sign(), input_quantizer=Sign(), **given), nn.BatchNorm2d(32)),
        *(
            QuantConv2d(32, 16, 3, weight_quantizer=LSQ(4, axis=0), input_quantizer=PACT(3.0, 4), **given),
            nn.Flatten(2),
        ),
        *(QuantConv1d(16, 32, 3, weight_quantizer=BitNetWeight()), nn.Flatten()),
        QuantLinear(192, 64, weight_quantizer=XNORWeight(), input_quantizer=Sign()),
        QuantLinear(64, 32, weight_quantizer=FakeQuantize(8, axis=0, signed=False), input_quantizer=LSQ(8)),
        QuantLinear(32, 32, weight_quantizer=LSQ(2, group_size=8)),
        QuantLinear(32, 32, weight_quantizer=LSQPlus(4)),
        QuantLinear(32, 16, weight_quantizer=DoReFaWeight(3)),
        QuantLinear(16, 16, weight_quantizer=LSQ(4, axis=0), input_quantizer=LSQ(8)),
        QuantLinear(16, 5, weight_quantizer=BitNetWeight(), input_quantizer=BitNetActivation()),
    ]
    model = nn.Sequential(*layers)
    model(lines(16))
    fold_batch_norm_(model.eval(), lines(4))
    return pack_(model, skip=[str(len(layers) - 1), str(len(layers) - 2)])


def test_an_exported_program_of_packed_layers_takes_any_batch():
    model = packed()
    assert any(isinstance(layer, PackedLayer) for layer in model.modules())
    program = torch.export.export(model, (lines(4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for batch in (1, 3, 33):
        x = lines(batch)
        assert torch.equal(program(x), model(x))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with net.pt2 and inputs.pt, and what eager makes of these."""
    folder = tmp_path_factory.mktemp("package")
    torch.manual_seed(0)
    model, inputs = packed(), [lines(batch) for batch in (4, 3, 1, 33)]
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    program = torch.export.export(model, (inputs[0],), dynamic_shapes=(batch,))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "net.pt2"))
    torch.save(inputs, folder / "inputs.pt")
    return folder, [model(x).detach() for x in inputs]


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


def made_by(folder, *command, **options):
    files = [LIBRARY, folder / "net.pt2", folder / "inputs.pt", folder / "outputs.pt"]
    files[-1].unlink(missing_ok=True)
    subprocess.run([*command, *map(str, files)], check=True, timeout=120, cwd=folder, **options)
    return torch.load(files[-1])


@pytest.mark.slow
def test_an_aot_inductor_package_needs_the_library_of_operators_alone(package):
    folder, expected = package
    elsewhere = {**os.environ, "PYTHONPATH": str(LIBRARY.parents[1])}
    for out, made in zip(made_by(folder, sys.executable, "-c", RUN, env=elsewhere), expected, strict=True):
        assert torch.equal(out, made)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the names of Python are weak in ELF alone (csrc/cpu/python.h)")
def test_a_host_without_python_runs_a_package(package, tmp_path):
    folder, expected = package
    torch_folder = Path(torch.__file__).parent
    flags = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib"]
    command = [os.environ.get("CXX", "c++"), "-std=c++20", str(HOST), *flags, "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, "-o", str(tmp_path / "run_package")], check=True, timeout=300)
    for out, made in zip(made_by(folder, str(tmp_path / "run_package")), expected, strict=True):
        assert torch.equal(out, made)
