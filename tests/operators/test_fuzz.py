"""Random shapes, strides, overlapping views, dtypes, edge parameters and gradients in other strides than the input,
against the reference. A few cases in every run, STE_OPS_FUZZ=5000 of each on demand (`make fuzz`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from support import quantize_cases
from support.categorical_cases import ESTIMATORS
from support.clip_cases import rounding
from support.surrogate_table import (
    ALL_STEPS,
    DTYPES,
    all_instances,
    assert_gradient,
    assert_same_bits,
    filler,
    forward_and_gradient,
)
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops.surrogate import Clip, Custom, Rect, Surrogate

cases = int(os.environ.get("STE_OPS_FUZZ", "25"))
fuzz = settings(
    max_examples=cases,
    deadline=None,
    derandomize=cases < 1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
dtypes = st.sampled_from(DTYPES)
Fill = Callable[..., Tensor]


@st.composite
def layouts(draw: st.DrawFn, most_dims: int = 4) -> Callable[[Fill], Tensor]:
    """A function from `fill` to a view: any order of dimensions, gaps between elements, expanded and overlapping
    dimensions, any offset."""
    sizes = draw(st.lists(st.integers(0, 7), max_size=most_dims))
    if sizes and draw(st.booleans()):
        sizes[draw(st.integers(0, len(sizes) - 1))] = draw(st.integers(8, 1200 if len(sizes) < 3 else 70))
    strides, reach = [0] * len(sizes), 1
    for d in draw(st.permutations(range(len(sizes)))):
        kind = draw(st.sampled_from(["dense", "dense", "dense", "gaps", "expanded", "overlapping"]))
        strides[d] = {"dense": reach, "gaps": reach * 3, "expanded": 0, "overlapping": min(reach, 2)}[kind]
        reach += strides[d] * max(sizes[d] - 1, 0)
    offset = draw(st.integers(0, 5))
    numel = offset + 1 + sum(stride * max(size - 1, 0) for size, stride in zip(sizes, strides, strict=True))
    note(f"sizes {sizes}, strides {strides}, offset {offset}")
    return lambda fill: fill(numel).as_strided(sizes, strides, offset)


def edges(dtype: torch.dtype) -> st.SearchStrategy[float]:
    limits = torch.finfo(dtype)
    named = [limits.tiny, limits.smallest_normal / 2, limits.eps, 1 / 3, 0.5, 1.0, 1.5, limits.max / 2, limits.max]
    return st.sampled_from(named) | st.floats(1e-3, 10)


@st.composite
def surrogates(draw: st.DrawFn, dtype: torch.dtype) -> Surrogate:
    kind = draw(st.sampled_from(["clip", "rect", "any"]))
    if kind == "clip":
        return Clip(draw(edges(dtype)))
    if kind == "rect":
        return Rect(draw(st.floats(1e-2, 50)))
    return draw(st.sampled_from([s for s in all_instances() if not isinstance(s, Custom)]))


@fuzz
@given(data=st.data())
def test_steps(device: str, data: st.DataObject) -> None:
    dtype = data.draw(dtypes)
    step, surrogate = data.draw(st.sampled_from(ALL_STEPS)), data.draw(surrogates(dtype))
    layout, seed = data.draw(layouts()), data.draw(st.integers(0, 2**20))
    x = layout(filler(dtype, surrogate, device, seed))
    torch.manual_seed(seed)
    grad = torch.empty_like(x).copy_(torch.randn(x.shape, device=device))
    if x.dim() > 1 and data.draw(st.booleans()):
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    out, received = forward_and_gradient(lambda x: getattr(ste_ops, step)(x, surrogate=surrogate), x, grad)
    expected, wanted = forward_and_gradient(lambda x: getattr(reference, step)(x, surrogate=surrogate), x, grad)
    assert_same_bits(out, expected)
    assert out.stride() == torch.empty_like(x).stride()
    assert_gradient(surrogate, received, wanted, grad)


def _quantizers(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    low = draw(edges(dtype)) * draw(st.sampled_from([-1, 0, 1]))
    bits = draw(st.integers(2, 8))
    return {
        "round": (),
        "floor": (),
        "ceil": (),
        "trunc": (),
        "clamp": (low, max(low, draw(edges(dtype)))),
        "fake_quantize": (draw(edges(torch.float16)), float(draw(st.integers(-9, 9))), -(2 ** (bits - 1)), 2**bits - 1),
        "pact": (torch.tensor(draw(st.floats(1e-2, 9))), bits),
        "dorefa_activation": (bits,),
    }


@fuzz
@given(data=st.data())
def test_quantizers(device: str, data: st.DataObject) -> None:
    dtype = data.draw(dtypes)
    operators = _quantizers(data.draw, dtype)
    name = data.draw(st.sampled_from(sorted(operators)))
    arguments = [a.to(device) if isinstance(a, Tensor) else a for a in operators[name]]
    x = data.draw(layouts())(quantize_cases.filler(dtype, device, data.draw(st.integers(0, 2**20))))
    grad = torch.randn(x.shape, device=device).to(dtype)
    note(f"{name}{tuple(arguments)} of {dtype}")
    received = quantize_cases.gradients(getattr(ste_ops, name), grad, x, *arguments)
    expected = quantize_cases.gradients(getattr(reference, name), grad, x, *arguments)
    for ours, theirs in zip(received[:2], expected[:2], strict=True):  # what a learned scale gets is a sum
        assert quantize_cases.same_bits(ours, theirs), (ours, theirs)
    assert received[0].stride() == torch.empty_like(x).stride()


@fuzz
@given(data=st.data())
def test_total_norm(device: str, data: st.DataObject) -> None:
    norm_type = data.draw(st.sampled_from([2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5]))
    exponent = data.draw(st.integers(-30, 30))
    torch.manual_seed(data.draw(st.integers(0, 2**20)))
    grads = []
    for layout in data.draw(st.lists(layouts(), min_size=1, max_size=5)):
        dtype = data.draw(dtypes)
        values = layout(lambda n: torch.randn(n, dtype=torch.float64).mul(10.0 ** (exponent if n else 0)))
        largest = torch.finfo(dtype).max / 4
        grads.append(values.clamp(-largest, largest).to(dtype).to(device))
    if data.draw(st.booleans()):
        grads.append(grads[0])
    received = ste_ops.get_total_norm(grads, norm_type)
    expected = reference.get_total_norm(grads, norm_type)
    assert received.dtype == expected.dtype
    torch.testing.assert_close(received, expected, rtol=1e-5, atol=0, equal_nan=True)


@fuzz
@given(data=st.data())
def test_clipping_in_place(device: str, data: st.DataObject) -> None:
    """Views of one buffer that do not overlap are each clipped once, and what lies between them stays."""
    dtype, max_norm = data.draw(dtypes), data.draw(st.sampled_from([1e-6, 0.1, 1.0, 1e6]))
    places = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90)), max_size=6))
    by_value = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 2**20)))
    buffers, parameters = [], []
    memory = torch.randn(sum(a + b for a, b in places) + 1).to(dtype).to(device)
    for clip in (ste_ops, reference):
        buffer, at, leaves = memory.clone(), 0, []
        for gap, count in places:
            at += gap
            leaf = torch.zeros(count, dtype=dtype, device=device, requires_grad=True)
            leaf.grad = buffer[at : at + count]
            leaves.append(leaf)
            at += count
        if by_value:
            clip.clip_grad_value_(leaves, max_norm)
        else:
            clip.clip_grad_norm_(leaves, max_norm)
        buffers.append(buffer)
        parameters.append(leaves)
    tolerance = 0 if by_value else rounding(dtype)
    torch.testing.assert_close(buffers[0], buffers[1], rtol=tolerance, atol=0)
    covered = torch.zeros(len(memory), dtype=torch.bool, device=device)
    at = 0
    for gap, count in places:
        covered[at + gap : at + gap + count] = True
        at += gap + count
    assert torch.equal(buffers[0][~covered], memory[~covered])


@pytest.mark.parametrize("replacement", [True, False])
@fuzz
@given(data=st.data())
def test_multinomial(device: str, replacement: bool, data: st.DataObject) -> None:
    dtype, seed = data.draw(dtypes), data.draw(st.integers(0, 2**30))
    torch.manual_seed(seed)
    n, rows = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
    exponents = torch.tensor(data.draw(st.lists(st.integers(-14, 14), min_size=n, max_size=n)))
    w = torch.ldexp(torch.rand(rows, n, dtype=torch.float64) + 0.5, exponents).to(dtype)
    w[:, torch.rand(n) < 0.3] = 0
    w[:, data.draw(st.integers(0, n - 1))] = 1
    w = w[0] if rows == 1 else w.t().contiguous().t()
    most = int((w > 0).sum(-1).min())
    count = data.draw(st.integers(1, 50 if replacement else most))
    received, expected = (
        fn(w.to(device), count, replacement, generator=torch.Generator(device).manual_seed(seed))
        for fn in (ste_ops.multinomial, reference.multinomial)
    )
    assert torch.equal(received, expected)


@fuzz
@given(data=st.data())
def test_draws_with_a_gradient(device: str, data: st.DataObject) -> None:
    dtype, seed = data.draw(dtypes), data.draw(st.integers(0, 2**30))
    torch.manual_seed(seed)
    holes, tau = data.draw(st.sampled_from([0, 0.05])), data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    logits = data.draw(layouts(3))(
        lambda numel: torch.where(torch.rand(numel) < holes, -math.inf, 3 * torch.randn(numel)).to(dtype)
    )
    assume(logits.dim() > 0 and logits.shape[-1] > 0)
    most = int((logits > -math.inf).sum(-1).min()) if logits.numel() else logits.shape[-1]
    assume(most > 0)
    k, estimator = data.draw(st.integers(1, min(most, 12))), data.draw(st.sampled_from(ESTIMATORS))
    x = logits.to(device).requires_grad_()
    grad = torch.randn(x.shape, device=device).to(dtype)
    for of in (
        lambda operators, generator: operators.categorical_ste(x, estimator, tau, generator=generator),
        lambda operators, generator: operators.subset_ste(x, k, tau, generator=generator),
    ):
        ours, theirs = (of(fn, torch.Generator(device).manual_seed(seed)) for fn in (ste_ops, reference))
        assert torch.equal(ours, theirs)
        received, expected = (torch.autograd.grad(out, x, grad)[0] for out in (ours, theirs))
        tolerance = {"rtol": 1e-3, "atol": 1e-5} if dtype == torch.float32 else {}  # as test_subset.py
        torch.testing.assert_close(received, expected, **tolerance)
