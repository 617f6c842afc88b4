"""Clipping in the optimizer's step against clipping before it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import ste_ops

OPTIMIZERS = {
    "SGD": lambda ps: SGD(ps, lr=0.1, fused=True),
    "SGD with momentum": lambda ps: SGD(
        ps, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1, maximize=True, fused=True
    ),
    "Adam": lambda ps: Adam(ps, lr=0.1, weight_decay=0.1, amsgrad=True, fused=True),
    "AdamW": lambda ps: AdamW(ps, lr=0.1, maximize=True, fused=True),
    "Adagrad": lambda ps: Adagrad(ps, lr=0.1, lr_decay=0.1, fused=True),
}
# No more elements than a register holds: torch 2.13's fused SGD on the CPU leaves whole registers of bfloat16 as they
# were, clipped or not.
SHAPES = [(5, 3), (3,), (), (2, 0)]
# A coefficient in float32 for every dtype, and one rounding of the gradient more or less.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 2e-2}


def parameters(dtype=torch.float32, device="cpu"):
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in SHAPES]


def give_gradients(ps, scale=1.0):
    for p in ps:
        p.grad = (torch.randn(p.shape, device=p.device) * scale).to(p.dtype)


def twins(make, dtype=torch.float32, device="cpu"):
    ours = parameters(dtype, device)
    theirs = copy.deepcopy(ours)
    return ours, make(ours), theirs, make(theirs)


def assert_same(ours, theirs, optimizer=None, other=None):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[a.dtype], atol=TOLERANCE[a.dtype])
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=TOLERANCE[a.dtype], atol=TOLERANCE[a.dtype])
        if optimizer is not None:
            torch.testing.assert_close(
                dict(optimizer.state[a]), dict(other.state[b]), rtol=TOLERANCE[a.dtype], atol=TOLERANCE[a.dtype]
            )


def is_clean(optimizer):
    return "grad_scale" not in vars(optimizer) and "found_inf" not in vars(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_clipping_before_the_step(device, decided, name, dtype):
    ours, optimizer, theirs, other = twins(OPTIMIZERS[name], dtype, device)
    for scale, max_norm, norm_type in [(1, 0.5, 2), (1, 1e9, 2), (10, 3.0, math.inf), (0.1, 1e9, 1), (1, 0, 2)]:
        give_gradients(ours, scale)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        norm = ste_ops.fold_grad_clip_(optimizer, max_norm, norm_type)
        assert torch.equal(norm, ste_ops.clip_grad_norm_(theirs, max_norm, norm_type))
        optimizer.step()
        other.step()
        assert_same(ours, theirs, optimizer, other)
        assert is_clean(optimizer)


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_gradients_stay_until_the_step(decided, max_norm):
    ps = parameters()
    optimizer = SGD(ps, lr=0.1, fused=True)
    give_gradients(ps)
    before, versions = [p.grad.clone() for p in ps], [p.grad._version for p in ps]
    norm = ste_ops.fold_grad_clip_(optimizer, max_norm)
    assert all(torch.equal(p.grad, g) for p, g in zip(ps, before, strict=True))
    assert [p.grad._version for p in ps] == versions
    if max_norm > norm and decided == "host":
        assert is_clean(optimizer)  # so the step writes no gradient either
    optimizer.step()
    for p, g in zip(ps, before, strict=True):
        torch.testing.assert_close(p.grad, g * min(1, max_norm / norm), rtol=1e-6, atol=0)


def test_a_step_without_a_call_is_as_ever(decided):
    ours, optimizer, theirs, other = twins(OPTIMIZERS["Adam"])
    for call in (True, False, True, False):
        give_gradients(ours)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        if call:
            ste_ops.fold_grad_clip_(optimizer, 123.0)
            ste_ops.fold_grad_clip_(optimizer, 0.1)  # the later one counts
            ste_ops.clip_grad_norm_(theirs, 0.1)
        optimizer.step()
        other.step()
        assert is_clean(optimizer)
        assert_same(ours, theirs, optimizer, other)
    assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_norm_skips_the_step(decided, name, bad):
    ours, optimizer, theirs, other = twins(OPTIMIZERS[name])
    for skip in (True, False, True, False):
        give_gradients(ours)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        if skip:
            ours[0].grad[3, 2] = bad
            before = copy.deepcopy([p.detach() for p in ours])
        norm = ste_ops.fold_grad_clip_(optimizer, 1e9)
        optimizer.step()
        assert skip != norm.isfinite()
        if skip:
            assert all(torch.equal(p, q) for p, q in zip(ours, before, strict=True))
        else:
            other.step()
            assert_same(ours, theirs)
            for p, q in zip(ours, theirs, strict=True):
                assert_same_state(optimizer.state[p], other.state[q])


def assert_same_state(ours, theirs):
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-6, atol=1e-6)


def unscaled_before(optimizer, scaler):
    scaler.unscale_(optimizer)
    return ste_ops.fold_grad_clip_(optimizer, 0.5)


def unscaled_before_and_told(optimizer, scaler):
    scaler.unscale_(optimizer)
    return ste_ops.fold_grad_clip_(optimizer, 0.5, grad_scaler=scaler)


def unscaled_after(optimizer, scaler):
    norm = ste_ops.fold_grad_clip_(optimizer, 0.5, grad_scaler=scaler)
    scaler.unscale_(optimizer)
    return norm


def unscaled_in_the_step(optimizer, scaler):
    return ste_ops.fold_grad_clip_(optimizer, 0.5, grad_scaler=scaler)


def fused_later(ps):
    optimizer = Adam(ps, lr=0.1)
    for group in optimizer.param_groups:
        group["fused"] = True  # a GradScaler does not see it, and unscales the gradients itself
    return optimizer


@pytest.mark.parametrize(
    "way", [unscaled_before, unscaled_before_and_told, unscaled_after, unscaled_in_the_step], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("make", [OPTIMIZERS["AdamW"], OPTIMIZERS["SGD"], fused_later], ids=["AdamW", "SGD", "later"])
def test_with_a_grad_scaler(decided, way, make):
    """Over steps that clip, that do not, and one that overflows, with gradients accumulated over two backwards."""
    ours, optimizer, theirs, other = twins(make)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2) for _ in range(2)]
    for factor in (5.0, 1e-3, math.inf, 3.0, 0.1, 2.0):
        for ps, opt, scaler in ((ours, optimizer, scalers[0]), (theirs, other, scalers[1])):
            opt.zero_grad()
            for part in (1.0, 0.5):
                scaler.scale(sum((p * factor * part).sum() for p in ps)).backward()
        norm = way(optimizer, scalers[0])
        scalers[1].unscale_(other)
        expected = ste_ops.clip_grad_norm_(theirs, 0.5)
        scalers[0].step(optimizer)
        scalers[1].step(other)
        for scaler in scalers:
            scaler.update()
        torch.testing.assert_close(norm, expected, equal_nan=True)
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert is_clean(optimizer) or (make is fused_later and factor == math.inf)  # a step that was never called
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q)


def test_a_disabled_scaler_changes_nothing(decided):
    ours, optimizer, theirs, other = twins(OPTIMIZERS["Adam"])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    give_gradients(ours)
    for p, q in zip(ours, theirs, strict=True):
        q.grad = p.grad.clone()
    ste_ops.fold_grad_clip_(optimizer, 0.5, grad_scaler=scaler)
    ste_ops.clip_grad_norm_(theirs, 0.5)
    scaler.step(optimizer)
    other.step()
    assert_same(ours, theirs, optimizer, other)


def test_a_call_inside_a_closure(decided):
    """As trainers do that take the gradients within step(): the same step takes the coefficient."""
    ours, optimizer, theirs, other = twins(OPTIMIZERS["Adam"])
    for _ in range(3):
        gradients = [torch.randn(p.shape) for p in ours]

        def closure(ps=ours, clip=lambda: ste_ops.fold_grad_clip_(optimizer, 0.5), gradients=gradients):
            for p, g in zip(ps, gradients, strict=True):
                p.grad = g.clone()
            return clip()

        norm = optimizer.step(closure)
        assert torch.equal(norm, other.step(lambda c=closure: c(theirs, lambda: ste_ops.clip_grad_norm_(theirs, 0.5))))
        assert is_clean(optimizer)
        assert_same(ours, theirs, optimizer, other)


def test_groups_schedulers_and_missing_gradients(decided):
    ours, _, theirs, _ = twins(OPTIMIZERS["SGD"])
    made = []
    for ps in (ours, theirs):
        groups = [{"params": ps[:1], "momentum": 0.9}, {"params": ps[1:2]}, {"params": ps[2:], "lr": 0.5}]
        optimizer = SGD(groups, lr=0.1, fused=True)
        made.append((optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)))
    for missing in (1, 0, 3, 2):
        give_gradients(ours)
        ours[missing].grad = None
        for p, q in zip(ours, theirs, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        norm = ste_ops.fold_grad_clip_(made[0][0], 0.5)
        assert torch.equal(norm, ste_ops.clip_grad_norm_(theirs, 0.5))
        for optimizer, scheduler in made:
            optimizer.step()
            scheduler.step()
        assert_same(ours, theirs)
    made[0][0].zero_grad()
    assert ste_ops.fold_grad_clip_(made[0][0], 0.5) == 0
    made[0][0].step()
    assert_same(ours, theirs)


def test_refuses_what_cannot_fold():
    ps = parameters()
    give_gradients(ps)
    fold = ste_ops.fold_grad_clip_
    with pytest.raises(ValueError, match="must be fused, got Adam with fused=None in the parameter group 0; use"):
        fold(Adam(ps), 1.0)
    mixed = Adam([{"params": ps[:1]}, {"params": ps[1:], "fused": False}], fused=True)
    with pytest.raises(ValueError, match="got Adam with fused=False in the parameter group 1"):
        fold(mixed, 1.0)
    with pytest.raises(TypeError, match=r"optimizer must be torch's SGD, Adam, AdamW or Adagrad .* got RMSprop"):
        fold(RMSprop(ps), 1.0)
    with pytest.raises(TypeError, match="got list"):
        fold(ps, 1.0)
    optimizer = Adam(ps, fused=True)
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="fold_grad_clip_: max_norm must be a non-negative number"):
            fold(optimizer, bad)
        with pytest.raises(ValueError, match="fold_grad_clip_: norm_type must be"):
            fold(optimizer, 1.0, bad)
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(RuntimeError, match=r"optimizer\.grad_scale must not be set, got 2"):
        fold(optimizer, 1.0)
    assert optimizer.grad_scale == 2
    weight = torch.zeros(6, 3, requires_grad=True)
    torch.nn.functional.embedding(torch.tensor([1]), weight, sparse=True).sum().backward()
    sparse = SGD([weight], fused=True)
    with pytest.raises(TypeError, match="gradients must be strided"):
        fold(sparse, 1.0)
    assert is_clean(sparse)
