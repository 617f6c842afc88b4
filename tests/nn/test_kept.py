"""Quantized layers keep codes of their input and nothing of their quantized weight, and nothing changes for it."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

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
    _kept,
)

# What makes the quantizer of an input, and the bits that are kept of an element.
INPUTS = {
    "sign": (lambda: ste_ops.sign, 1),
    "partial": (lambda: functools.partial(ste_ops.sign, surrogate=ste_ops.surrogate.ATan()), 1),
    "Sign": (Sign, 1),
    "Heaviside": (Heaviside, 1),
    "Ternary": (Ternary, 2),
    "LSQ": (lambda: LSQ(4), 4),
    "LSQ 8": (lambda: LSQ(8, signed=False), 8),
    "LSQ 3": (lambda: LSQ(3, signed=False), 4),
    "LSQ channels": (lambda: LSQ(2, axis=1, channels=4), 2),
    "LSQPlus": (lambda: LSQPlus(4, signed=False), 4),
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


@pytest.fixture
def floats(monkeypatch):
    """Has layers keep floats, as torch does, within the context."""

    def within(call):
        with monkeypatch.context() as patch:
            patch.setattr(_kept, "keeps", lambda x: False)
            return call()

    return within


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


def pairs():
    """Every quantizer and every layer, each with several of the others."""
    weights, layers = itertools.cycle(WEIGHTS), itertools.cycle(LAYERS)
    for name in [*INPUTS] * 3:
        yield name, next(weights), next(layers)


def made(kind, of_input, of_weight, dtype=torch.float32):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    if of_input == "LSQ channels" and kind in ("linear", "one image"):
        kind, (make, shape) = "conv2d", LAYERS["conv2d"]
    layer = make(input_quantizer=INPUTS[of_input][0](), weight_quantizer=WEIGHTS[of_weight]()).to(dtype)
    return layer, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize(("of_input", "of_weight", "kind"), list(pairs()))
def test_gradients_of_two_orders(device, floats, of_input, of_weight, kind):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        layer, x = made(kind, of_input, of_weight, dtype)
        layer, x = layer.to(device), x.to(device)
        for laid in (x, x.to(memory_format=torch.channels_last)) if x.dim() == 4 else (x,):
            again = dtype == torch.float64
            assert_equal(trained(layer, laid, again), floats(lambda: trained(layer, laid, again)))  # noqa: B023
            if x.numel() > 0:
                layer(laid)  # its scales are set: not the first batch any more


def kept_bytes(layer, x):
    """What is allocated after a forward while its graph lives, but for the output."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        y = layer(x)
    return sum(event.self_cpu_memory_usage for event in profiled.events()) - y.untyped_storage().nbytes()


@pytest.mark.parametrize("of_input", INPUTS)
def test_what_is_kept(floats, of_input):
    quantizer, bits = INPUTS[of_input]
    if of_input == "LSQ channels":
        quantizer = functools.partial(LSQ, 2, axis=1, channels=16)
    layer = QuantConv2d(16, 16, 3, padding=1, input_quantizer=quantizer(), weight_quantizer=XNORWeight())
    x = torch.randn(4, 16, 32, 32, requires_grad=True)
    if of_input == "BitNet":
        layer = QuantLinear(512, 16, input_quantizer=quantizer(), weight_quantizer=BitNetWeight())
        x = torch.randn(128, 512, requires_grad=True)
    for _ in range(2):
        layer(x)
    saved, numel, weight = floats(lambda: kept_bytes(layer, x)), x.numel(), layer.weight.numel()
    now = kept_bytes(layer, x)
    # In the place of the quantized input and weight, and of the mean or mask of the weight.
    least, most = numel * 4 - numel * bits // 8 + weight * 4 - 2048, numel * 4 - numel * bits // 8 + weight * 4 + weight
    assert least <= saved - now <= most, (saved, now)


def test_a_frozen_weight_and_an_input_without_a_gradient_keep_no_codes():
    layer = QuantLinear(64, 64, bias=False, input_quantizer=ste_ops.sign, weight_quantizer=ste_ops.sign)
    x = torch.randn(128, 64)
    layer.weight.requires_grad_(False)
    assert kept_bytes(layer, x) == 0
    with torch.no_grad():
        assert kept_bytes(layer.requires_grad_(), x) == 0
    assert 0 < kept_bytes(layer, x) < 128 * 64 // 8 + 256


