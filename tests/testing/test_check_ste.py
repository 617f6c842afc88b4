"""check_ste passes what is right, catches what is wrong, and gradcheck does what the documentation says."""

import pytest
import torch
from support.surrogate_table import DTYPES, STEPS, all_instances, first_instances, pairs, representatives, specials
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.function import once_differentiable
from torch.autograd.gradcheck import GradcheckError

import ste_ops
from ste_ops import reference
from ste_ops.surrogate import Clip, Identity
from ste_ops.testing import CHECKS, check_ste

EVERY = pairs() + [("sign", surrogate) for surrogate in all_instances() if surrogate not in first_instances()]


@pytest.mark.parametrize(("step", "surrogate"), EVERY, ids=repr)
def test_check_ste_passes_every_step(device, step, surrogate):
    if any(not 1e-6 < abs(kink) < 1e4 for kink in surrogate.kinks()):
        pytest.skip("finite differences do not resolve this kink")
    compiles = surrogate in representatives()
    torch._dynamo.reset()
    inputs = [specials(dtype, surrogate).to(device) for dtype in DTYPES]
    report = check_ste(
        lambda x: getattr(ste_ops, step)(x, surrogate=surrogate),
        surrogate,
        inputs,
        reference=lambda x: getattr(reference, step)(x, surrogate=surrogate),
        compile="aot_eager" if compiles else False,
        name=step,
    )
    assert set(report.checked) == set(CHECKS) - ({"compile"} if not compiles else set())
    counts = {check: count for check, count in report.checked.items() if check not in ("nonfinite", "gradgradcheck")}
    assert min(counts.values()) >= sum(x.numel() for x in inputs)
    assert (report.checked["nonfinite"] > 0) == (surrogate != Identity())
    assert report.checked["gradgradcheck"] > 0
    reasons = {} if compiles else {"compile": "not asked for"}
    reasons |= {} if report.checked["nonfinite"] else {"nonfinite": "the derivative is 0 nowhere"}
    assert report.reasons == reasons


# An STE of a user, with a surrogate of a user.


class Tent:
    def derivative(self, x):
        return (1 - x.abs()).clamp(min=0)

    def primitive(self, x):
        inside = x.clamp(-1, 1)
        return inside - inside * inside.abs() / 2

    def kinks(self):
        return []


