"""heaviside and its module with at_zero=1: the step of SpikingJelly, whose gradient is that of the other."""

import pytest
import torch
from support.surrogate_table import DTYPES, LAYOUTS, assert_same_bits, filler, first_instances, forward_and_gradient
from torch.func import grad, jvp, vmap

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.surrogate import ATan, Clip, Custom, Identity, Rect, Sigmoid

nan, inf = torch.nan, torch.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", first_instances(), ids=repr)
def test_values(device, surrogate, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([0.0, -0.0, nan, -nan, inf, -inf, tiny, -tiny, 0.5, -0.5], dtype=dtype, device=device)
    incoming = torch.linspace(-1, 1, x.numel(), device=device).to(dtype)
    out, gradient = forward_and_gradient(lambda x: ste_ops.heaviside(x, surrogate, at_zero=1), x, incoming)
    assert out.tolist() == [1, 1, 0, 0, 1, 0, 1, 0, 1, 0]
    zero, same = forward_and_gradient(lambda x: ste_ops.heaviside(x, surrogate, at_zero=0), x, incoming)
    assert zero.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 1, 0]
    assert_same_bits(zero, ste_ops.heaviside(x, surrogate))
    assert_same_bits(gradient, same, any_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_65536_values(device, dtype):
    x = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    for surrogate in (Clip(1.0), Rect(), Identity()):
        expected = reference.heaviside(x, surrogate, at_zero=1)
        assert_same_bits(ste_ops.heaviside(x, surrogate, at_zero=1), expected)
        assert_same_bits(expected, (x >= 0).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("surrogate", [Clip(1.0), Sigmoid(), Custom(torch.cos)], ids=repr)
def test_layouts(device, surrogate, layout):
    x = LAYOUTS[layout](filler(torch.float32, surrogate, device))
    out, gradient = forward_and_gradient(
        lambda x: ste_ops.heaviside(x, surrogate, at_zero=1), x, torch.ones_like(x.contiguous())
    )
    assert_same_bits(out, (x >= 0).float())
    expected = forward_and_gradient(lambda x: ste_ops.heaviside(x, surrogate), x, torch.ones_like(x.contiguous()))[1]
    assert_same_bits(gradient, expected, any_nan=True)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", [Clip, ATan, Rect])
def test_with_tensors_and_under_transforms(device, kind, held):
    field = torch.tensor(0.8, device=device, requires_grad=True)
    surrogate = kind(field if held else 0.8)

    def step(x):
        return ste_ops.heaviside(x, surrogate, at_zero=1)

    x = torch.tensor([[0.0, -0.0, 0.4], [-0.3, 2.0, 0.0]], device=device)
    expected, slope = (x >= 0).float(), kind(0.8).derivative(x)
    torch._dynamo.reset()
    for program in (step, vmap(step), torch.compile(step, fullgraph=True, backend="aot_eager")):
        assert_same_bits(program(x).detach(), expected)
    torch.testing.assert_close(vmap(grad(lambda row: step(row).sum()))(x), slope)
    torch.testing.assert_close(jvp(step, (x,), (x,))[1], slope * x)
    torch._dynamo.reset()


def test_the_module(device):
    x = torch.tensor([0.0, -1.0, 1.0], device=device)
    module = ste_ops.nn.Heaviside(ATan(), at_zero=1)
    assert module(x).tolist() == [1, 0, 1]
    assert repr(module) == "Heaviside(ATan(alpha=2.0), at_zero=1)"
    assert ste_ops.nn.Heaviside()(x).tolist() == [0, 0, 1]
    assert repr(ste_ops.nn.Heaviside(ATan())) == "Heaviside(ATan(alpha=2.0))"


@pytest.mark.parametrize("wrong", [2, -1, 0.5, "1", True])
def test_only_0_and_1(wrong):
    x = torch.zeros(3)
    for call, name in (
        (lambda: ste_ops.heaviside(x, at_zero=wrong), "heaviside"),
        (lambda: ste_ops.nn.Heaviside(at_zero=wrong), "Heaviside"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: at_zero must be 0 or 1, got {wrong!r}"):
            call()


def test_the_raw_operator_of_held_numbers_checks(device):
    x, numbers = torch.zeros(3, device=device), torch.ones(2, dtype=torch.float64, device=device)
    with pytest.raises(
        RuntimeError, match="binarize_held: step must be heaviside, heaviside_from_zero, sign or ternary, g"
    ):
        ops.binarize_held(x, "step", Clip.number, numbers)
    with pytest.raises(RuntimeError, match=r"binarize_held: parameters must be contiguous .* of 3 elements, got 2"):
        ops.binarize_held(x, "ternary", Clip.number, numbers)
