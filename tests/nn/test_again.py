"""What happens to a quantized layer between its forward and its backward, where less is kept than floats."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support.kept import INPUTS, assert_equal, kept_bytes, made, trained
from torch import nn

import ste_ops
from ste_ops.nn import (
    LSQ,
    QuantConv2d,
    QuantLinear,
    Sign,
    XNORWeight,
)

pytestmark = pytest.mark.usefixtures("of_any_size")


def test_what_is_saved_as_it_is_may_not_change_either():
    x = torch.randn(6, 8, requires_grad=True)
    layer = QuantLinear(8, 8, weight_quantizer=LSQ(4))
    h = x * 1
    h += layer(h)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*at version 1; expected version 0"):
        h.square().sum().backward()
    layer = QuantLinear(8, 8, input_quantizer=LSQ(4))
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# What may be done to a quantizer, or with the module it is in, between forward and backward.
BETWEEN = {
    "surrogate": (Sign, lambda layer: setattr(layer.weight_quantizer, "surrogate", ste_ops.surrogate.Clip(0.1))),
    "bits": (lambda: LSQ(4), lambda layer: setattr(layer.weight_quantizer, "bits", 2)),
    "scale": (
        lambda: LSQ(4),
        lambda layer: setattr(layer.weight_quantizer, "scale", nn.Parameter(3 * layer.weight_quantizer.scale.detach())),
    ),
    "dtype": (lambda: LSQ(4), lambda layer: layer.weight_quantizer.half()),
    "disable": (lambda: LSQ(4), lambda layer: layer.weight_quantizer.disable()),
    "freeze": (lambda: LSQ(4), lambda layer: layer.weight_quantizer.freeze()),
    "requires_grad": (lambda: LSQ(4), lambda layer: layer.requires_grad_(False)),
    "eval": (XNORWeight, lambda layer: layer.eval()),
    "data": (XNORWeight, lambda layer: setattr(layer.weight, "data", -layer.weight.data)),
    "initialized": (lambda: LSQ(4), lambda layer: layer.weight_quantizer.initialized.fill_(1)),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_a_quantizer_runs_again_as_it_was(floats, between):
    make, change = BETWEEN[between]
    torch.manual_seed(0)
    layer, x = QuantLinear(6, 5, input_quantizer=LSQ(4), weight_quantizer=make()), torch.randn(7, 6)
    layer(x)

    def call():
        own, given = copy.deepcopy(layer), x.clone().requires_grad_()
        wanted = [given, *own.parameters()]
        y = own(given)
        change(own)
        wanted = [tensor for tensor in wanted if tensor.requires_grad]
        return torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)

    assert_equal(call(), floats(call))


def test_tensors_that_are_put_there_for_one_call(floats):
    layer, x = made("linear", "LSQ", "LSQ")
    layer(x)
    other = {name: (2 * p.detach()).requires_grad_() for name, p in layer.named_parameters()}

    def call(names):
        given = {name: other[name] for name in names}
        y = torch.func.functional_call(layer, given, (x,))
        return torch.autograd.grad(y.square().sum(), [*given.values()])

    for names in (["weight_quantizer.scale"], [*other]):
        assert_equal(call(names), floats(lambda: call(names)))  # noqa: B023


def test_tensors_in_a_surrogate_may_change(floats):
    for make in (lambda s: functools.partial(ste_ops.sign, surrogate=s), XNORWeight):
        alpha = torch.tensor(2.0)
        layer = QuantLinear(6, 5, weight_quantizer=make(ste_ops.surrogate.ATan(alpha)))
        x = torch.randn(7, 6)

        def call():
            alpha.fill_(2.0)  # noqa: B023
            y = layer(x)  # noqa: B023
            alpha.mul_(3)  # noqa: B023
            return torch.autograd.grad(y.square().sum(), [layer.weight])  # noqa: B023

        assert_equal(call(), floats(call))


def test_a_weight_that_is_computed_is_computed_once(floats):
    class Noise(nn.Module):
        def forward(self, w):
            return w + torch.randn_like(w)

    for of_weight in (None, Sign()):
        layer = QuantLinear(6, 5, input_quantizer=Sign(), weight_quantizer=of_weight)
        nn.utils.parametrize.register_parametrization(layer, "weight", Noise())
        x = torch.randn(7, 6)

        def call():
            torch.manual_seed(4)
            return [layer(x)]  # noqa: B023

        assert_equal(call(), floats(call))


def test_a_layer_with_a_quantized_weight_of_its_own(floats):
    class Doubled(QuantLinear):
        def quantized_weight(self):
            return super().quantized_weight() * 2

    layer, x = Doubled(6, 5, input_quantizer=Sign(), weight_quantizer=Sign()), torch.randn(7, 6)
    assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))


@pytest.mark.parametrize("of_input", ["LSQ", "BitNet", "LSQ channels", "Sign"])
@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_with_what_is_there(floats, of_input, mode):
    for shape in ((4, 4, 7, 6), (4, 7, 6)):
        if of_input == "LSQ channels" and len(shape) == 3:
            continue
        layer = QuantConv2d(4, 4, 3, padding=1, padding_mode=mode, input_quantizer=INPUTS[of_input][0]())
        x = torch.randn(shape)
        layer(x)
        assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))  # noqa: B023


def test_hooks_of_all_modules_and_a_forward_of_its_own_run_once(floats):
    layer, x = made("linear", "Sign", "XNOR")
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: calls.append(type(module)))
    try:
        layer(x).sum().backward()
        assert calls.count(XNORWeight) == 1
    finally:
        handle.remove()
    layer.weight_quantizer.forward = lambda w: w * torch.rand(())

    def call():
        torch.manual_seed(5)
        y = layer(x)
        return torch.autograd.grad(y.sum(), [layer.weight])

    assert_equal(call(), floats(call))


def test_transforms_of_a_backward(floats):
    for of_weight in ("Sign", "LSQ", "LSQ frozen", "XNOR"):
        layer, x = made("linear", "LSQ", of_weight)
        layer(x)
        x.requires_grad_()
        y = layer(x)
        rows = torch.eye(y.numel()).view(-1, *y.shape)

        def call(v):
            return torch.autograd.grad(y, [x, layer.weight], v, retain_graph=True)  # noqa: B023

        for received, one in zip(zip(*torch.func.vmap(call)(rows), strict=True), rows, strict=True):
            torch.testing.assert_close(received, call(one))
        with torch.autograd.forward_ad.dual_level():
            assert_equal(call(rows[0]), floats(lambda: call(rows[0])))  # noqa: B023


def test_inference_mode(floats):
    with torch.inference_mode():
        made_there = QuantLinear(6, 5, input_quantizer=Sign(), weight_quantizer=Sign())
    made_there.requires_grad_(False)
    x = torch.randn(7, 6, requires_grad=True)
    for layer in (made_there, QuantLinear(6, 5, input_quantizer=Sign(), weight_quantizer=Sign())):

        def call():
            try:
                y = layer(x)  # noqa: B023
                with torch.inference_mode():
                    return torch.autograd.grad(y.sum(), [x])
            except RuntimeError as error:
                return str(error)

        received, expected = call(), floats(call)
        assert received == expected if isinstance(expected, str) else torch.equal(received[0], expected[0])


def test_autocast_casts_a_float_weight_once():
    layer = QuantLinear(64, 64, bias=False, input_quantizer=Sign())
    x = torch.randn(8, 64, requires_grad=True)  # or the weight would not be saved
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_bytes(lambda x: sum(layer(x) for _ in range(5)), x)
    assert kept < 2 * 64 * 64 * 2


def test_the_input_is_not_held_where_it_is_not_saved():
    layer = QuantLinear(64, 64, bias=False, input_quantizer=LSQ(4), weight_quantizer=Sign()).requires_grad_(False)
    layer.input_quantizer.requires_grad_(True)
    x = torch.randn(256, 64, requires_grad=True)
    layer(x)
    assert kept_bytes(layer, x) < 256 * 64


def test_the_input_is_not_held_beside_what_it_was_padded_to():
    layer = QuantConv2d(16, 16, 3, padding=1, padding_mode="circular", input_quantizer=Sign(), weight_quantizer=Sign())
    x = torch.randn(2, 16, 32, 32, requires_grad=True)
    layer(x)
    assert kept_bytes(layer, x) < x.numel()  # a quarter of the floats


def test_autocast_of_what_is_narrow_and_of_what_has_the_shape_of_the_weight(device, floats):
    """On a device nobody looks whether a tensor is in the grid, and what is not would come back as NaN."""
    for own, cast in ((torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)):
        layer = QuantConv2d(4, 4, 3, padding=1, padding_mode="reflect", input_quantizer=LSQ(4)).to(device, own)
        for size in (2, 5):
            x = torch.randn(4, 4, size, size, device=device, dtype=own)
            layer(x)

            def call():
                with torch.autocast(x.device.type, cast):  # noqa: B023
                    return trained(layer, x)  # noqa: B023

            assert_equal(call(), floats(call))