class TentStep(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        slope = Tent().derivative(ctx.saved_tensors[0])
        return torch.where(slope == 0, 0, grad * slope)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * Tent().derivative(ctx.saved_tensors[0])


INPUT = torch.tensor([-1.5, -1.0, -0.0, 0.25, 1.0, 1.5, torch.inf, -torch.inf], dtype=torch.float64)


def test_a_curve_and_a_function_of_a_user():
    report = check_ste(TentStep.apply, Tent(), [INPUT, INPUT.float().view(2, 4).t(), torch.tensor(0.5)])
    assert report.operator == "TentStep"
    assert report.left_out == ("compile",)
    assert "backward (" in str(report)
    assert "left out: compile" in str(report)
    assert report.reasons == {"compile": "not asked for"}


def clipped(ctx, grad):
    return torch.where(ctx.saved_tensors[0].abs() > 1, 0, grad)


def step_with(**methods):
    """A Clip(1.0) step that is right but for the methods given."""

    def forward(x):
        return (x > 0).to(x.dtype)

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    body = {"forward": forward, "setup_context": setup_context, "backward": clipped, "jvp": clipped} | methods
    body = {name: staticmethod(method) if callable(method) else method for name, method in body.items()}
    return type("UserStep", (torch.autograd.Function,), {"generate_vmap_rule": True} | body).apply


def twice(ctx, grad):
    return torch.where(ctx.saved_tensors[0].abs() > 1, 0, 2 * grad)


def open_bounds(ctx, grad):
    return torch.where(ctx.saved_tensors[0].abs() >= 1, 0, grad)


def everywhere(ctx, grad):
    return grad.clone()


def product(ctx, grad):
    return grad * (ctx.saved_tensors[0].abs() <= 1)


def sloped(ctx, grad):
    x = ctx.saved_tensors[0]
    return torch.where(x.abs() > 1, 0, grad * (1 + x - x.detach()))


def breaks_the_graph(x):
    torch._dynamo.graph_break()
    return ste_ops.heaviside(x)


@pytest.mark.parametrize(
    ("fn", "check", "message"),
    [
        (step_with(forward=lambda x: (x >= 0).to(x.dtype)), "forward", "at x = -0.0: expected 0, received 1"),
        (step_with(forward=lambda x: (x > 0).float()), "forward", "expected dtype torch.float64"),
        (step_with(forward=lambda x: (x > 0).to(x.dtype)[:-1]), "forward", "expected shape"),
        (step_with(backward=twice), "backward", "expected 1, received 2"),
        (step_with(backward=everywhere), "backward", "expected 0, received 1"),
        (step_with(backward=open_bounds), "derivative", "at x = -?1.0"),
        (step_with(backward=product), "nonfinite", "expected 0, received nan"),
        (step_with(backward=once_differentiable(clipped)), "second_order", "a backward that is differentiable"),
        (step_with(backward=sloped), "second_order", "expected -?0, received"),
        (step_with(jvp=twice), "forward_mode", "expected"),
        (step_with(jvp=torch.autograd.Function.jvp), "forward_mode", r"skip=\('forward_mode',\)"),
        (step_with(generate_vmap_rule=False), "vmap", r"skip=\('vmap',\)"),
        (breaks_the_graph, "compile", "Unsupported"),
    ],
)
def test_check_ste_catches(fn, check, message):
    name = getattr(getattr(fn, "__self__", fn), "__name__", None)
    with pytest.raises(AssertionError, match=rf"(?s)check_ste: {check} of {name}.*{message}"):
        check_ste(fn, Clip(1.0), INPUT, reference=reference.heaviside, compile="eager")
    skip = CHECKS[CHECKS.index(check) :]
    assert check_ste(fn, Clip(1.0), INPUT, reference=reference.heaviside, skip=skip).left_out == skip


def test_the_right_user_step_passes():
    check_ste(step_with(), Clip(1.0), INPUT, reference=reference.heaviside)


def test_a_curve_without_its_second_derivative_is_caught():
    def backward(ctx, grad):
        slope = Tent().derivative(ctx.saved_tensors[0].detach())
        return torch.where(slope == 0, 0, grad * slope)

    with pytest.raises(AssertionError, match="second_order of UserStep at x = "):
        check_ste(step_with(backward=backward), Tent(), INPUT)


def test_a_surrogate_that_contradicts_its_primitive_is_caught():
    class Contradiction(Tent):
        def primitive(self, x):
            return x.clamp(-1, 1)

    with pytest.raises(AssertionError, match="backward of TentStep"):
        check_ste(TentStep.apply, Contradiction(), INPUT)


def test_the_reference_passes_but_for_forward_mode_and_transforms():
    why = "a Function of the old form, which torch.func does not take"
    report = check_ste(reference.sign, Clip(1.0), INPUT, skip=dict.fromkeys(("forward_mode", "vmap", "func"), why))
    assert report.reasons == {"forward_mode": why, "vmap": why, "func": why, "compile": "not asked for"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ste_ops.sign, 1.0, INPUT), TypeError, "surrogate must have derivative, primitive and kinks, got 1.0"),
        ((ste_ops.sign, Clip(), INPUT.int()), TypeError, "inputs must be floating tensors, got torch.int32"),
        ((ste_ops.sign, Clip(), [1.0]), TypeError, "inputs must be floating tensors, got float"),
        ((ste_ops.sign, Clip(), []), ValueError, "inputs must hold at least one tensor, got none"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=f"check_ste: {message}"):
        check_ste(*arguments)


def test_unknown_checks():
    with pytest.raises(ValueError, match=r"check_ste: skip must name checks of forward, .*, got speed"):
        check_ste(ste_ops.sign, Clip(), INPUT, skip=("speed",))


# The truth about gradcheck.


def away_from_the_step(device):
    return torch.tensor([-2.5, -0.7, -0.2, 0.3, 0.9, 1.7], dtype=torch.float64, device=device, requires_grad=True)


@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
@pytest.mark.parametrize("step", STEPS)
def test_gradcheck_fails_where_the_gradient_passes(device, step, surrogate):
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradcheck(lambda x: getattr(ste_ops, step)(x, surrogate), away_from_the_step(device))


def test_gradcheck_passes_where_no_gradient_does(device):
    """There the step's own derivative, 0, is the surrogate's too."""
    x = torch.tensor([-3.0, -1.5, 2.0, 7.0], dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(ste_ops.sign, x)


@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
@pytest.mark.parametrize("step", STEPS)
def test_gradcheck_and_gradgradcheck_pass_for_the_incoming_gradient(device, step, surrogate):
    x = away_from_the_step(device)

    def backward(grad):
        return torch.autograd.grad(getattr(ste_ops, step)(x, surrogate), x, grad, create_graph=True)[0]

    grad = torch.randn(6, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(backward, grad, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(backward, grad)
