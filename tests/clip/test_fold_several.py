"""One norm folded into several optimizers, and steps that are left out because their norm is too large."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD, AdamW

import ste_ops
from ste_ops.functional.clip import fold as clip_fold


def parameters(dtype=torch.float32):
    ps = [torch.zeros(2, dtype=dtype, requires_grad=True) for _ in range(2)]
    ps[0].grad, ps[1].grad = torch.tensor([3.0, 0.0], dtype=dtype), torch.tensor([0.0, 4.0], dtype=dtype)
    return ps


def sgd(*ps):
    return SGD(ps, lr=1.0, fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_norm_of_several_optimizers(decided, dtype):
    ps = parameters(dtype)
    optimizers = [sgd(p) for p in ps]
    total_norm = ste_ops.get_total_norm([p.grad for p in ps])
    for optimizer in optimizers:
        norm = ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=total_norm)
        assert torch.equal(norm, total_norm)
        optimizer.step()
    expected = torch.tensor([-0.6, 0.0, 0.0, -0.8], dtype=dtype)
    torch.testing.assert_close(torch.cat(ps).detach(), expected, rtol=1e-6, atol=0)


def test_one_norm_skips_every_optimizer(decided):
    ps = parameters()
    ps[1].grad[0] = math.nan
    total_norm = ste_ops.get_total_norm([p.grad for p in ps])
    for p in ps:
        optimizer = sgd(p)
        assert ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=total_norm).isnan()
        optimizer.step()
        assert not p.any()


@pytest.mark.parametrize("unscaled", [False, True])
def test_one_norm_with_one_scaler(decided, unscaled):
    """The norm is that of the gradients as they lie."""
    ps = parameters()
    optimizers = [sgd(p) for p in ps]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    for p, optimizer in zip(ps, optimizers, strict=True):
        p.grad.mul_(8.0)
        if unscaled:
            scaler.unscale_(optimizer)
    total_norm = ste_ops.get_total_norm([p.grad for p in ps])
    for optimizer in optimizers:
        assert ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=total_norm, grad_scaler=scaler) == 5.0
        scaler.step(optimizer)
    torch.testing.assert_close(torch.cat(ps).detach(), torch.tensor([-0.6, 0.0, 0.0, -0.8]), rtol=1e-6, atol=0)


def test_an_optimizer_without_gradients_takes_the_norm_of_others(decided):
    p = torch.zeros(2, requires_grad=True)
    optimizer = sgd(p)
    assert ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor(5.0)) == 5.0
    optimizer.step()
    assert not p.any()


@pytest.mark.parametrize("max_norm", [1.0, math.inf])
def test_skips_where_the_norm_exceeds_the_bound(decided, max_norm):
    ps = parameters()
    optimizer = AdamW(ps, lr=0.1, fused=True)
    for scale, skipped in (1.0, False), (3.0, True), (2.0, False), (2.01, True):
        for p, q in zip(ps, parameters(), strict=True):
            p.grad = q.grad * scale
        before = torch.cat([torch.cat(ps), *(p.grad for p in ps)]).detach()
        steps = [optimizer.state[p]["step"].clone() for p in ps if optimizer.state[p]]
        norm = ste_ops.fold_grad_clip_(optimizer, max_norm, skip_above=10.0)
        torch.testing.assert_close(norm, torch.tensor(5.0 * scale))
        optimizer.step()
        after = torch.cat([torch.cat(ps), *(p.grad for p in ps)]).detach()
        assert torch.equal(before, after) == skipped
        if skipped:
            assert steps == [optimizer.state[p]["step"] for p in ps]


def test_a_skipped_step_does_not_lower_the_loss_scale(decided):
    ps = parameters()
    optimizer = sgd(*ps)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    for bound, skipped in (0.5, True), (0.7, False):  # of the unscaled norm, 0.625
        ste_ops.fold_grad_clip_(optimizer, 1.0, skip_above=bound, grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        assert any(p.any() for p in ps) != skipped
        assert scaler.get_scale() == 8.0


def test_a_scaler_that_found_infinities_on_two_devices_skips_the_step(decided):
    """Its found_inf is a sum over devices, 2 here, of which torch's fused kernels skip 1 alone."""
    ps = parameters()
    optimizer = sgd(*ps)
    ps[0].grad[0] = math.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    ste_ops.fold_grad_clip_(optimizer, 1.0, grad_scaler=scaler)
    scaler.unscale_(optimizer)
    scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]["another"] = torch.ones(())
    scaler.step(optimizer)
    assert not any(p.any() for p in ps)


def test_a_negative_norm_that_the_host_cannot_see_skips_the_step(monkeypatch):
    monkeypatch.setattr(clip_fold, "_known_to_host", lambda norm: False)
    ps = parameters()
    optimizer = sgd(*ps)
    ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor(-5.0))
    optimizer.step()
    assert not any(p.any() for p in ps)


def test_refuses_other_norms_and_bounds():
    optimizer = sgd(*parameters())
    with pytest.raises(TypeError, match="total_norm must be a tensor, got float"):
        ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=5.0)
    with pytest.raises(ValueError, match=r"total_norm must be 0-d, got the shape \(1,\)"):
        ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor([5.0]))
    with pytest.raises(ValueError, match="total_norm is the norm over all ranks already"):
        ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor(5.0), process_group=object())
    with pytest.raises(TypeError, match=r"total_norm must be real, got torch\.complex64"):
        ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor(5j))
    with pytest.raises(ValueError, match="total_norm must hold a number, got a meta tensor for cpu"):
        ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor(5.0, device="meta"))
    with pytest.raises(ValueError, match=r"total_norm must be a norm, >= 0 or NaN, got -5\.0"):
        ste_ops.fold_grad_clip_(optimizer, 1.0, total_norm=torch.tensor(-5.0))
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="fold_grad_clip_: skip_above must be a non-negative number"):
            ste_ops.fold_grad_clip_(optimizer, 1.0, skip_above=bad)
