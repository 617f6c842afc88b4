"""Sections 4 to 7 of examples/tutorial.py: autograd, its checks, a Function of one's own, clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.autograd.functional import hessian, jacobian
from torch.autograd.gradcheck import GradcheckError
from tutorial_page import say, seeded, show

import ste_ops
from ste_ops.surrogate import Clip, Sigmoid

# Gradients


def gradients(device: torch.device) -> None:
    """A step is flat: its true gradient is 0 and nothing would learn. Ours passes the surrogate's derivative on, and
    is otherwise a node of the graph like any other."""
    values = torch.tensor([-1.5, -0.5, 0.25, 2.0], device=device)

    say(".grad: Clip(1.0) lets the gradient pass where abs(x) <= 1. It adds up until it is cleared.")
    x = values.clone().requires_grad_()
    show("x", x)
    show("heaviside(x)", ste_ops.heaviside(x))
    show("sign(x)", ste_ops.sign(x))
    ste_ops.heaviside(x).sum().backward()
    show("x.grad", x.grad)
    ste_ops.heaviside(x).sum().backward()
    show("x.grad, after a second backward", x.grad)

    say("retain_grad keeps the gradient of what is no leaf.")
    x = values.clone().requires_grad_()
    hidden = 2 * x
    hidden.retain_grad()
    ste_ops.sign(hidden).sum().backward()
    show("hidden.grad, of sign(hidden)", hidden.grad)
    show("x.grad, of hidden = 2 x", x.grad)

    say("no_grad, set_grad_enabled and detach cut the graph; requires_grad_ starts one.")
    with torch.no_grad():
        show("requires_grad under no_grad", ste_ops.sign(x).requires_grad)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            show(f"under set_grad_enabled({enabled})", ste_ops.sign(x).requires_grad)
    show("of sign(x.detach())", ste_ops.sign(x.detach()).requires_grad)
    show("of sign(values), values.requires_grad_()", ste_ops.sign(values.clone().requires_grad_()).requires_grad)
    show("of sign(x).detach()", ste_ops.sign(x).detach().requires_grad)

    say("backward(gradient=): what is no scalar needs the gradient that comes in from above.")
    x = values.clone().requires_grad_()
    ste_ops.heaviside(x).backward(gradient=torch.tensor([1.0, 2.0, 3.0, 4.0], device=device))
    show("x.grad", x.grad)

    say("autograd.grad(create_graph=True): the gradient is a graph itself, and a curve has a second derivative.")
    x = torch.tensor([-0.5, 0.0, 0.5], device=device, requires_grad=True)
    (first,) = torch.autograd.grad(ste_ops.heaviside(x, Sigmoid(4.0)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    show("s'(x) of Sigmoid(4.0)", first)
    show("s''(x)", second)
    weight = torch.tensor([0.5, -0.25], device=device, requires_grad=True)
    (slope,) = torch.autograd.grad((weight * ste_ops.sign(x[:2])).sum(), x, create_graph=True)
    (slope.norm() - 1).square().backward()  # the penalty of WGAN-GP, through a binary layer
    show("weight.grad of a gradient penalty", weight.grad)

    say("autograd.backward takes several roots at once.")
    x = values.clone().requires_grad_()
    roots = [ste_ops.heaviside(x), ste_ops.sign(x)]
    torch.autograd.backward(roots, [torch.ones(4, device=device), torch.full((4,), 10.0, device=device)])
    show("x.grad of 1 heaviside(x) + 10 sign(x)", x.grad)

    say("zero_grad clears: to None, or in place.")
    optimizer = torch.optim.SGD([x], lr=0.1)
    optimizer.zero_grad(set_to_none=False)
    show("x.grad after zero_grad(set_to_none=False)", x.grad)
    optimizer.zero_grad()
    show("x.grad after zero_grad()", x.grad)


# autograd.gradcheck, autograd.functional.jacobian and hessian


def refused(step: Callable[[Tensor], Tensor], surrogate: Clip, x: Tensor) -> list[str]:
    """The checks of check_ste that a step does not pass."""
    failed: list[str] = []
    for _ in ste_ops.testing.CHECKS:
        try:
            ste_ops.testing.check_ste(step, surrogate, x.detach(), name="it", skip=failed)
            break
        except AssertionError as error:  # "check_ste: backward of it at x = ..."
            failed.append(str(error).split()[1])
    return failed


def checks(device: torch.device) -> None:
    """gradcheck compares with differences of the forward, and those of a step are 0: it must fail on every
    straight-through estimator. check_ste takes the differences of the surrogate's primitive in their place."""
    x = torch.tensor([-1.5, -0.5, 0.25, 2.0], dtype=torch.float64, device=device, requires_grad=True)

    say("gradcheck fails, as it must; check_ste passes the right surrogate and refuses a wrong one.")
    try:
        gradcheck(ste_ops.heaviside, x)
    except GradcheckError as error:
        show("gradcheck(heaviside, x)", str(error).split(",")[0])
    report = ste_ops.testing.check_ste(ste_ops.heaviside, Clip(1.0), x.detach())
    show("check_ste(heaviside, Clip(1.0), x) passes", sorted(report.checked))
    show("check_ste(heaviside, Clip(0.4), x) fails at", refused(ste_ops.heaviside, Clip(0.4), x))

    say("jacobian is the surrogate's, on the diagonal. hessian: of Clip alone 0, of a product not, of a curve s''.")
    show("jacobian(sign, x)", jacobian(ste_ops.sign, x))
    show("hessian of sum of sign(x)", hessian(lambda x: ste_ops.sign(x).sum(), x[1:3]))
    show("hessian of sum of x sign(x)", hessian(lambda x: (x * ste_ops.sign(x)).sum(), x[1:3]))
    show("hessian with Sigmoid(4.0)", hessian(lambda x: ste_ops.heaviside(x, Sigmoid(4.0)).sum(), x[1:3]))


