"""The surrogates that are curves, Rect and Custom: what they are, what stays finite, second order, refusals."""

import math
import re

import pytest
import torch
from support.surrogate_table import (
    ALL_STEPS,
    DTYPES,
    all_instances,
    assert_same_bits,
    curves,
    first_instances,
    slope,
    tent,
)
from torch.func import grad, jvp, vmap

import ste_ops
from ste_ops import reference, surrogate
from ste_ops._library import ops
from ste_ops.surrogate import Clip, Custom, Rect, ReSTE, Sigmoid, Swish, Tanh

nan, inf = math.nan, math.inf


def native(curves):
    return [curve for curve in curves if not isinstance(curve, Custom)]


# What they are.


@pytest.mark.parametrize(
    ("curve", "x", "expected"),
    [
        (Rect(2.0), [0.0, 0.2, 0.25, -0.2, nan], [2, 2, 0, 2, 0]),
        (surrogate.ApproxSign(), [0.0, 0.5, -0.25, 1.0, 1.5], [2, 1, 1.5, 0, 0]),
        (Swish(2.0), [0.0, 0.5], [4 / 2, 2 * (2 - math.tanh(0.5)) / (1 + math.cosh(1))]),
        (Tanh(0.5, 3.0), [0.0, -2.0], [1.5, 1.5 * (1 - math.tanh(1) ** 2)]),
        (ReSTE(2.0, 0.8), [0.0, 0.05, 0.1, -0.25, 0.8, 0.81], [*3 * [10**0.5], 1, 0.5 / 0.8**0.5, 0]),
        (Sigmoid(2.0), [0.0, 0.5], [0.5, 2 * math.e / (1 + math.e) ** 2]),
        (surrogate.ATan(1.0), [0.0, 2 / math.pi], [0.5, 0.25]),
        (surrogate.FastSigmoid(4.0), [0.0, -0.25], [1, 0.25]),
        (surrogate.SoftSign(4.0), [0.0, -0.25], [2, 0.5]),
        (surrogate.PiecewiseQuadratic(2.0), [0.0, -0.25, 0.5, 0.6], [2, 1, 0, 0]),
        (surrogate.PiecewiseExp(2.0), [0.0, -0.5], [1, 1 / math.e]),
        (surrogate.Erf(2.0), [0.0, -0.5], [2 / math.pi**0.5, 2 / math.pi**0.5 / math.e]),
    ],
    ids=repr,
)
def test_what_is_written_in_the_docs(device, curve, x, expected):
    """Numbers from the formulas, so that a mistake in both the kernels and the reference does not cancel."""
    x = torch.tensor(x, dtype=torch.float64, device=device)
    expected = torch.tensor(expected, dtype=torch.float64, device=device)
    torch.testing.assert_close(slope(curve, x), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(curve.derivative(x), expected, rtol=1e-13, atol=1e-13)


AREAS = {"ApproxSign": 2.0} | dict.fromkeys(
    ["Sigmoid", "ATan", "SoftSign", "PiecewiseQuadratic", "PiecewiseExp", "Erf", "Rect"], 1.0
)


WITH_AREA = [curve for curve in all_instances() if type(curve).__name__ in AREAS and curve != Rect(1e30)]


@pytest.mark.parametrize("curve", WITH_AREA, ids=repr)
def test_integrals(curve):
    """Over the whole line, through x = t / (1 - t^2): the tails of some fall as slowly as 1 / x^2."""
    t = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 1_000_000 - 1
    x, dx = t / (1 - t * t), (1 + t * t) / (1 - t * t) ** 2
    area = (slope(curve, x) * dx).sum().item() / 1_000_000
    # Rect jumps, so its integral is known to a step of the line.
    assert area == pytest.approx(AREAS[type(curve).__name__], rel=3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curve", native(curves()), ids=repr)
def test_no_finite_number_overflows(device, curve, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([1e4, -1e4, largest, -largest, largest / 3, 6e4], device=device, dtype=torch.float64).to(dtype)
    ones = torch.ones_like(x)
    numbers = (curve.number, *curve.parameters, None)
    for derivative in (ops.curve_backward(ones, x, *numbers), ops.curve_second(ones, ones, x, *numbers)):
        assert bool(derivative.isfinite().all())
        # The slowest tails are those of powers of x.
        assert bool((derivative.abs() < 1e-6).all())
    if isinstance(curve, (Swish, Sigmoid, Tanh)):
        assert slope(curve, x).tolist() == [0] * 6 or curve == Tanh(0.1, 10.0)
    for value, expected in ((inf, 0.0), (-inf, 0.0), (nan, nan)):
        z = torch.full((3,), value, dtype=dtype, device=device)
        for derivative in (ops.curve_backward(z * 0 + 1, z, *numbers), ops.curve_second(z, z, z, *numbers)):
            if math.isnan(expected):
                assert bool(derivative.isnan().all())
        assert_same_bits(slope(curve, z), torch.full_like(z, expected), any_nan=True)


@pytest.mark.parametrize("curve", native(curves()), ids=repr)
def test_a_huge_parameter_overflows_nothing_but_itself(device, curve):
    """alpha x is infinite here."""
    wide = type(curve)(*[1e30 if name != "power" else 3.0 for name in type(curve).__match_args__])
    x = torch.tensor([1e20, -1e20], device=device)
    ones = torch.ones_like(x)
    assert slope(wide, x).isfinite().all()
    assert not ops.curve_second(ones, ones, x, wide.number, *wide.parameters, None).isnan().any()


def test_where_a_curve_is_zero_the_gradient_is_whatever_comes(device):
    x = torch.tensor([2.0, -2.0, inf, -inf, 1.0, 1e4], device=device)
    for curve in (surrogate.ApproxSign(), surrogate.PiecewiseQuadratic(1.0), ReSTE(3.0, 0.9), Rect(1.0), Custom(tent)):
        for value in (nan, inf, -inf, -0.0):
            z = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(ste_ops.heaviside(z, curve), z, torch.full_like(x, value))
            assert_same_bits(gradient + 0.0, torch.zeros_like(x), f"{curve} {value}")


# Second order.


def smooth_points(curve, device):
    """Away from the corners of every curve, of which the kernels and autograd may take different sides."""
    x = torch.randn(4001, dtype=torch.float64, device=device) * 1.5
    corners = [0.0, 0.1, 1.0, *curve.kinks()]
    if "alpha" in type(curve).__match_args__:
        corners.append(1 / curve.alpha)
    return x[torch.stack([(x.abs() - abs(c)).abs() > 1e-9 for c in corners]).all(0)]


@pytest.mark.parametrize("curve", curves(), ids=repr)
def test_second_derivative_against_autograd_of_the_reference(device, curve):
    x = smooth_points(curve, device).requires_grad_()
    incoming = torch.randn_like(x).requires_grad_()
    upper = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(ste_ops.sign(x, curve), x, incoming, create_graph=True)
    of_x, of_incoming = torch.autograd.grad(gradient, (x, incoming), upper)
    expected = curve.derivative(x)
    (second,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(of_incoming, upper * expected.detach(), rtol=1e-12, atol=1e-12)
    scale = second.abs().max().item()
    torch.testing.assert_close(of_x, upper * incoming.detach() * second, rtol=1e-11, atol=1e-12 * scale)
    assert scale > 0.04 or isinstance(curve, ReSTE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("curve", native(first_instances()), ids=repr)
def test_second_derivative_in_other_dtypes_and_layouts(device, curve, dtype):
    if curve.saves != "input":
        pytest.skip("no second derivative")
    numbers = (curve.number, *curve.parameters, None)
    x = smooth_points(curve, device)[:3900].view(60, 65).to(dtype).t()
    upper, incoming = torch.randn(2, 65, 60, device=device).to(dtype)
    received = ops.curve_second(upper, incoming, x, *numbers)
    assert received.stride() == x.stride()
    expected = ops.curve_second(upper.double(), incoming.double(), x.double(), *numbers)
    places = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(received.double(), expected, rtol=places, atol=places * 30)


def test_a_third_derivative_is_refused(device):
    x = torch.tensor([0.3, -0.2], dtype=torch.float64, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(ste_ops.sign(x, Sigmoid()).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"third derivative .* expected at most the second"):
        torch.autograd.grad(second.sum(), x)
    with pytest.raises(NotImplementedError, match="third derivative"):
        jvp(grad(lambda x: grad(lambda x: ste_ops.sign(x, Sigmoid()).sum())(x).sum()), (x.detach(),), (x.detach(),))


def test_custom_differentiates_to_any_order(device):
    x = torch.tensor([0.3, -0.2], dtype=torch.float64, device=device, requires_grad=True)
    derivative = ste_ops.sign(x, Custom(torch.sin)).sum()
    for order in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), x, create_graph=True)
        torch.testing.assert_close(derivative, [x.sin(), x.cos(), -x.sin()][order])


# Rect and Custom through the transforms that the kinds in representatives() go through.


@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.parametrize("kind", [Rect(0.4), Custom(tent)], ids=repr)
def test_transforms(device, kind, step):
    def fn(x):
        return getattr(ste_ops, step)(x, surrogate=kind)

    x = torch.randn(3, 5, dtype=torch.float64, device=device) * 1.5
    expected = x.cos() * kind.derivative(x)
    for program in (
        lambda x: grad(lambda x: (fn(x) * x.detach().cos()).sum())(x),
        lambda x: vmap(grad(lambda x: (fn(x) * x.detach().cos()).sum()))(x),
        lambda x: vmap(lambda x: jvp(fn, (x,), (x.cos(),))[1], in_dims=1, out_dims=1)(x),
    ):
        torch.testing.assert_close(program(x), expected)
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=False)
        torch.testing.assert_close(compiled(x), expected)
    assert_same_bits(vmap(fn)(x), getattr(reference, step)(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_custom(device, dtype):
    torch._dynamo.reset()
    x = torch.randn(33, device=device).to(dtype).requires_grad_()
    for kind in (Custom(tent), Custom(torch.cos), Rect(0.7)):
        y = torch.compile(lambda x, kind=kind: ste_ops.ternary(x, kind, 0.3), fullgraph=True, backend="aot_eager")(x)
        eager = ste_ops.ternary(x, kind, 0.3)
        assert_same_bits(y.detach(), eager.detach())
        cotangent = torch.randn_like(x)
        torch.testing.assert_close(torch.autograd.grad(y, x, cotangent), torch.autograd.grad(eager, x, cotangent))


def test_custom_keeps_its_input_alone(device):
    x = torch.randn(7, device=device).to(torch.bfloat16).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        ste_ops.heaviside(x, Custom(tent))
    assert saved == [x.data_ptr()]


def test_custom_wants_callables():
    with pytest.raises(TypeError, match=r"Custom: derivative must be callable, got 1\.0"):
        Custom(1.0)
    with pytest.raises(TypeError, match=r"Custom: primitive must be callable, got 2\.0"):
        Custom(tent, 2.0)
    with pytest.raises(ValueError, match=r"Custom\(tent\): primitive must be given where it is asked for"):
        Custom(tent).primitive(torch.zeros(1))


# Refusals.


@pytest.mark.parametrize("curve", [*native(curves()), Rect(), Clip()], ids=repr)
def test_fields_are_checked(curve):
    for name in type(curve).__match_args__:
        expected = "a finite number >= 1" if name == "power" else "a finite number > 0"
        for wrong in (0, -1.0, nan, inf, True, "1", None):
            with pytest.raises(
                ValueError, match=rf"{type(curve).__name__}: {name} must be {expected}.*, got {wrong!r}"
            ):
                type(curve)(**{name: wrong})
        for wrong, shape in (
            (torch.ones(3), "(3,)"),
            (torch.ones(1, 1), "(1, 1)"),
            (torch.ones((), dtype=torch.int32), "()"),
        ):
            one = f"a floating tensor of one element, shared by all of x, got a {wrong.dtype} tensor of shape {shape}"
            with pytest.raises(ValueError, match=rf"{name} must be .* or {re.escape(one)}"):
                type(curve)(**{name: wrong})


@pytest.mark.parametrize("threshold", [-0.1, nan, inf, True, "1", None, Clip()])
def test_ternary_wants_a_finite_threshold(threshold):
    with pytest.raises(ValueError, match="ternary: threshold must be a finite number >= 0, got "):
        ste_ops.ternary(torch.zeros(3), threshold=threshold)


def test_raw_curves_check_their_tensors(device):
    x, number = torch.zeros(6, device=device), Tanh.number
    with pytest.raises(RuntimeError, match="curve_backward: grad must have x's dtype Float, got Double"):
        ops.curve_backward(x.double(), x, number, 1.0, 1.0, None)
    with pytest.raises(RuntimeError, match="curve_second: upper must have x's shape"):
        ops.curve_second(x[:5], x, x, number, 1.0, 1.0, None)
    with pytest.raises(RuntimeError, match="curve_backward: surrogate must be a curve, got Clip"):
        ops.curve_backward(x, x, Clip.number, 1.0, 1.0, None)
    for wrong in (x[:2], x.double()[:3], x.double()[::3]):
        with pytest.raises(RuntimeError, match="parameters must be contiguous float64 on x's device, of 2 elements"):
            ops.curve_backward(x, x, number, 1.0, 1.0, wrong)
    with pytest.raises(RuntimeError, match="curve_second: x must be float64, float32, bfloat16 or float16, got Int"):
        ops.curve_second(x.int(), x.int(), x.int(), number, 1.0, 1.0, None)


# Ternary.


@pytest.mark.parametrize("dtype", DTYPES)
def test_ternary_levels(device, dtype):
    t = torch.tensor(0.3, dtype=dtype).item()
    x = torch.tensor([0.0, -0.0, t, -t, 1.0, -1.0, inf, -inf, nan], dtype=dtype, device=device)
    above = torch.nextafter(x[2:4], x[6:8])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, -1.0, nan], dtype=dtype, device=device)
    for module in (ste_ops, reference):
        assert_same_bits(module.ternary(x, threshold=t), expected, any_nan=True)
        assert module.ternary(above, threshold=t).tolist() == [1, -1]
        assert module.ternary(x[:6], threshold=0).tolist() == [0, 0, 1, -1, 1, -1]
        assert module.ternary(x[4:8], threshold=2.0).tolist() == [0, 0, 1, -1]
