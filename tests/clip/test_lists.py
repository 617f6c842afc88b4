"""Lists that one call of a kernel does not take: several devices, and what kernels and their fakes refuse alike."""

from __future__ import annotations

import math

import pytest
import torch
from support.clip_cases import parameter

import ste_ops
from ste_ops._library import ops


def holding(order):
    """A parameter with a gradient of tens, and one that holds no values."""
    held, empty = parameter(torch.full((4,), 10.0)), parameter(torch.ones(4, device="meta"))
    return held, [held, empty] if order == "values first" else [empty, held]


@pytest.mark.parametrize("order", ["values first", "meta first"])
def test_a_meta_gradient_beside_others(order):
    for call in (
        lambda ps: ste_ops.clip_grad_norm_(ps, 1.0),
        lambda ps: ste_ops.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True),
        lambda ps: ste_ops.clip_grad_norm_(ps, 1.0, nonfinite="zero"),
        lambda ps: ste_ops.clip_grad_norm_(ps, 1.0, return_result=True),
        lambda ps: ste_ops.get_total_norm([p.grad for p in ps]),
    ):
        held, parameters = holding(order)
        with pytest.raises(ValueError, match=r"norm_?: gradients must all hold values, or none, got one on"):
            call(parameters)
        assert held.grad.tolist() == [10.0] * 4
    for call, expected in (
        (lambda ps: ste_ops.clip_grad_value_(ps, 0.25), 0.25),
        (lambda ps: ste_ops.clip_grad_agc_(ps, 0.1, eps=10.0), 0.5),
        (lambda ps: ste_ops.clip_grads_with_norm_(ps, 1.0, torch.tensor(20.0)), 0.5),
    ):
        held, parameters = holding(order)
        call(parameters)
        assert held.grad.tolist() == pytest.approx([expected] * 4)
    held, parameters = holding(order)
    with pytest.raises(ValueError, match="total_norm must hold a number, got a meta tensor for cpu"):
        ste_ops.clip_grads_with_norm_(parameters, 1.0, torch.tensor(20.0, device="meta"))
    sums = [torch.zeros(4), torch.zeros(4, device="meta")]
    samples = [torch.ones(2, 4), torch.ones(2, 4, device="meta")]
    if order != "values first":
        sums, samples = sums[::-1], samples[::-1]
    with pytest.raises(RuntimeError, match="clip_per_sample_: gradients of one call must be on one device"):
        ste_ops.clip_per_sample_(samples, 1.0, out=sums)
    assert all(s.is_meta or not s.any() for s in sums)


def test_meta_gradients_alone_have_a_norm():
    grads = [torch.ones(3, device="meta"), torch.ones(2, device="meta", dtype=torch.float64)]
    norm, norms = ste_ops.get_total_norm(grads, return_norms=True)
    assert (norm.device.type, norm.dtype, norms.shape) == ("meta", torch.float64, (2,))
    ste_ops.clip_grad_value_([parameter(g) for g in grads], 1.0)


REFUSED = {
    "an empty list": lambda x: ops.total_norm([], 2.0),
    "an integer": lambda x: ops.total_norm([x, x.int()], 2.0),
    "a complex one": lambda x: ops.clip_grad_norm_([x, x.to(torch.complex64)], 1.0, 2.0),
    "a negative power": lambda x: ops.total_norm([x], -1.0),
    "NaN for a power": lambda x: ops.clip_grad_norm_([x], 1.0, math.nan),
    "another mode": lambda x: ops.clip_grad_norm_([x], 1.0, 2.0, 3),
    "another mode of scaling": lambda x: ops.clip_grads_with_norm_([x], x.sum(), 1.0, -1),
    "a vector for a norm": lambda x: ops.clip_grads_with_norm_([x], x, 1.0),
    "a half for a norm": lambda x: ops.clip_grads_with_norm_([x], x.sum().half(), 1.0),
    "an expanded gradient": lambda x: ops.clip_grad_value_([x, x[:1].expand(3, 3, 6)], 1.0),
    "windows": lambda x: ops.clip_grad_norm_([x.view(-1).unfold(0, 3, 2)], 1.0, 2.0),
    "too many dimensions": lambda x: ops.total_norm([x.view(-1)[:1].as_strided([2] * 30, [0] * 30)], 2.0),
    "a parameter too few": lambda x: ops.clip_grad_agc_([x], [x, x + 1], 0.1, 1e-3),
    "another shape": lambda x: ops.clip_grad_agc_([x, x], [x, x.view(-1)], 0.1, 1e-3),
    "an expanded gradient of units": lambda x: ops.clip_grad_agc_([x], [x[:1].expand(3, 6)], 0.1, 1e-3),
    "a sum too few": lambda x: ops.clip_per_sample_([x, x], [x[0] * 0], 1.0),
    "a sample without dimensions": lambda x: ops.clip_per_sample_([x.sum()], [x.sum()], 1.0),
    "other numbers of samples": lambda x: ops.clip_per_sample_([x, x[:2]], [x[0] * 0, x[0] * 1], 1.0),
    "a sum of another shape": lambda x: ops.clip_per_sample_([x], [x * 1], 1.0),
    "a sum of another dtype": lambda x: ops.clip_per_sample_([x], [x[0].half()], 1.0),
    "samples that are not contiguous": lambda x: ops.clip_per_sample_([x.t()], [x[:, 0] * 1], 1.0),
    "one sum for two": lambda x: (lambda s: ops.clip_per_sample_([x, x + 1], [s, s], 1.0))(x[0] * 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_fakes_refuse_what_kernels_refuse(device, name):
    """On meta tensors, and so in a compiled graph before it runs, with the same words but for a dtype's name."""
    messages = []
    for x in (torch.ones(3, 6, device=device), torch.ones(3, 6, device="meta")):
        with pytest.raises((RuntimeError, NotImplementedError)) as refused:
            REFUSED[name](x)
        messages.append(str(refused.value).splitlines()[0])
    assert messages[1].split(", got")[0] in messages[0]


def test_fakes_take_what_kernels_take(device):
    """Layouts without two elements in one place: rows apart, columns first, dimensions of one element."""
    for place in (device, "meta"):
        x = torch.ones(4, 6, device=place)
        views = [x[:, ::2], x.t(), x[:1].t(), x[::2, 1:], x[:0].expand(0, 6), x[:, :1]]
        for view in (*views, x.view(2, 2, 6).permute(2, 0, 1)):
            ops.clip_grad_value_([view], 1.0)
            assert ops.clip_grad_norm_([view, x[:1]], 1.0, 2.0)[0].shape == ()


@torch.enable_grad()  # torch 2.13's Dynamo leaves the mode as it was where it gave up
def test_compiled_lists_are_refused_by_name():
    held, parameters = holding("values first")
    compiled = torch.compile(lambda: ste_ops.clip_grad_norm_(parameters, 1.0), backend="eager")
    with pytest.raises(Exception, match="gradients must all hold values"):
        compiled()
    held.grad = torch.ones(1).expand(4)
    compiled = torch.compile(lambda: ste_ops.clip_grad_value_([held], 1.0), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="cannot be written in place"):
        compiled()
