"""No reference depends on the gradient that torch gives clamp at its bounds, which torch is changing from 1 to 0
(pytorch/pytorch#191142)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.surrogate_table import SURROGATES
from torch import Tensor

from ste_ops import reference

# On and between the bounds of everything below.
POINTS = [bound / 8 for bound in range(-17, 18)]


def clamp_with(at_bound: float) -> type[torch.autograd.Function]:
    original = torch.clamp

    class Clamped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, low: Any, high: Any) -> Tensor:
            ctx.save_for_backward(x)
            ctx.bounds = low, high
            return original(x, low, high)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            (x,), (low, high) = ctx.saved_tensors, ctx.bounds
            factor = torch.ones_like(x)
            for bound, outside in ((low, torch.lt), (high, torch.gt)):
                if bound is not None:
                    factor = torch.where(outside(x, bound), 0.0, factor)
                    factor = torch.where(x == bound, at_bound, factor)
            return grad * factor, None, None

    return Clamped


CASES = {
    "clamp": lambda x: reference.clamp(x, -1.0, 1.0),
    "fake_quantize": lambda x: reference.fake_quantize(x, 0.25, 0, -4, 3),
    "lsq": lambda x: reference.lsq(x, torch.tensor(0.25, requires_grad=True), -4, 3),
    "lsq_plus": lambda x: reference.lsq_plus(x, torch.tensor(0.25, requires_grad=True), torch.tensor(0.1), -4, 3),
    "pact": lambda x: reference.pact(x, torch.tensor(1.0, requires_grad=True), 2),
    "dorefa_activation": lambda x: reference.dorefa_activation(x, 2),
    "dorefa_weight": lambda x: reference.dorefa_weight(x, 2),
    "xnor_weight": reference.xnor_weight,
    "magnitude_aware_sign": reference.magnitude_aware_sign,
    "bitnet_weight": reference.bitnet_weight,
    "bitnet_activation": reference.bitnet_activation,
    "sr_ste": lambda x: reference.sr_ste(x[:32], 2, 4),
    "clip_gradient_value": lambda x: reference.clip_gradient_value(x, 0.5),
    "clip_gradient_norm": lambda x: reference.clip_gradient_norm(x, 0.5),
    **{
        f"{name} {surrogate!r}": lambda x, f=f, s=surrogate: f(x, s)
        for name, f in (("heaviside", reference.heaviside), ("sign", reference.sign), ("ternary", reference.ternary))
        for surrogates in SURROGATES.values()
        for surrogate in surrogates[:1]
    },
}


def gradient_of(f: Any, monkeypatch: pytest.MonkeyPatch, at_bound: float | None) -> Tensor:
    with monkeypatch.context() as patch:
        if at_bound is not None:
            clamped = clamp_with(at_bound)

            def clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
                return clamped.apply(x, min, max)

            for owner in (torch, torch.Tensor):
                patch.setattr(owner, "clamp", clamp)
                patch.setattr(owner, "clamp_min", lambda x, low: clamp(x, min=low))
                patch.setattr(owner, "clamp_max", lambda x, high: clamp(x, max=high))
        x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
        out = f(x)
        (of_x,) = torch.autograd.grad(out, x, torch.linspace(-1, 2, out.numel(), dtype=out.dtype))
        return of_x


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_no_reference_depends_on_it(monkeypatch, f):
    expected = gradient_of(f, monkeypatch, None)
    for at_bound in (0.0, 0.5, 1.0):
        assert torch.equal(gradient_of(f, monkeypatch, at_bound), expected), at_bound


def test_a_reference_that_depends_on_it_would_fail(monkeypatch):
    of = [gradient_of(lambda x: x.clamp(-1.0, 1.0), monkeypatch, at_bound) for at_bound in (0.0, 1.0)]
    assert not torch.equal(*of)