# autograd.Function: StraightThroughStep


class StraightThroughStep(torch.autograd.Function):
    """The tutorial's own: it saves all of x, and copies the gradient before it masks it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        grad = grad.clone()
        grad[torch.abs(x) > 1] = 0
        return grad


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def function(device: torch.device) -> None:
    """The tutorial writes its straight-through step as an autograd.Function. heaviside is that step, bit for bit, in
    float32, and saves one bit an element where the class saves 32."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32) * 2**16  # upper halves of float32, ±0 to NaN
    bounds = torch.tensor([1.0, -1.0]).repeat(3)
    bounds[2:] = torch.nextafter(bounds[2:], torch.tensor([2.0, -2.0, 0.0, 0.0]))
    values = torch.cat([patterns.view(torch.float32), bounds]).to(device)
    incoming = torch.randn(len(values), generator=seeded()).to(device)
    results = {}
    for name, step in (("StraightThroughStep", StraightThroughStep.apply), ("ste_ops.heaviside", ste_ops.heaviside)):
        x = values.clone().requires_grad_()
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.nbytes) or t, lambda t: t):
            y = step(x)
        y.backward(incoming)
        results[name] = (y.detach(), x.grad)
        show(f"{name}([-2, -0.5, 0, 0.5, 2])", step(torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], device=device)))
        show(f"saved for backward, {len(values)} elements", f"{sum(saved)} bytes")
    (ours, our_grad), (theirs, their_grad) = results["ste_ops.heaviside"], results["StraightThroughStep"]
    show("values of the same bits", f"{int((bits(ours) == bits(theirs)).sum())} of {len(values)}")
    show("gradients of the same bits", f"{int((bits(our_grad) == bits(their_grad)).sum())} of {len(values)}")

    say("The class is right in float32 alone, and knows neither torch.func nor forward mode.")
    x = torch.tensor([-1.5, -0.5, 0.25, 2.0], dtype=torch.float64, device=device)
    show("check_ste(StraightThroughStep.apply, ...) fails at", refused(StraightThroughStep.apply, Clip(1.0), x))
    show("check_ste(ste_ops.heaviside, ...) fails at", refused(ste_ops.heaviside, Clip(1.0), x))


# clip_grad_norm_, clip_grad_value_


def clipping(device: torch.device) -> None:
    """A surrogate can pass a large gradient many times over. Clipping bounds a step; the arguments are torch's."""
    say("clip_grad_norm_ scales all gradients to one norm together, and returns the norm that they had.")
    for name, clip in (("torch", nn.utils.clip_grad_norm_), ("ste_ops", ste_ops.clip_grad_norm_)):
        show(f"{name}: norm, gradients after", clipped(clip, 6.5, device))
    show("below the bound nothing changes", clipped(ste_ops.clip_grad_norm_, 20.0, device))
    show("norm_type=inf", clipped(lambda p, bound: ste_ops.clip_grad_norm_(p, bound, float("inf")), 6.0, device))

    say("clip_grad_value_ clamps each element by itself.")
    for name, clip in (("torch", nn.utils.clip_grad_value_), ("ste_ops", ste_ops.clip_grad_value_)):
        show(f"{name}: gradients after", clipped(clip, 3.5, device))


def clipped(clip: Callable[..., Any], bound: float, device: torch.device) -> list[Any]:
    """What `clip` returned, and the gradients [3, 4] and [12] after it."""
    parameters = [nn.Parameter(torch.zeros(2, device=device)), nn.Parameter(torch.zeros(1, device=device))]
    for parameter, grad in zip(parameters, ([3.0, -4.0], [12.0]), strict=True):
        parameter.grad = torch.tensor(grad, device=device)
    norm = clip(parameters, bound)
    return [result for result in (norm, *(p.grad for p in parameters)) if result is not None]
