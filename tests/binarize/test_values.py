"""heaviside and sign against the reference, on every device, for values, layouts and the mask between them."""

import functools
import math
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.surrogate_table import (
    ALL_STEPS,
    DTYPES,
    SURROGATES,
    all_instances,
    assert_gradient,
    assert_same_bits,
    curves,
    filler,
    first_instances,
    forward_and_gradient,
    layouts,
    pairs,
    specials,
)

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.surrogate import Clip, Identity, Surrogate

nan, inf = math.nan, math.inf


class StraightThroughStep(torch.autograd.Function):
    """The tutorial's own class."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad_input[torch.abs(x) > 1] = 0
        return grad_input


# Values.


@pytest.mark.parametrize(
    ("x", "heaviside", "sign", "passes"),
    [
        (0.0, 0, 1, 1),
        (-0.0, 0, 1, 1),
        (nan, 0, -1, 1),
        (inf, 1, 1, 0),
        (-inf, 0, -1, 0),
        (1.0, 1, 1, 1),
        (-1.0, 0, -1, 1),
        (1.0078125, 1, 1, 0),
        (-1.0078125, 0, -1, 0),
        (6e-8, 1, 1, 1),
        (-6e-8, 0, -1, 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_in_the_docs(device, dtype, x, heaviside, sign, passes):
    """The reference is held to the same numbers, so that a mistake in both does not cancel."""
    x = torch.full((3,), x, dtype=dtype, device=device)
    for module in (ste_ops, reference):
        for name, level in (("heaviside", heaviside), ("sign", sign)):
            fn = getattr(module, name)
            out, gradient = forward_and_gradient(fn, x, torch.full_like(x, 0.5))
            assert_same_bits(out, torch.full_like(x, level))
            assert_same_bits(gradient, torch.full_like(x, 0.5 * passes))
            _, gradient = forward_and_gradient(lambda x, fn=fn: fn(x, Identity()), x, torch.full_like(x, 0.5))
            assert_same_bits(gradient, torch.full_like(x, 0.5))


def test_the_tutorial_case(device):
    x = torch.tensor([-0.5, 0.3, 1.2, -0.8], device=device, requires_grad=True)
    y = ste_ops.heaviside(x)
    assert y.tolist() == [0, 1, 1, 0]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_equals_the_tutorial_class_bit_for_bit(device, layout):
    values = torch.randn(40, 60, device=device) * 1.5
    values.view(-1)[:11] = torch.tensor([nan, 0.0, -0.0, 1.0, -1.0, inf, -inf, 1.0000001, -1.0000001, 1e-45, -1e-45])
    x = {"contiguous": values, "transposed": values.t(), "sliced": values[::3, ::2]}[layout]
    grad = torch.randn(x.shape, device=device)
    grad.view(-1)[-4:] = torch.tensor([nan, -0.0, inf, -inf])
    out, gradient = forward_and_gradient(ste_ops.heaviside, x, grad)
    expected_out, expected_gradient = forward_and_gradient(StraightThroughStep.apply, x, grad)
    assert_same_bits(out, expected_out)
    assert_same_bits(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("step", "surrogate"), pairs(), ids=repr)
def test_equals_the_reference_in_every_layout(device, step, surrogate, dtype):
    for name, x in layouts(dtype, surrogate, device):
        grad = filler(dtype, surrogate, device, seed=1)(*x.shape)
        out, gradient = forward_and_gradient(lambda x: getattr(ste_ops, step)(x, surrogate=surrogate), x, grad)
        expected = forward_and_gradient(lambda x: getattr(reference, step)(x, surrogate=surrogate), x, grad)
        assert_same_bits(out, expected[0], name)
        assert out.stride() == torch.empty_like(x).stride(), name
        assert out.device == x.device, name
        assert_gradient(surrogate, gradient, expected[1], grad, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", all_instances(), ids=repr)
def test_special_values(device, surrogate, dtype):
    x = specials(dtype, surrogate).to(device)
    # Every special meets every lane of a vector and every bit of a byte.
    x = torch.stack([x.roll(k) for k in range(32)]).flatten()
    for step in ALL_STEPS:
        expected = forward_and_gradient(lambda x, step=step: getattr(reference, step)(x, surrogate=surrogate), x, x)
        out, gradient = forward_and_gradient(lambda x, step=step: getattr(ste_ops, step)(x, surrogate=surrogate), x, x)
        assert_same_bits(out, expected[0], step)
        assert_gradient(surrogate, gradient, expected[1], x, step)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_65536_values(device, dtype):
    x = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    grad = torch.ones_like(x)
    for step, surrogate in pairs():
        fn, slow = (functools.partial(getattr(module, step), surrogate=surrogate) for module in (ste_ops, reference))
        received, expected = forward_and_gradient(fn, x, grad), forward_and_gradient(slow, x, grad)
        assert_same_bits(received[0], expected[0], f"{step} {surrogate}")
        assert_gradient(surrogate, received[1], expected[1], grad, f"{step} {surrogate}")


def test_every_surrogate_has_a_row():
    named = {name for name, value in vars(ste_ops.surrogate).items() if _is_surrogate(value)}
    assert named == set(SURROGATES)
    assert all(type(surrogate).__name__ == name for name, row in SURROGATES.items() for surrogate in row)


def _is_surrogate(value):
    return isinstance(value, type) and issubclass(value, Surrogate) and value is not Surrogate


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_and_strides(device, data):
    sizes = data.draw(st.lists(st.integers(0, 9), max_size=4), "sizes")
    surrogate, dtype = Clip(0.5), data.draw(st.sampled_from(DTYPES), "dtype")

    def tensor(seed):
        x = filler(dtype, surrogate, device, seed)(*sizes)
        x = x.permute(data.draw(st.permutations(range(len(sizes))), "order"))
        for dim in range(x.dim()):
            if x.shape[dim] == 1:
                x = x.expand([5 if d == dim else -1 for d in range(x.dim())])
            x = x[(slice(None),) * dim + (slice(data.draw(st.integers(0, 2)), None, data.draw(st.integers(1, 3))),)]
        return x

    x = tensor(0)
    grad = tensor(1)
    if grad.shape != x.shape:
        grad = filler(dtype, surrogate, device, 1)(*x.shape)
    step = data.draw(st.sampled_from(ALL_STEPS), "step")
    out, gradient = forward_and_gradient(lambda x: getattr(ste_ops, step)(x, surrogate=surrogate), x, grad)
    expected = forward_and_gradient(lambda x: getattr(reference, step)(x, surrogate=surrogate), x, grad)
    assert_same_bits(out, expected[0])
    assert_gradient(surrogate, gradient, expected[1], grad)
    assert out.stride() == torch.empty_like(x).stride()


# The mask.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_the_mask_has_one_bit_an_element(device, dtype, offset):
    values = filler(dtype, Clip(1.0), device)(301 + offset)[offset:]
    grads = torch.arange(1, 303 + offset, device=device).to(dtype)[offset:]
    for length in range(301):
        x, grad = values[:length], grads[:length]
        _, mask = ops.heaviside(x, Clip.number, 1.0, 0.0)
        passes = ~(x.abs() > 1)
        assert mask.tolist() == np.packbits(passes.cpu().numpy(), bitorder="little").tolist(), length
        assert_same_bits(ops.binarize_backward(grad, mask), torch.where(passes, grad, 0), str(length))


@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_bytes_saved_for_backward(device, step, n):
    def saved_bytes(surrogate):
        saved = []
        x = torch.randn(n, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            getattr(ste_ops, step)(x, surrogate=surrogate)
        return sum(saved)

    assert saved_bytes(Clip(1.0)) == (n + 7) // 8
    assert saved_bytes(Identity()) == 0
    # Their input itself, in its own dtype and memory.
    for surrogate in curves():
        assert saved_bytes(surrogate) == 4 * n
    x = torch.randn(8, n, device=device).to(torch.bfloat16)[::2].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        getattr(ste_ops, step)(x, surrogate=curves()[0])
    assert saved == [x.data_ptr()]


@pytest.mark.parametrize("surrogate", first_instances(), ids=repr)
def test_a_mask_does_not_keep_its_input_alive(device, surrogate):
    hidden = torch.randn(5, device=device, requires_grad=True) * 1
    alive = weakref.ref(hidden)
    y = ste_ops.sign(hidden, surrogate)
    del hidden
    assert (alive() is None) == (surrogate.saves in ("nothing", "mask"))
    y.sum().backward()


def test_many_threads_equal_one(device):
    # Past several grains of parallel_for, and no multiple of a tile, a byte or a vector.
    x = filler(torch.float32, Clip(1.0), device)(311_111)
    grad = torch.randn_like(x)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out, mask = ops.sign(x, Clip.number, 1.0, 0.0)
            results.append((out, mask, ops.binarize_backward(grad, mask)))
    finally:
        torch.set_num_threads(threads)
    for out, mask, gradient in results:
        assert_same_bits(out, torch.where(x >= 0, 1.0, -1.0))
        assert torch.equal(mask, results[0][1])
        assert_same_bits(gradient, torch.where(x.abs() > 1, 0, grad))


def test_the_loops_below_avx512():
    """A machine with AVX-512 would never run them, so a process is told to."""
    tests = (
        f"{__file__}::test_the_mask_has_one_bit_an_element",
        f"{__file__}::test_equals_the_tutorial_class_bit_for_bit",
        f"{__file__}::test_all_65536_values",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", *tests]
    environment = {**os.environ, "STE_OPS_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"^13 passed", done.stdout, re.MULTILINE), done.stdout[-400:]
