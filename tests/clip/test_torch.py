"""Clipping against torch.nn.utils over a table of cases, and each difference that is meant, with torch's side of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.clip_cases import parameter
from torch.nn.utils import clip_grad as torch_clip

import ste_ops

DECISIONS = (Path(__file__).parents[2] / "docs" / "decisions" / "clipping.md").read_text()

SHAPES = {
    "matrix and vector": [(40, 33), (7,)],
    "image": [(4, 3, 5, 5)],
    "scalar": [()],
    "scalars": [(), ()],
    "with an empty one": [(5,), (0, 3)],
    "many": [(1 + i % 4,) for i in range(60)],
}
LISTS = {
    "list": lambda ps: ps,
    "tuple": tuple,
    "generator": lambda ps: (p for p in ps),
    "iterator": iter,
    "dict's values": lambda ps: dict(enumerate(ps)).values(),
    "single": lambda ps: ps[0],
    "with None": lambda ps: [torch.zeros(3, requires_grad=True), *ps, torch.zeros(2, requires_grad=True)],
}
# torch rounds the norm of half gradients to their own 11 and 8 bits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def compare(shape, given, dtype, device, norm_type, max_norm):
    grads = [torch.randn(s).to(dtype).to(device) for s in SHAPES[shape]]
    ours, theirs = ([parameter(g.clone()) for g in grads] for _ in range(2))
    ids = [id(p.grad) for p in ours]
    norm = ste_ops.clip_grad_norm_(LISTS[given](ours), max_norm, norm_type, foreach=None)
    expected = torch_clip.clip_grad_norm_(LISTS[given](theirs), max_norm, norm_type)
    if expected.isinf():  # more than a float16 holds: one of the differences below
        return
    assert norm.shape == expected.shape
    assert norm.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    near = {"rtol": 2 * TOLERANCE[dtype], "atol": 1e-7 if dtype == torch.float16 else 0}
    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs], **near)
    assert ids == [id(p.grad) for p in ours]
    assert not any(p.grad.requires_grad or p._version for p in ours)
    ste_ops.clip_grad_value_(LISTS[given](ours), 0.03)
    torch_clip.clip_grad_value_(LISTS[given](theirs), 0.03)
    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs], **near)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("norm_type", [2, 1, math.inf, -math.inf, 3.0, 0.5, "inf"])
def test_table(device, dtype, norm_type):
    """The norm, the gradients, and what the call leaves of the parameters, over shapes."""
    for shape in SHAPES:
        if shape != "with an empty one" or abs(float(norm_type)) != math.inf:
            compare(shape, "list", dtype, device, norm_type, 0.05)
    compare("matrix and vector", "list", dtype, device, norm_type, 1e6)


@pytest.mark.parametrize("given", LISTS)
def test_table_of_lists(given):
    for shape in SHAPES:
        compare(shape, given, torch.float32, "cpu", 2.0, 0.05)


def both(grads, call):
    """call(module, parameters) with torch's functions and with ours, each on its own parameters."""
    results = []
    for module in (torch_clip, ste_ops):
        own = [parameter(g.clone()) for g in grads]
        results.append((call(module, own), [p.grad for p in own]))
    return results


def documented(words):
    assert words in " ".join(DECISIONS.split()), f"docs/decisions/clipping.md does not say: {words}"


def test_difference_norm_of_halves(device):
    documented("a float32 norm for float16 and bfloat16")
    grads = [torch.full((4,), 6e4, device=device, dtype=torch.float16)]
    (theirs, zeros), (ours, clipped) = both(grads, lambda m, ps: m.clip_grad_norm_(ps, 1.0))
    assert theirs.dtype == torch.float16
    assert theirs == math.inf
    assert (zeros[0] == 0).all()
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(2 * float(grads[0][0]))
    assert clipped[0].tolist() == [0.5] * 4


def test_difference_p_0(device):
    documented("p = 0 counts the elements that are not zero; torch takes the norm of norms and counts tensors")
    grads = [torch.tensor([1.0, 2.0, 0.0], device=device), torch.ones(2, device=device)]
    (theirs, _), (ours, _) = both(grads, lambda m, ps: m.clip_grad_norm_(ps, 1e9, 0))
    assert (theirs, ours) == (2, 4)


def test_difference_duplicates(device):
    documented("the same memory listed twice counts and is scaled once")
    grads = [torch.tensor([3.0, 4.0], device=device)]
    (theirs, scaled_twice), (ours, scaled_once) = both(grads, lambda m, ps: m.clip_grad_norm_([ps[0]] * 2, 1.0))
    assert theirs.item() == pytest.approx(5 * math.sqrt(2))
    assert scaled_twice[0].norm().item() == pytest.approx(5 / 50, rel=1e-4)
    assert ours.item() == pytest.approx(5)
    assert scaled_once[0].norm().item() == pytest.approx(1)


