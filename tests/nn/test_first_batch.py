"""A sign of what is never negative says so, once."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import ste_ops
from ste_ops.nn import Heaviside, QuantLinear, Sign, Ternary, quantize_

X = torch.randn(8, 4)


def warned(call, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args)
    return [str(warning.message) for warning in caught]


def net(input):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return quantize_(model, Sign(), input, skip=["0"])


@pytest.mark.parametrize("input", [Sign(), ste_ops.sign], ids=["module", "function"])
def test_it_names_the_module_and_the_mend(input):
    model = net(input)
    (message,) = warned(model, X)
    assert message.startswith("Sign(Clip(threshold=1.0))" if isinstance(input, Sign) else "sign")
    assert "the input quantizer of '2': no element of its first batch is negative" in message
    assert "BatchNorm" in message
    assert warned(model, X) == []


def test_a_sign_by_itself_and_in_a_layer_made_by_hand():
    (message,) = warned(nn.Sequential(nn.ReLU(), Sign()), X)
    assert message.startswith("Sign(Clip(threshold=1.0)): no element")
    (message,) = warned(nn.Sequential(nn.ReLU(), QuantLinear(4, 2, input_quantizer=Sign())), X)
    assert "the input quantizer of a QuantLinear: no element" in message
    with pytest.warns(UserWarning, match="no element"):
        Sign()(torch.rand(4, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Sign(), X),
        (Sign().eval(), X.abs()),
        (Heaviside(), X.abs()),
        (Ternary(), X.abs()),
        (Sign(), torch.rand(15)),  # few enough to be positive by chance
        (Sign(), torch.rand(8, 4, device="meta")),
        (Sign(), torch.zeros(0, 4)),
        (Sign(), torch.full((32,), float("nan"))),
        (QuantLinear(4, 8, weight_quantizer=Sign()), X),
    ],
)
def test_it_is_silent_elsewhere(module, x):
    if isinstance(module, QuantLinear):
        nn.init.ones_(module.weight)
    assert warned(module, x) == []


def test_zeros_alone_say_nothing_yet():
    sign = Sign()
    assert warned(sign, torch.zeros(8, 4)) == []
    assert len(warned(sign, X.abs())) == 1


def test_a_later_batch_is_not_looked_at():
    sign = Sign()
    assert warned(sign, X) == warned(sign, X.abs()) == []


def test_transforms_exports_and_copies():
    sign = Sign()
    assert warned(torch.func.vmap(sign), X.abs()) == []
    assert warned(lambda: torch.export.export(Sign(), (X.abs(),), strict=False)) == []
    copies = [copy.deepcopy(sign), torch.load(_file(sign), weights_only=False)]
    torch._dynamo.reset()
    graphs = []
    # Lightning, once imported, notes in a module how it was compiled: that is no longer to be saved.
    compiled = torch.compile(sign, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    assert warned(compiled, X.abs()) == []
    for other in copies:
        assert len(warned(other, X.abs())) == 1
    warned(sign, X.abs())
    assert torch.equal(compiled(X), ste_ops.sign(X))  # what the host has seen makes no new graph
    assert len(graphs) == 1
    assert sign.state_dict() == {}


def _file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_on_a_gpu_nothing_waits(device):
    sign, x = Sign(), X.abs().to(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        messages = warned(sign, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert len(messages + warned(sign, x)) == 1
