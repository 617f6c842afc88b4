"""A bound that nobody reads on the host, against the same bound as a number."""

from __future__ import annotations

import math

import pytest
import torch
from support.clip_cases import FLOATING, copies, gradients, parameter

import ste_ops
from ste_ops.functional.clip import _bound
from ste_ops.functional.clip.grad_norm import _clip_grad_norm


def clip(parameters, bound, nonfinite=0):
    """As `clip_grad_norm_` with a bound that is not read: on the CPU it would be."""
    with torch.no_grad():
        return _clip_grad_norm([p.grad for p in parameters], bound, 2.0, False, nonfinite, False)[0]


@pytest.mark.parametrize("nonfinite", [0, 1, 2])
@pytest.mark.parametrize("first", [1.0, 1e30, math.inf, math.nan], ids=str)
def test_scales_as_the_number_does(device, first, nonfinite):
    for bound in (0.0, 1e-30, 0.3, 5.0, 1e30, math.inf):
        ours, theirs = (copies(gradients(device, FLOATING, shapes=((5, 4), (6,), (3,), (2,)))) for _ in range(2))
        for p, q in zip(ours, theirs, strict=True):
            q.grad.copy_(p.grad)
        for p in (ours, theirs):
            p[0].grad[0, 0] = first
        norm = clip(ours, torch.tensor(bound, dtype=torch.float64, device=device), nonfinite)
        torch.testing.assert_close(norm, clip(theirs, bound, nonfinite), equal_nan=True)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-300, equal_nan=True)


@pytest.mark.parametrize("bound", [-1.0, math.nan])
def test_what_cannot_be_refused_is_seen(device, bound):
    p = parameter(torch.tensor([3.0, 4.0], device=device))
    assert clip([p], torch.tensor(bound, device=device)) == 5
    assert p.grad.isnan().all()


def test_a_bound_elsewhere_than_on_the_cpu_stays_there():
    bound = torch.tensor([0.5], device="meta")
    assert _bound.bound_of("clip_grad_norm_", bound).shape == ()
    assert _bound.bound_of("clip_grad_norm_", torch.tensor(0.5)) == 0.5
    with pytest.raises(ValueError, match="clip_grad_norm_: max_norm must require no gradient"):
        _bound.bound_of("clip_grad_norm_", bound.requires_grad_())
    with pytest.raises(ValueError, match="max_norm must be a number or a floating tensor of one element"):
        _bound.bound_of("clip_grad_norm_", torch.ones(2, device="meta"))


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_schedule_takes_two_graphs_at_most(kind):
    p = parameter(torch.tensor([3.0, 4.0]))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    @torch.compile(backend=backend, fullgraph=True)
    def step(bound):
        return ste_ops.clip_grad_norm_([p], bound)

    for i in range(12):
        p.grad = torch.tensor([3.0, 4.0])
        assert step(kind(1.0 / (i + 2))) == 5
        assert p.grad.norm().item() == pytest.approx(1.0 / (i + 2))
    assert len(graphs) <= 2