def test_difference_negative_bounds(device):
    documented("a negative or NaN bound, and a negative p other than -inf, are refused")
    grads = [torch.tensor([3.0, 4.0], device=device)]
    flipped = parameter(grads[0].clone())
    torch_clip.clip_grad_norm_(flipped, -1.0)
    assert (flipped.grad < 0).all()
    for bad in (lambda p: ste_ops.clip_grad_norm_(p, -1.0), lambda p: ste_ops.clip_grad_norm_(p, 1.0, -2.0)):
        with pytest.raises(ValueError, match="must be a non-negative number"):
            bad(flipped)


def test_difference_expanded(device):
    documented("an expanded gradient has a norm but is refused before anything is written")
    first, second = (torch.full((3,), 9.0, device=device) for _ in range(2))
    for module, grad in ((torch_clip, first), (ste_ops, second)):
        last = torch.zeros(3, 4, device=device, requires_grad=True)
        last.grad = torch.ones(3, 1, device=device).expand(3, 4)
        with pytest.raises(RuntimeError):
            module.clip_grad_norm_([parameter(grad), last], 1.0, foreach=False)
    assert (first != 9).all()  # half-written
    assert (second == 9).all()


def test_difference_empty_tensors(device):
    documented("tensors without elements count as nothing at p = inf too, where torch raises")
    grads = [torch.ones(2, device=device), torch.ones(0, device=device)]
    with pytest.raises((RuntimeError, IndexError)):
        torch.nn.utils.get_total_norm(grads, math.inf)
    assert ste_ops.get_total_norm(grads, math.inf) == 1
    assert ste_ops.get_total_norm(grads, -math.inf) == 1


def test_views_and_shared_memory(device):
    """Gradients that are views of one buffer, as DistributedDataParallel keeps them: they stay views of it."""
    buffer = torch.randn(100, device=device)
    before = buffer.clone()
    ours = [torch.zeros(5, 8, device=device, requires_grad=True), torch.zeros(30, device=device, requires_grad=True)]
    ours[0].grad, ours[1].grad = buffer[:40].view(5, 8), buffer[50:80]
    alias = ours[1].grad[:3]
    versions = buffer._version
    norm = ste_ops.clip_grad_norm_(ours, 0.5)
    assert norm.item() == pytest.approx(torch.cat([before[:40], before[50:80]]).norm().item(), rel=1e-6)
    assert ours[0].grad.data_ptr() == buffer.data_ptr()
    torch.testing.assert_close(buffer[:40], before[:40] * (0.5 / norm))
    assert torch.equal(buffer[40:50], before[40:50])
    assert torch.equal(buffer[80:], before[80:])
    assert torch.equal(alias, buffer[50:53])
    assert buffer._version > versions  # a graph that saved the buffer sees that it changed
    ste_ops.clip_grad_value_(ours, 1e-3)
    assert torch.equal(buffer[40:50], before[40:50])


def test_gradients_that_require_gradients(device):
    """create_graph leaves a .grad with a graph: clipped in place, its graph and requires_grad stay, as in torch."""
    results = []
    for module in (ste_ops, torch_clip):
        p = torch.full((3,), 2.0, device=device, requires_grad=True)
        (p**3).sum().backward(create_graph=True)
        module.clip_grad_norm_(p, 1.0)
        results.append((p.grad.requires_grad, p.grad.grad_fn is not None, p.requires_grad, p.is_leaf))
        p.grad = None
    assert results[0] == results[1]


def test_a_frozen_parameter_keeps_its_gradient(device):
    p = parameter(torch.full((2,), 5.0, device=device))
    p.requires_grad_(False)
    ste_ops.clip_grad_value_(p, 1.0)
    assert p.grad.tolist() == [1.0, 1.0]
    assert not p.requires_grad
    with torch.inference_mode():
        q = torch.ones(2, device=device)
        assert ste_ops.get_total_norm(q).item() == pytest.approx(math.sqrt(2))


def test_any_grouping_gives_the_same_float32(device):
    """float64 sums: how the elements are divided into tensors does not reach a float32 norm."""
    x = torch.randn(30_001, device=device) * 3
    expected = ste_ops.get_total_norm(x)
    for sizes in ([1, 30_000], [10_000, 10_001, 10_000], [16_384, 13_617], [3] * 100 + [29_701]):
        parts = list(x.split(sizes))
        assert torch.equal(ste_ops.get_total_norm(parts), expected)
        assert torch.equal(ste_ops.get_total_norm(parts[::-1]), expected)
