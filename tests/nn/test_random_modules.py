"""Random quantizers and layers through what a program does with a module (made on the meta device or the CPU, a first
batch, training, copies, averages, states, an export, in any order): after each the reference decides what comes out.

Forty modules in every run, STE_OPS_FUZZ=300 of them on demand.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import ste_ops
from ste_ops import reference
from ste_ops.functional.quantize.uniform import LEAST_STEP

CASES = int(os.environ.get("STE_OPS_FUZZ", "40"))
SHAPES = {"linear": (6, 8), "conv1d": (4, 8, 9), "conv2d": (3, 8, 5, 4), "bare": (4, 8)}


def some_surrogate(pick: random.Random) -> ste_ops.surrogate.Surrogate:
    return pick.choice([ste_ops.surrogate.Clip(0.7), ste_ops.surrogate.Identity(), ste_ops.surrogate.Tanh(1.5, 0.8)])


def some_uniform(pick: random.Random, signed: bool) -> nn.Module:
    kind = pick.choice([ste_ops.nn.LSQ, ste_ops.nn.LSQPlus, ste_ops.nn.FakeQuantize])
    settings: dict[str, object] = {"signed": signed, "scale": pick.choice([None, None, 0.25])}
    if signed and pick.random() < 0.5:
        settings |= {"axis": 0}
    if kind is not ste_ops.nn.FakeQuantize:
        settings |= {"grad_scale": pick.choice([None, 0.5])}
    return kind(pick.choice([2, 3, 4, 8]), **settings)


def some_weight_quantizer(pick: random.Random) -> nn.Module | None:
    bits = pick.choice([1, 2, 4])
    return pick.choice(
        [
            lambda: None,
            lambda: ste_ops.nn.Sign(some_surrogate(pick)),
            lambda: ste_ops.nn.Ternary(some_surrogate(pick), 0.02),
            lambda: ste_ops.nn.XNORWeight(),
            lambda: ste_ops.nn.MagnitudeAwareSign(),
            lambda: ste_ops.nn.DoReFaWeight(bits),
            lambda: ste_ops.nn.BitNetWeight(),
            lambda: ste_ops.nn.SRSTE(2, 4, 0.01),
            *[lambda: some_uniform(pick, signed=True)] * 6,
        ]
    )()


def some_input_quantizer(pick: random.Random) -> nn.Module | None:
    bits = pick.choice([1, 2, 4])
    return pick.choice(
        [
            lambda: None,
            lambda: ste_ops.nn.Sign(some_surrogate(pick)),
            lambda: ste_ops.nn.Heaviside(some_surrogate(pick)),
            lambda: ste_ops.nn.PACT(1.5, bits),
            lambda: ste_ops.nn.DoReFaActivation(bits),
            lambda: ste_ops.nn.BitNetActivation(bits + 1),
            *[lambda: some_uniform(pick, signed=False)] * 4,
        ]
    )()


def some_module(pick: random.Random, kind: str) -> nn.Module:
    if kind == "bare":
        return some_input_quantizer(pick) or ste_ops.nn.LSQ(4)
    quantizers = {"weight_quantizer": some_weight_quantizer(pick), "input_quantizer": some_input_quantizer(pick)}
    bias = pick.random() < 0.5
    if kind == "linear":
        return ste_ops.nn.QuantLinear(8, 5, bias=bias, **quantizers)
    layer = ste_ops.nn.QuantConv1d if kind == "conv1d" else ste_ops.nn.QuantConv2d
    return layer(8, 4, 3, padding=pick.choice([0, 1]), groups=pick.choice([1, 2]), bias=bias, **quantizers)


def in_reference(quantizer: nn.Module | None, x: Tensor, of_weight: bool) -> Tensor:
    """What the reference makes of x with the settings and the state of a quantizer, set by x where it is unset."""
    if quantizer is None:
        return x
    kind, arguments = type(quantizer).__name__, ()
    if kind in ("Sign", "Heaviside"):
        arguments = (quantizer.surrogate,)
    elif kind == "Ternary":
        arguments = (quantizer.surrogate, quantizer.threshold)
    elif kind == "PACT":
        arguments = (reference.clamp(quantizer.alpha, LEAST_STEP, float("inf")), quantizer.bits)
    elif hasattr(quantizer, "bits") and not hasattr(quantizer, "scale"):
        arguments = (quantizer.bits,)
    elif kind == "SRSTE":
        arguments = (quantizer.n, quantizer.m, quantizer.decay)
    elif hasattr(quantizer, "scale"):
        return uniform_in_reference(quantizer, x, of_weight)
    return getattr(reference, OPERATORS[kind])(x, *arguments)


OPERATORS = {
    "Sign": "sign",
    "Heaviside": "heaviside",
    "Ternary": "ternary",
    "PACT": "pact",
    "DoReFaActivation": "dorefa_activation",
    "DoReFaWeight": "dorefa_weight",
    "BitNetActivation": "bitnet_activation",
    "BitNetWeight": "bitnet_weight",
    "XNORWeight": "xnor_weight",
    "MagnitudeAwareSign": "magnitude_aware_sign",
    "SRSTE": "sr_ste",
}


def uniform_in_reference(quantizer: nn.Module, x: Tensor, of_weight: bool) -> Tensor:
    scale, zero_point = quantizer.scale, getattr(quantizer, "zero_point", None)
    low, high, axis = quantizer.quant_min, quantizer.quant_max, quantizer.axis
    assert float(quantizer.initialized) == 1.0
    if zero_point is not None:
        return reference.fake_quantize(x, scale, zero_point.round().int(), low, high, axis)
    shared = x.numel() // scale.numel() if of_weight else x[0].numel()
    factor = quantizer.grad_scale if quantizer.grad_scale is not None else (shared * high) ** -0.5
    scale = reference.clamp(scale, LEAST_STEP, float("inf"))  # whose gradient passes
    if isinstance(quantizer, ste_ops.nn.LSQPlus):
        return reference.lsq_plus(x, scale, quantizer.offset, low, high, axis, factor)
    return reference.lsq(x, scale, low, high, axis, factor)


def first_scale(quantizer: nn.Module, x: Tensor) -> Tensor:
    """What the papers start from: LSQ 2 mean(abs(x)) / sqrt(quant_max), LSQ+ three deviations of weights, the rest the
    range over the integers."""
    rows = x.detach().flatten(1) if quantizer.axis == 0 else x.detach().reshape(1, -1)
    if isinstance(quantizer, ste_ops.nn.LSQ):
        return 2 * rows.abs().mean(1) / quantizer.quant_max**0.5
    if isinstance(quantizer, ste_ops.nn.LSQPlus):
        if quantizer._of_weight:
            return (rows.mean(1).abs() + 3 * rows.std(1, correction=0)) / 2 ** (quantizer.bits - 1)
        return (rows.amax(1) - rows.amin(1)) / (quantizer.quant_max - quantizer.quant_min)
    if quantizer.signed:
        return rows.abs().amax(1) / quantizer.quant_max
    return (rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)) / quantizer.quant_max


def whole_in_reference(module: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(module, ste_ops.nn.QuantLayer):
        return in_reference(module, x, of_weight=False)
    x = in_reference(module.input_quantizer, x, of_weight=False)
    weight = in_reference(module.weight_quantizer, module.weight, of_weight=True)
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, module.bias)
    call = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
    return call(x, weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


def assert_is_reference(module: nn.Module, x: Tensor) -> None:
    """Output, and the gradients of x and of every parameter."""
    results = []
    for forward in (module, lambda x: whole_in_reference(module, x)):
        x = x.detach().requires_grad_()
        out = forward(x)
        inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
        grads = torch.autograd.grad(out, inputs, torch.cos(torch.arange(out.numel())).to(out.dtype).view_as(out))
        results.append([out.detach(), *grads])
    # Sums of float32 may come in another order.
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[x.dtype]
    torch.testing.assert_close(*results, rtol=close, atol=close)


def trained(module: nn.Module, x: Tensor) -> nn.Module:
    parameters = list(module.parameters())
    if parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        optimizer.zero_grad()
        module.train()(x).float().square().mean().backward()
        optimizer.step()
    return module


def averaged(module: nn.Module, x: Tensor) -> nn.Module:
    if not module.state_dict():
        return module  # torch averages something
    average = AveragedModel(module, use_buffers=True)
    average.update_parameters(module)
    average.update_parameters(trained(module, x))
    return average.module


def reloaded(module: nn.Module, x: Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    new = copy.deepcopy(module)
    for part in new.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    new.load_state_dict(torch.load(file, weights_only=True))
    return new


def exported(module: nn.Module, x: Tensor) -> nn.Module:
    program = torch.export.export(module.eval(), (x,), strict=False)
    assert torch.equal(program.module()(x), module(x))
    return module


def evaluated(module: nn.Module, x: Tensor) -> nn.Module:
    module.eval()(x)
    return module.train()


ACTIONS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "train": trained,
    "copy": lambda module, x: copy.deepcopy(module),
    "pickle": lambda module, x: pickle.loads(pickle.dumps(module)),
    "average": averaged,
    "save and load": reloaded,
    "export": exported,
    "evaluate": evaluated,
}


def made(pick: random.Random, kind: str, dtype: torch.dtype, on_meta: bool) -> nn.Module:
    state = pick.getstate()
    module = some_module(pick, kind).to(dtype)
    if not on_meta:
        return module
    floats = {key: value for key, value in module.state_dict().items() if key in ("weight", "bias")}
    pick.setstate(state)
    with torch.device("meta"):
        module = some_module(pick, kind).to(dtype)
    module.to_empty(device="cpu")
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    module.load_state_dict(floats, strict=False)
    return module


@pytest.mark.parametrize("number", range(CASES))
def test_a_module_stays_its_reference(number):
    pick = random.Random(number)
    kind, dtype = pick.choice(list(SHAPES)), pick.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    module = made(pick, kind, dtype, on_meta=pick.random() < 0.4)
    x = torch.randn(SHAPES[kind]).to(dtype)
    unset = [q for q in module.modules() if hasattr(q, "initialized") and not q.initialized.all()]
    if pick.random() < 0.5:
        module = pick.choice([ACTIONS["copy"], ACTIONS["pickle"], ACTIONS["save and load"]])(module, x)
        unset = [q for q in module.modules() if hasattr(q, "initialized") and not q.initialized.all()]
    module(x)  # the first batch
    for quantizer in unset:
        of_weight = quantizer is getattr(module, "weight_quantizer", None)
        expected = first_scale(quantizer, module.weight if of_weight else x)
        torch.testing.assert_close(quantizer.scale.detach().double(), expected.double(), rtol=1e-2, atol=1e-6)
    assert_is_reference(module, x)
    for action in pick.sample(list(ACTIONS), 4):
        module = ACTIONS[action](module, x)
        assert_is_reference(module, torch.randn_like(x))
