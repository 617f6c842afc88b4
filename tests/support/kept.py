"""Quantized layers of every kind, what training them gives, and what is kept for a backward as the allocator counts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ste_ops
from ste_ops.nn import (
    LSQ,
    PACT,
    BitNetActivation,
    BitNetWeight,
    DoReFaActivation,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    LSQPlus,
    MagnitudeAwareSign,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantLinear,
    Sign,
    Ternary,
    XNORWeight,
)

# What makes the quantizer of an input, and the bits that are kept of an element.
INPUTS = {
    "sign": (lambda: ste_ops.sign, 1),
    "partial": (lambda: functools.partial(ste_ops.sign, surrogate=ste_ops.surrogate.ATan()), 1),
    "Sign": (Sign, 1),
    "Heaviside": (Heaviside, 1),
    "Ternary": (Ternary, 2),
    "LSQ": (lambda: LSQ(4), 0),
    "LSQ frozen": (lambda: LSQ(4).freeze(), 4),
    "LSQ 8 frozen": (lambda: LSQ(8, signed=False).freeze(), 8),
    "LSQ 3 frozen": (lambda: LSQ(3, signed=False).freeze(), 4),
    "LSQ channels": (lambda: LSQ(2, axis=1, channels=4), 0),
    "LSQ channels frozen": (lambda: LSQ(2, axis=1, channels=4).freeze(), 2),
    "LSQPlus": (lambda: LSQPlus(4, signed=False), 0),
    "LSQPlus frozen": (lambda: LSQPlus(4, signed=False).freeze(), 4),
    "PACT": (lambda: PACT(2.0, 2), 2),
    "DoReFa": (lambda: DoReFaActivation(4), 4),
    "FakeQuantize": (lambda: FakeQuantize(8, signed=False), 8),
    "momentum": (lambda: FakeQuantize(8, momentum=0.1), 8),
    "BitNet": (BitNetActivation, 8),
}
WEIGHTS = {
    "sign": lambda: ste_ops.sign,
    "Sign": Sign,
    "learned Sign": lambda: Sign(ste_ops.surrogate.ATan(nn.Parameter(torch.tensor(2.0)))),
    "Ternary": Ternary,
    "XNOR": XNORWeight,
    "XNOR groups": lambda: XNORWeight(group_size=1),
    "Bi-Real": MagnitudeAwareSign,
    "DoReFa": lambda: DoReFaWeight(3),
    "BitNet": BitNetWeight,
    "LSQ": lambda: LSQ(4, axis=0),
    "LSQ frozen": lambda: LSQ(4).freeze(),
    "LSQPlus": lambda: LSQPlus(4),
    "FakeQuantize": lambda: FakeQuantize(8, axis=0),
    "momentum": lambda: FakeQuantize(8, momentum=0.1),
    "none": lambda: None,
    "own": lambda: lambda w: w.tanh(),
}
LAYERS = {
    "linear": (lambda **q: QuantLinear(4, 6, **q), (5, 4)),
    "linear of many": (lambda **q: QuantLinear(4, 6, bias=False, **q), (2, 4, 3, 4)),
    "conv1d": (lambda **q: QuantConv1d(4, 8, 3, **q), (2, 4, 9)),
    "conv2d": (lambda **q: QuantConv2d(4, 8, 3, stride=2, padding=1, **q), (2, 4, 7, 6)),
    "groups": (lambda **q: QuantConv2d(4, 8, 3, groups=2, dilation=2, bias=False, **q), (2, 4, 7, 6)),
    "depthwise": (lambda **q: QuantConv2d(4, 4, 3, groups=4, padding=1, **q), (2, 4, 7, 6)),
    "pointwise": (lambda **q: QuantConv2d(4, 8, 1, **q), (2, 4, 7, 6)),
    "reflect": (lambda **q: QuantConv2d(4, 8, 3, padding=1, padding_mode="reflect", **q), (2, 4, 7, 6)),
    "circular": (lambda **q: QuantConv2d(4, 8, 3, padding=2, padding_mode="circular", **q), (2, 4, 7, 6)),
    "replicate": (lambda **q: QuantConv1d(4, 8, 3, padding=1, padding_mode="replicate", **q), (2, 4, 9)),
    "same": (lambda **q: QuantConv2d(4, 8, (2, 3), padding="same", **q), (2, 4, 7, 6)),
    "conv3d": (lambda **q: QuantConv3d(4, 8, 2, **q), (1, 4, 3, 4, 5)),
    "one image": (lambda **q: QuantConv2d(4, 8, 3, **q), (4, 7, 6)),
    "nothing": (lambda **q: QuantConv2d(4, 8, 3, **q), (0, 4, 7, 6)),
}


def made(kind, of_input, of_weight, dtype=torch.float32):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    if of_input.startswith("LSQ channels") and kind in ("linear", "one image"):
        kind, (make, shape) = "conv2d", LAYERS["conv2d"]
    layer = make(input_quantizer=INPUTS[of_input][0](), weight_quantizer=WEIGHTS[of_weight]()).to(dtype)
    return layer, torch.randn(shape, dtype=dtype)


def trained(layer, x, again=False):
    """The output, and the gradients of input and parameters."""
    layer, x = copy.deepcopy(layer), x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    torch.manual_seed(1)
    grad = torch.randn_like(y)
    first = torch.autograd.grad(y, wanted, grad, create_graph=again, allow_unused=True)
    out = [y, *first]
    if again:
        total = sum((g * g).sum() for g in first if g is not None and g.requires_grad)
        out += torch.autograd.grad(total, wanted, allow_unused=True)
    return out


def assert_equal(received, expected):
    assert len(received) == len(expected)
    for r, e in zip(received, expected, strict=True):
        assert (r is None) == (e is None)
        if e is not None:
            torch.testing.assert_close(r, e, rtol=0, atol=0, equal_nan=True)
            assert r.stride() == e.stride()


def kept_bytes(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """What is allocated after a forward while its graph lives, but for the output, which may have x's memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        y = call(x)
    new = 0 if y.data_ptr() == x.data_ptr() else y.untyped_storage().nbytes()
    return sum(event.self_cpu_memory_usage for event in profiled.events()) - new
