"""nn.LSQ counts the weights of a layer, or the features of one sample (arXiv:1902.08153, section 2.2)."""

from __future__ import annotations

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ste_ops
from ste_ops.nn import LSQ, FakeQuantize, QuantConv2d, QuantLinear


def of_scale(quantizer: LSQ, x: torch.Tensor) -> torch.Tensor:
    quantizer.scale.grad = None
    quantizer(x).pow(2).sum().backward()
    return quantizer.scale.grad.clone()


def unscaled(x: torch.Tensor, scale: float, low: int, high: int, axis: int | None = None) -> torch.Tensor:
    scale = torch.full((x.shape[axis] if axis is not None else 1,), scale, requires_grad=True)
    ste_ops.lsq(x, scale, low, high, axis, 1.0).pow(2).sum().backward()
    return scale.grad


@pytest.mark.parametrize("parts", [1, 4, 16, 64])
def test_micro_batches_have_the_gradient_of_the_batch(parts):
    x = torch.randn(64, 32).abs()
    whole = of_scale(LSQ(4, signed=False, scale=0.2), x)
    quantizer = LSQ(4, signed=False, scale=0.2)
    for part in x.chunk(parts):
        quantizer(part).pow(2).sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("shape", "axis", "features"), [((5, 6), None, 6), ((5, 3, 4, 4), None, 48), ((5, 3, 4), 1, 4)]
)
def test_activations_count_the_features_of_a_sample(shape, axis, features):
    x = torch.randn(shape)
    channels = None if axis is None else shape[axis]
    received = of_scale(LSQ(4, axis=axis, channels=channels, scale=0.2), x)
    expected = unscaled(x, 0.2, -8, 7, axis) / math.sqrt(features * 7)
    torch.testing.assert_close(received.flatten(), expected.flatten())


@pytest.mark.parametrize("axis", [None, 0])
def test_layers_count_all_weights(axis):
    for layer in (
        QuantLinear(6, 5, weight_quantizer=LSQ(4, axis=axis, scale=0.1)),
        QuantConv2d(2, 5, 3, weight_quantizer=LSQ(4, axis=axis, scale=0.1)),
    ):
        weight = layer.weight.detach()
        received = of_scale(layer.weight_quantizer, weight)
        sharing = weight.numel() // (1 if axis is None else 5)
        expected = unscaled(weight, 0.1, -8, 7, axis) / math.sqrt(sharing * 7)
        torch.testing.assert_close(received.flatten(), expected.flatten())


def test_twelve_batch_sizes_are_two_graphs():
    torch._dynamo.reset()
    quantizer, compiled = LSQ(4, scale=0.2), CompileCounterWithBackend("aot_eager")
    f = torch.compile(quantizer, fullgraph=True, backend=compiled)
    for batch in range(2, 14):
        x = torch.randn(batch, 5)
        expected = of_scale(quantizer, x)
        quantizer.scale.grad = None
        f(x).pow(2).sum().backward()
        torch.testing.assert_close(quantizer.scale.grad, expected)
    assert compiled.frame_count <= 2


def test_dynamic_graphs_hold_no_size_of_their_trace():
    torch._dynamo.reset()
    quantizer = LSQ(4, scale=0.2)
    f = torch.compile(quantizer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 16):
        x = torch.randn(batch, 8)
        expected = of_scale(quantizer, x)
        quantizer.scale.grad = None
        f(x).pow(2).sum().backward()
        torch.testing.assert_close(quantizer.scale.grad, expected)


def test_the_function_under_symbolic_sizes():
    """aot_function and make_fx froze 1 / sqrt(N * quant_max) at the traced size."""
    from functorch.compile import aot_function, nop
    from torch.fx.experimental.proxy_tensor import make_fx

    def f(x, scale):
        return torch.autograd.grad(ste_ops.lsq(x, scale, -4, 3).sum(), (x, scale))

    x, scale = torch.randn(4, 8, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    traced = make_fx(f, tracing_mode="symbolic")(x, scale)
    compiled = aot_function(lambda x, s: ste_ops.lsq(x, s, -4, 3), fw_compiler=nop, dynamic=True)
    for batch in (4, 16):
        x = torch.randn(batch, 8, requires_grad=True)
        expected = f(x, scale)[1]
        torch.testing.assert_close(traced(x, scale)[1], expected)
        torch.testing.assert_close(torch.autograd.grad(compiled(x, scale).sum(), scale)[0], expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(strict):
    quantizer, batch = LSQ(4, scale=0.2), torch.export.Dim("batch")
    program = torch.export.export(quantizer, (torch.randn(4, 8),), strict=strict, dynamic_shapes=({0: batch},))
    x = torch.randn(16, 8)
    torch.testing.assert_close(program.module()(x), quantizer(x))


@pytest.mark.parametrize("make", [LSQ, FakeQuantize])
def test_dynamic_graphs_take_a_scale_for_each_channel(make):
    torch._dynamo.reset()
    quantizer = make(4, axis=1, channels=4, scale=0.2)
    f = torch.compile(quantizer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 5, 9):
        x = torch.randn(batch, 4, 6)
        assert torch.equal(f(x), quantizer(x))
