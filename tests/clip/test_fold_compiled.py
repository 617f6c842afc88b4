"""Folding where `torch.compile` sees the call or the step. Dynamo forgets what is set on an optimizer in a graph."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD, Adam

import ste_ops

GRADIENTS = ([3.0, 4.0], [math.nan, 1.0], [0.3, 0.4], [30.0, 40.0])


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def moves(optimizer_of, function_of, gradients=GRADIENTS):
    """How far each step moves a parameter at 0."""
    p = torch.zeros(2, requires_grad=True)
    optimizer = optimizer_of([p])
    function = function_of(optimizer)
    moved = []
    for gradient in gradients:
        p.grad = torch.tensor(gradient)
        before = p.detach().clone()
        function()
        moved.append(p.detach() - before)
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()
    return torch.stack(moved)


def fold_and_step(optimizer):
    def function():
        norm = ste_ops.fold_grad_clip_(optimizer, 1.0)
        optimizer.step()
        return norm

    return function


OPTIMIZERS = {"SGD": lambda ps: SGD(ps, lr=1.0, fused=True), "Adam": lambda ps: Adam(ps, lr=1.0, fused=True)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_call_and_step_clip_and_skip(name):
    expected = moves(OPTIMIZERS[name], fold_and_step)
    compiled = moves(OPTIMIZERS[name], lambda o: torch.compile(fold_and_step(o), backend="aot_eager"))
    torch.testing.assert_close(compiled, expected)
    if name == "SGD":
        torch.testing.assert_close(compiled[0], torch.tensor([-0.6, -0.8]))
        assert not compiled[1].any()


@pytest.mark.parametrize("compiled", ["call", "step"])
def test_one_of_them_compiled(compiled):
    def function_of(optimizer):
        fold, step = (lambda: ste_ops.fold_grad_clip_(optimizer, 1.0)), optimizer.step
        if compiled == "call":
            fold = torch.compile(fold, backend="eager")
        else:
            step = torch.compile(step, backend="eager")
        return lambda: (fold(), step())

    expected = moves(OPTIMIZERS["SGD"], fold_and_step)
    torch.testing.assert_close(moves(OPTIMIZERS["SGD"], function_of), expected)


def test_a_whole_graph_is_refused_by_name():
    optimizer = OPTIMIZERS["SGD"]([torch.ones(2, requires_grad=True)])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="fold_grad_clip_"):
        torch.compile(fold_and_step(optimizer), backend="eager", fullgraph=True)()
