"""What a step must find of the call before it: the gradients whose norm was taken, and what was set beside them."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch.optim import SGD, Adam

import ste_ops

SET = ("grad_scale", "found_inf", "__getstate__")


def parameters():
    ps = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    for p in ps:
        p.grad = torch.tensor([3.0, 4.0])
    return ps


def folded(max_norm=1.0):
    ps = parameters()
    optimizer = SGD(ps, lr=1.0, fused=True)
    ste_ops.fold_grad_clip_(optimizer, max_norm)
    return ps, optimizer


def is_clean(optimizer):
    return not any(name in vars(optimizer) for name in SET)


def replace(ps, which):
    ps[which].grad = ps[which].grad.clone()


def scale(ps, which):
    ps[which].grad.mul_(1000.0)


def accumulate(ps, which):
    ps[which].sum().backward()


def replace_data(ps, which):
    ps[which].grad.data = ps[which].grad * 1000.0


def drop(ps, which):
    ps[which].grad = None


CHANGES = pytest.mark.parametrize("change", [replace, scale, accumulate, replace_data, drop], ids=lambda f: f.__name__)


@CHANGES
@pytest.mark.parametrize("which", [0, 1])
def test_refuses_a_step_with_other_gradients(decided, change, which):
    ps, optimizer = folded()
    change(ps, which)
    with pytest.raises(RuntimeError, match="the gradients are not those whose norm was taken"):
        optimizer.step()
    assert not any(p.any() for p in ps)
    assert is_clean(optimizer)
    optimizer.step()  # the refusal has thrown the coefficient away
    torch.testing.assert_close(ps[1 - which].detach(), torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize("data", [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(4)[::2]])
def test_data_of_a_parameter_that_its_gradient_does_not_fit(decided, data):
    ps, optimizer = folded()
    ps[1].data = data
    with pytest.raises(RuntimeError, match="a parameter's data was replaced after the call by some that its gradient"):
        optimizer.step()
    assert is_clean(optimizer)
    ps, optimizer = folded(math.sqrt(0.5))
    ps[1].data = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(ps[1].detach(), torch.tensor([0.7, 0.6]))


@pytest.mark.parametrize("registered", ["before the call", "after the call", "between two calls"])
def test_a_hook_that_changes_gradients_is_seen_wherever_it_stands(decided, registered):
    ps = parameters()
    optimizer = SGD(ps, lr=1.0, fused=True)

    def add_noise(*args):
        ps[0].grad.add_(1.0)

    if registered == "before the call":
        optimizer.register_step_pre_hook(add_noise)
    if registered == "between two calls":
        ste_ops.fold_grad_clip_(optimizer, 1e9)
        optimizer.register_step_pre_hook(add_noise)
    ste_ops.fold_grad_clip_(optimizer, 1.0)
    if registered == "after the call":
        optimizer.register_step_pre_hook(add_noise)
    with pytest.raises(RuntimeError, match="the gradients are not those"):
        optimizer.step()
    assert not ps[0].any()


def test_a_new_parameter_with_a_gradient_is_seen(decided):
    _, optimizer = folded()
    (more,) = parameters()[:1]
    optimizer.add_param_group({"params": [more]})
    with pytest.raises(RuntimeError, match="the gradients are not those"):
        optimizer.step()


@CHANGES
def test_other_gradients_are_seen_under_a_scaler(decided, change):
    ps = parameters()
    optimizer = SGD(ps, lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    ste_ops.fold_grad_clip_(optimizer, 1.0, grad_scaler=scaler)
    change(ps, 0)
    with pytest.raises(RuntimeError, match="the gradients are not those"):
        scaler.step(optimizer)
    assert is_clean(optimizer)


def test_a_closure_that_leaves_the_gradients_is_taken(decided):
    for step in (lambda o: o.step(lambda: 7), lambda o: o.step(closure=lambda: 7)):
        ps, optimizer = folded(math.sqrt(0.5))
        assert step(optimizer) == 7
        torch.testing.assert_close(ps[0].detach(), torch.tensor([-0.3, -0.4]))
        assert is_clean(optimizer)
        ps[0].grad.fill_(1.0)
        optimizer.step(lambda: 7)  # a step without a call
        torch.testing.assert_close(ps[0].detach(), torch.tensor([-1.3, -1.4]))


@CHANGES
def test_a_closure_that_takes_other_gradients_is_refused(decided, change):
    ps, optimizer = folded()
    with pytest.raises(RuntimeError, match="the gradients are not those"):
        optimizer.step(lambda: change(ps, 0))
    assert not any(p.any() for p in ps)
    assert is_clean(optimizer)


def test_a_closure_may_call_again(decided):
    ps, optimizer = folded()

    def closure():
        ps[0].grad, ps[1].grad = None, torch.tensor([30.0, 40.0])
        return ste_ops.fold_grad_clip_(optimizer, 0.5)

    assert optimizer.step(closure) == 50.0
    torch.testing.assert_close(ps[1].detach(), torch.tensor([-0.3, -0.4]))
    ste_ops.fold_grad_clip_(optimizer, 0.5)

    def changes_afterwards():
        closure()
        ps[1].grad.mul_(2.0)

    with pytest.raises(RuntimeError, match="the gradients are not those"):
        optimizer.step(changes_afterwards)


@pytest.mark.parametrize("bad", [False, True])
def test_refuses_a_step_that_lost_what_was_set(decided, bad):
    ps = parameters()
    optimizer = SGD(ps, lr=1.0, fused=True)
    if bad:
        ps[0].grad[0] = math.nan
    ste_ops.fold_grad_clip_(optimizer, 1.0)
    for name in SET:
        vars(optimizer).pop(name, None)
    with pytest.raises(RuntimeError, match="grad_scale and found_inf must stay until step"):
        optimizer.step()
    assert not any(p.any() for p in ps)


def test_refuses_a_scaler_that_it_does_not_know(decided):
    ps = parameters()
    optimizer = Adam(ps, lr=0.1, fused=True)
    for max_norm in (0.5, 1e9):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        optimizer.zero_grad()
        scaler.scale(sum(p.sum() for p in ps)).backward()
        ste_ops.fold_grad_clip_(optimizer, max_norm)
        with pytest.raises(RuntimeError, match="scaled by a GradScaler; give it as grad_scaler="):
            scaler.step(optimizer)
        assert is_clean(optimizer)


def test_refuses_a_step_past_the_scaler_that_has_yet_to_unscale(decided):
    ps = parameters()
    optimizer = Adam(ps, lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    for max_norm in (0.5, 1e9):
        ste_ops.fold_grad_clip_(optimizer, max_norm, grad_scaler=scaler)
        with pytest.raises(RuntimeError, match=r"the gradients are still scaled; call grad_scaler\.step"):
            optimizer.step()
        assert is_clean(optimizer)
        assert not any(p.any() for p in ps)


COPIES = [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]


@pytest.mark.parametrize("bad", [False, True])
def test_copies_are_refused_until_the_step(decided, bad):
    ps = parameters()
    optimizer = Adam(ps, lr=0.1, fused=True)
    if bad:
        ps[0].grad[0] = math.nan
    ste_ops.fold_grad_clip_(optimizer, 1.0)
    for duplicate in COPIES:
        with pytest.raises(RuntimeError, match="must not be copied or pickled between the call and step"):
            duplicate(optimizer)
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups"}
    optimizer.load_state_dict(state)
    optimizer.step()
    assert any(p.any() for p in ps) != bad
    for duplicate in COPIES:
        assert is_clean(duplicate(optimizer))


def test_a_call_whose_step_is_left_out_keeps_no_gradient(decided):
    ps, optimizer = folded()
    grad = weakref.ref(ps[0].grad)
    optimizer.zero_grad()
    gc.collect()
    assert grad() is None