@pytest.mark.parametrize("of_weight", ["Sign", "LSQ", "XNOR", "FakeQuantize"])
def test_a_weight_that_changes_before_the_backward_is_told(of_weight):
    layer = QuantLinear(4, 3, input_quantizer=Sign(), weight_quantizer=WEIGHTS[of_weight]())
    x = torch.randn(5, 4, requires_grad=True)
    layer(x).sum().backward()
    loss = layer(x).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(
        RuntimeError, match=r"changed in place between forward and backward.*shape \(3, 4\), version 2, expected 1"
    ):
        loss.backward()
    if of_weight in ("LSQ", "FakeQuantize"):
        loss = layer(x).sum()
        with torch.no_grad():
            layer.weight_quantizer.scale.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
            loss.backward()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("of_input", INPUTS)
def test_what_is_not_finite_is_kept_as_it_is(floats, of_input, number):
    layer, x = made("conv2d", of_input, "Bi-Real")
    layer(x)
    x[0, 1, 2, 3] = number
    assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_input", INPUTS)
def test_under_autocast(floats, of_input, dtype):
    for kind, own in (("conv2d", torch.float32), ("linear of many", torch.float32), ("conv2d", torch.bfloat16)):
        layer, x = made(kind, of_input, "LSQ", own)
        layer(x)

        def call():
            with torch.autocast("cpu", dtype):
                return trained(layer, x)  # noqa: B023

        assert_equal(call(), floats(call))


def test_a_backward_may_run_twice(floats):
    layer, x = made("conv2d", "LSQ", "XNOR")
    x.requires_grad_()
    y = layer(x)
    first = torch.autograd.grad(y.sum(), [x, layer.weight], retain_graph=True)
    assert_equal(torch.autograd.grad(y.sum(), [x, layer.weight]), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), [x, layer.weight])


def test_hooks_and_checkpoints_around_a_layer_see_all(floats):
    layer, x = made("conv2d", "LSQ", "XNOR")
    layer(x)
    expected = trained(layer, x)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=False)

    assert_equal(trained(Checkpointed(), x), expected)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        assert_equal(trained(layer, x), expected)
    assert x.shape in seen
    assert layer.weight.shape in seen
    with torch.autograd.graph.save_on_cpu():
        assert_equal(trained(layer, x), expected)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        assert_equal(trained(layer, x), expected)


def test_quantizers_that_are_changed_by_others(floats):
    """By a hook, a subclass or a switch: what they give need not be of their grid."""
    shifted = LSQ(4)
    shifted.register_forward_hook(lambda module, args, out: out + 0.1)

    class Noisy(Sign):
        def forward(self, x):
            return super().forward(x) * torch.rand_like(x)

    for quantizer in (shifted, Noisy(), LSQ(4).disable(), lambda x: x, nn.Identity()):
        for of_weight in (Noisy(), None):
            layer = QuantLinear(6, 3, input_quantizer=quantizer, weight_quantizer=of_weight)
            x = torch.randn(5, 6)

            def call():
                torch.manual_seed(3)
                return trained(layer, x)  # noqa: B023

            assert_equal(call(), floats(call))


def test_transforms_and_graphs(floats):
    layer, x = made("conv2d", "LSQ", "XNOR")
    layer(x)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    for transform in (
        lambda f: torch.func.grad(f),
        lambda f: torch.func.vmap(torch.func.grad(f), (None, 0)),
        lambda f: lambda p, x: torch.func.jvp(functools.partial(f, p), (x,), (torch.ones_like(x),)),
    ):
        given = x[:, None] if "vmap" in repr(transform.__code__.co_names) else x
        received, expected = (call() for call in (lambda: transform(loss)(parameters, given), lambda: floats(  # noqa: B023
            lambda: transform(loss)(parameters, given))))  # noqa: B023  # fmt: skip
        torch.testing.assert_close(received, expected, rtol=0, atol=0)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=0)


def test_a_scale_that_is_found_in_the_first_forward(floats):
    """Its own weight is not kept either, and the versions are those of after it."""
    for of_weight in ("LSQ", "LSQPlus", "FakeQuantize"):
        layer, x = made("conv2d", "LSQ", of_weight)
        nn.init.normal_(layer.weight)  # after the quantizer was attached: the first forward confirms its scale
        assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))  # noqa: B023
