"""Packages of AOTInductor: what learns a step or a bound compiles, loads and gives what it gave."""

import pytest
import torch

from ste_ops.nn import LSQ, PACT, Heaviside, Ternary
from ste_ops.surrogate import ATan, Clip


class Modules(torch.nn.Module):
    """All in one package: the C++ of each would take seconds."""

    def __init__(self):
        super().__init__()
        learned = Heaviside(ATan(torch.nn.Parameter(torch.tensor(2.0))), at_zero=1)
        modules = [LSQ(4), LSQ(4, axis=1, channels=8), PACT(bits=4), Ternary(Clip(0.5), 0.25), learned]
        self.modules_ = torch.nn.ModuleList(modules)

    def forward(self, x):
        return tuple(module(x) for module in self.modules_)


@pytest.mark.slow
def test_a_package_gives_what_the_module_gives(tmp_path):
    """An infinite bound among an operator's arguments was written as a string, which no package loads."""
    module = Modules()
    module(torch.randn(4, 8))
    module.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(4, 8),), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for x in (torch.randn(4, 8) * 2, torch.randn(11, 8) * 2, torch.zeros(1, 8)):
            received, expected = loaded(x), module(x)
            assert len(received) == len(module.modules_)
            for name, got, want in zip(module.modules_, received, expected, strict=True):
                assert torch.equal(got, want), name
