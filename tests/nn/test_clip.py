"""Clipping between the steps of a recurrent net."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence

import ste_ops
from ste_ops.nn import ClipGradientNorm, ClipGradientValue


def unroll(clip, steps=6):
    """What the steps of a cell that blows gradients up hand back to one another, and the cell."""
    torch.manual_seed(0)
    cell = torch.nn.GRUCell(3, 4)
    with torch.no_grad():
        for p in cell.parameters():
            p.mul_(4)
    h, given = torch.zeros(2, 4), []
    for x in torch.randn(steps, 2, 3):
        h = cell(x, h)
        h.retain_grad()
        given.append(h)
        h = clip(h)
    (10 * h).sum().backward()
    return [h.grad for h in given], cell


@pytest.mark.parametrize("clip", [ClipGradientValue(0.05), ClipGradientNorm(0.1), ClipGradientNorm(0.1, math.inf, -1)])
def test_bounds_the_gradient_of_every_step(clip):
    bounded, cell = unroll(clip)
    free, _ = unroll(lambda h: h)
    for grad in bounded:
        if isinstance(clip, ClipGradientValue):
            assert grad.abs().max() <= 0.05
        else:
            dims = None if clip.dim is None else [clip.dim]
            assert torch.linalg.vector_norm(grad, clip.norm_type, dims).max() <= 0.1 * (1 + 1e-6)
    assert max(grad.abs().max() for grad in free) > 1
    assert all(p.grad.isfinite().all() for p in cell.parameters())


def test_equals_the_function():
    x = torch.randn(3, 5, requires_grad=True)
    grad = torch.randn(3, 5)
    for module, function in [
        (ClipGradientValue(0.3), lambda t: ste_ops.clip_gradient_value(t, 0.3)),
        (ClipGradientNorm(0.5, 1.0, [1]), lambda t: ste_ops.clip_gradient_norm(t, 0.5, 1.0, 1)),
    ]:
        for clone in (module, copy.deepcopy(module)):
            assert torch.equal(*(torch.autograd.grad(f(x), x, grad)[0] for f in (clone, function)))


def test_structures():
    clip = ClipGradientValue(0.5)
    x = torch.ones(2, requires_grad=True)
    out = clip((x, [x, None], (x,)))
    assert [type(out), type(out[1]), out[1][1], type(out[2])] == [tuple, list, None, tuple]
    packed = pack_sequence([torch.ones(3, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)])
    clipped = clip(packed)
    assert torch.equal(clipped.batch_sizes, packed.batch_sizes)
    (grad,) = torch.autograd.grad(clipped.data, packed.data, torch.full_like(packed.data, 9.0))
    assert (grad == 0.5).all()
    output, _ = torch.nn.GRU(2, 3)(clipped)
    assert output.data.shape == (5, 3)


def test_compiles():
    cell, clip = torch.nn.GRUCell(3, 4), ClipGradientNorm(0.1, dim=-1)

    def loss(x):
        h = torch.zeros(2, 4)
        for step in x:
            (h,) = clip((cell(step, h),))
        return h.square().sum()

    x = torch.randn(3, 2, 3)
    found = []
    for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        cell.zero_grad()
        f(x).backward()
        found.append([p.grad for p in cell.parameters()])
    torch.testing.assert_close(*found)


def test_representation_and_refusals():
    assert repr(ClipGradientNorm(2, dim=-1)) == "ClipGradientNorm(2, norm_type=2, dim=-1)"
    assert repr(ClipGradientValue(0.1)) == "ClipGradientValue(0.1)"
    with pytest.raises(ValueError, match="ClipGradientNorm: max_norm must be a non-negative number"):
        ClipGradientNorm(-1.0)
    with pytest.raises(ValueError, match="ClipGradientValue: clip_value must be a non-negative number"):
        ClipGradientValue(math.nan)
    with pytest.raises(TypeError, match="x must be a tensor, got float"):
        ClipGradientValue(1.0)(3.0)


@pytest.mark.parametrize("clip", [ClipGradientNorm(0.1), ClipGradientValue(0.1)])
def test_the_next_layer_may_work_in_place(clip):
    """As it may after a Linear; and what came in keeps its values, since autograd does not know of a change there."""
    x = torch.randn(5, 3)
    first = torch.nn.Linear(3, 4)
    nets = [torch.nn.Sequential(first, clip, torch.nn.ReLU(inplace=inplace)) for inplace in (True, False)]
    grads = [torch.autograd.grad(net(x).square().sum() * 9, first.parameters()) for net in nets]
    torch.testing.assert_close(*grads, rtol=0, atol=0)
    hidden = first(x)
    before = hidden.detach().clone()
    clip(hidden).zero_()
    assert torch.equal(hidden, before)
    compiled = torch.compile(nets[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum() * 9, first.parameters()), grads[0])
    leaf = torch.ones(3, requires_grad=True)
    clip(leaf).mul_(2).sum().backward()
    assert leaf.tolist() == [1.0, 1.0, 1.0]
    assert leaf.grad.norm() <= 0.2


@pytest.mark.parametrize("clip", [ClipGradientNorm(0.1), ClipGradientValue(0.1)])
def test_the_next_layer_may_work_in_place_wherever_it_is_called(clip):
    """Where a copy that shares memory is not to be had: in recorded programs and forward mode, of NumPy's memory."""
    x = torch.randn(5, 3)
    before, expected = x.clone(), x.relu()
    net = torch.nn.Sequential(clip, torch.nn.ReLU(inplace=True))
    learning = torch.nn.Sequential(torch.nn.Linear(3, 3), clip, torch.nn.ReLU(inplace=True))
    same = torch.nn.Sequential(learning[0], torch.nn.ReLU())
    for recorded in (torch.export.export(learning, (x,)).module(), torch.jit.trace(learning, (x,))):
        torch.testing.assert_close(recorded(x), same(x))
    for found, wanted in zip(*(torch.func.jvp(f, (x,), (before,)) for f in (learning, same)), strict=True):
        torch.testing.assert_close(found, wanted)
    with FakeTensorMode() as mode:
        assert net(mode.from_tensor(x).requires_grad_() * 1).shape == (5, 3)
    for without in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with without():
            assert torch.equal(net(x), expected)
            assert torch.equal(x, before)
    of_numpy = torch.from_numpy(before.numpy().copy()).requires_grad_()
    assert torch.equal(net(of_numpy), expected)
    assert torch.equal(of_numpy, before)
