"""Torch's names led here, as trainers call them, and given back."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from support.clip_cases import parameter

import ste_ops

NAMES = ["clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"]


def shared_gradient():
    """Two parameters with one gradient of norm 5: it counts and is scaled once here, and twice in torch."""
    p, q = parameter(torch.tensor([3.0, 4.0])), parameter(torch.zeros(2))
    q.grad = p.grad
    return [p, q]


def test_a_context():
    theirs = {name: getattr(torch.nn.utils, name) for name in NAMES}
    user = types.ModuleType("a_module_that_took_the_name")
    user.clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
    sys.modules[user.__name__] = user
    try:
        with ste_ops.patch_torch() as patched:
            assert all(getattr(torch.nn.utils, name) is getattr(ste_ops, name) for name in NAMES)
            assert {f"torch.nn.utils.{name}" for name in NAMES} <= set(patched.replaced)
            assert "a_module_that_took_the_name.clip_grad_norm_" in repr(patched)
            assert user.clip_grad_norm_(shared_gradient(), 1.0) == 5
            again = ste_ops.patch_torch()
            assert repr(again) == "patch_torch() replaced nothing"
            again.restore()
            assert torch.nn.utils.clip_grad_norm_ is ste_ops.clip_grad_norm_
    finally:
        del sys.modules[user.__name__]
    assert {name: getattr(torch.nn.utils, name) for name in NAMES} == theirs
    assert user.clip_grad_norm_ is theirs["clip_grad_norm_"]


def test_a_call_leaves_what_others_put_there(monkeypatch):
    for name in NAMES:
        monkeypatch.setattr(torch.nn.utils, name, getattr(torch.nn.utils, name))
    patched = ste_ops.patch_torch()
    torch.nn.utils.clip_grad_value_ = others = lambda *_: None
    patched.restore()
    patched.restore()
    assert torch.nn.utils.clip_grad_value_ is others
    assert torch.nn.utils.clip_grad_norm_ is not ste_ops.clip_grad_norm_


@pytest.mark.parametrize("given", ["one object", "two objects"])
def test_a_context_within_a_context(given):
    theirs = {name: getattr(torch.nn.utils, name) for name in NAMES}

    def is_ours():
        assert len({getattr(torch.nn.utils, name) is theirs[name] for name in NAMES}) == 1
        return torch.nn.utils.clip_grad_norm_ is ste_ops.clip_grad_norm_

    outer = ste_ops.patch_torch()
    inner = outer if given == "one object" else ste_ops.patch_torch()
    for _ in range(2):
        with outer:
            with inner:
                assert is_ours()
            assert is_ours()
        assert not is_ours()
    outer.restore()
    inner.restore()
    assert not is_ours()


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    with ste_ops.patch_torch():
        assert accelerate.Accelerator(cpu=True).clip_grad_norm_(shared_gradient(), 1.0) == 5


def test_lightning():
    precision = pytest.importorskip("pytorch_lightning").plugins.Precision()
    parameters = shared_gradient()
    with ste_ops.patch_torch():
        precision.clip_grad_by_norm(torch.optim.SGD(parameters), 1.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.8])
    p = parameter(torch.tensor([3.0, 0.5]).to_sparse())  # which torch does not clamp
    with ste_ops.patch_torch():
        precision.clip_grad_by_value(torch.optim.SGD([p]), 1.0)
    assert p.grad.to_dense().tolist() == [1.0, 0.5]
