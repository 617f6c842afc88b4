"""Clipping past the dispatcher: the operator's own bits, and only where nobody would notice that it was not called."""

from __future__ import annotations

import math

import pytest
import torch
from support.clip_cases import copies, parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ste_ops
from ste_ops.functional.clip import _direct

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def gradients() -> list[torch.Tensor]:
    shapes = ((), (0,), (5,), (256,), (7, 5), (20000,), (3, 1, 4))
    grads = [torch.randn(shape).to(dtype) for dtype in DTYPES for shape in shapes]
    strided = torch.randn(12, 10)
    return [*grads, strided.t(), strided[::2, 1:4], torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)]


def calls(grads: list[torch.Tensor], max_norm: float, norm_type: float = 2.0, mode: int = 0) -> torch.Tensor | None:
    return _direct.clip_grad_norm([parameter(grad) for grad in grads], max_norm, norm_type, mode)


@pytest.mark.parametrize("norm_type", [0, 0.5, 1, 2, 3, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_has_the_bits_of_the_operator(norm_type, max_norm, monkeypatch):
    for grads in (gradients(), [g for g in gradients() if g.dtype != torch.float64]):
        grads.append(grads[3])
        ours, theirs = copies(grads), copies(grads)
        ours[3].grad = ours[-1].grad
        theirs[3].grad = theirs[-1].grad
        norm = _direct.clip_grad_norm(ours, max_norm, norm_type, 0)
        with monkeypatch.context() as patch:
            patch.setattr(_direct, "clip_grad_norm", lambda *_: None)
            expected = ste_ops.clip_grad_norm_(theirs, max_norm, norm_type)
        assert norm is not None
        assert norm.dtype == expected.dtype
        assert norm.equal(expected)
        for p, q in zip(ours, theirs, strict=True):
            assert p.grad.equal(q.grad)
            assert p.grad._version == q.grad._version == 1 + (p is ours[3] or p is ours[-1])


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_norm_that_is_not_finite(mode):
    bad = torch.tensor([1.0, math.nan])
    other = torch.ones(3)
    norm = calls([bad, other], 1.0, 2.0, mode)
    assert norm.isnan()
    assert other.tolist() == pytest.approx([[math.nan] * 3, [1.0] * 3, [0.0] * 3][mode], nan_ok=True)


def test_parameters_without_a_gradient():
    grad = torch.tensor([3.0, 4.0])
    parameters = [torch.zeros(2, requires_grad=True), parameter(grad)]
    assert ste_ops.clip_grad_norm_(parameters, 1.0) == 5
    assert grad.tolist() == pytest.approx([0.6, 0.8])
    assert calls([], 1.0) is None


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(2, 1).expand(2, 3),
        torch.ones(3).as_subclass(Subclass),
        torch.ones(3).to_sparse(),
        torch.ones(3, device="meta"),
    ],
    ids=["expanded", "subclass", "sparse", "meta"],
)
def test_leaves_to_the_operator_what_it_cannot_read(grad):
    first = torch.ones(3)
    assert calls([first, grad], 0.1) is None
    assert first.tolist() == [1, 1, 1]
    assert first._version == 0


@pytest.mark.parametrize("enter", [TorchDispatchMode, TorchFunctionMode, torch.profiler.profile])
def test_leaves_to_the_operator_what_somebody_watches(enter):
    parameters = [parameter(torch.ones(3))]
    with enter():
        known = _direct.clip_grad_norm(parameters, 0.1, 2.0, 0)
    assert known is None
    assert _direct.clip_grad_norm(parameters, 0.1, 2.0, 0) is not None


def test_the_profiler_sees_the_operator():
    with torch.profiler.profile() as profile:
        ste_ops.clip_grad_norm_([parameter(torch.ones(3))], 0.1)
    assert "ste_ops::clip_grad_norm_" in {event.key for event in profile.key_averages()}


def test_copy_on_write_gradients_are_materialized():
    shared = torch.ones(3)
    lazy = torch._lazy_clone(shared)
    assert calls([lazy], 0.1) is not None
    assert shared.tolist() == [1, 1, 1]
    assert lazy[0] < 0.1
