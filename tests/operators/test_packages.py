"""Packages of AOTInductor: what learns a step or a bound compiles, loads and gives what it gave."""

import pytest
import torch

from ste_ops import nn
from ste_ops.surrogate import ATan, Clip

MODULES = {
    "LSQ": lambda: nn.LSQ(4),
    "LSQ of channels": lambda: nn.LSQ(4, axis=1, channels=8),
    "PACT": lambda: nn.PACT(bits=4),
    "Ternary": lambda: nn.Ternary(Clip(0.5), 0.25),
    "a learned surrogate": lambda: nn.Heaviside(ATan(torch.nn.Parameter(torch.tensor(2.0))), at_zero=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_package_gives_what_the_module_gives(tmp_path, name):
    """An infinite bound among an operator's arguments was written as a string, which no package loads."""
    module = MODULES[name]()
    module(torch.randn(4, 8))
    module.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(4, 8),), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for x in (torch.randn(4, 8) * 2, torch.randn(11, 8) * 2, torch.zeros(1, 8)):
            assert torch.equal(loaded(x), module(x))
