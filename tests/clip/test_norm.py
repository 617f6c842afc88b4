"""Norms and scaled gradients in numbers: against the reference and against torch.nn.utils."""

from __future__ import annotations

import math

import pytest
import torch
from support.clip_cases import (
    FLOATING,
    LAYOUTS,
    MIXED,
    NORM_TYPES,
    assert_same_gradients,
    copies,
    gradients,
    parameter,
)
from torch.nn.utils import clip_grad as torch_clip

import ste_ops
from ste_ops import reference
from ste_ops._library import ops


@pytest.mark.parametrize("dtypes", [*([d] for d in FLOATING), MIXED], ids=lambda d: "-".join(str(x)[6:] for x in d))
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_equals_the_reference(device, dtypes, norm_type):
    grads = gradients(device, dtypes)
    for max_norm in (0.25, 1e9):
        ours, theirs = copies(grads), copies(grads)
        norm = ste_ops.clip_grad_norm_(ours, max_norm, norm_type)
        expected = reference.clip_grad_norm_(theirs, max_norm, norm_type)
        torch.testing.assert_close(norm, expected, rtol=1e-7, atol=0)
        assert_same_gradients(ours, theirs)
        assert norm.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
        assert norm.shape == ()
        assert norm.device == grads[0].device
        assert torch.equal(norm, ste_ops.get_total_norm(grads, norm_type))


@pytest.mark.parametrize("norm_type", [2, 1, math.inf, -math.inf, 3.0, "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["list", "generator", "single", "with None"])
def test_equals_torch(device, norm_type, dtype, shape):
    grads = gradients(device, [dtype], shapes=((40, 33), (7,), (2, 3, 4)))
    arguments = []
    for own in (copies(grads), copies(grads)):
        if shape == "with None":
            own.insert(1, torch.zeros(3, requires_grad=True))
        given = {"generator": (p for p in own), "single": own[0]}.get(shape, own)
        arguments.append((own, given))
    norm = ste_ops.clip_grad_norm_(arguments[0][1], 0.1, norm_type)
    expected = torch_clip.clip_grad_norm_(arguments[1][1], 0.1, norm_type)
    torch.testing.assert_close(norm, expected)
    for ours, theirs in zip(arguments[0][0], arguments[1][0], strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_halves_of_the_call_are_the_call(device):
    grads = gradients(device, MIXED)
    whole, halves = copies(grads), copies(grads)
    norm = ste_ops.clip_grad_norm_(whole, 0.3)
    ste_ops.clip_grads_with_norm_(iter(halves), 0.3, ste_ops.get_total_norm(grads))
    for a, b in zip(whole, halves, strict=True):
        assert torch.equal(a.grad, b.grad)
    assert norm > 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_a_norm_of_any_dtype(device, dtype):
    p = parameter(torch.tensor([3.0, 4.0], device=device))
    ste_ops.clip_grads_with_norm_(p, 1.0, torch.tensor(5.0, dtype=dtype))
    torch.testing.assert_close(p.grad.cpu(), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_strides(device, layout, dtype):
    values = [torch.randn(37, 130, device=device).to(dtype), torch.randn(5, 3, device=device).to(dtype)]
    for norm_type in (2.0, math.inf, 3.0):
        ours = [parameter(LAYOUTS[layout](v)) for v in values]
        theirs = copies(values)
        norm = ste_ops.clip_grad_norm_(ours, 0.5, norm_type)
        torch.testing.assert_close(norm, reference.clip_grad_norm_(theirs, 0.5, norm_type), rtol=1e-7, atol=0)
        assert_same_gradients(ours, theirs)
    ours, theirs = [parameter(LAYOUTS[layout](v)) for v in values], copies(values)
    ste_ops.clip_grad_value_(ours, 0.1)
    reference.clip_grad_value_(theirs, 0.1)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_what_lies_between_a_slices_elements_stays(device):
    memory = torch.full((6, 8), 7.0, device=device)
    p = torch.zeros(6, 4, device=device, requires_grad=True)
    p.grad = memory[:, 1::2]
    ste_ops.clip_grad_norm_(p, 1.0)
    ste_ops.clip_grad_value_(p, 0.01)
    assert (memory[:, ::2] == 7).all()
    assert (memory[:, 1::2] == 0.01).all()


@pytest.mark.parametrize("count", [3, 129, 400])
def test_many_gradients(device, count):
    grads = [torch.randn(1 + i % 5, device=device) for i in range(count)]
    grads[2] = torch.randn(8, device=device)[::2]
    ours, theirs = copies(grads), copies(grads)
    ours[2].grad = torch.zeros(8, device=device)[::2].copy_(grads[2])
    norm = ste_ops.clip_grad_norm_(ours, 1.0)
    torch.testing.assert_close(norm, reference.clip_grad_norm_(theirs, 1.0), rtol=1e-7, atol=0)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("clip_value", [0.1, 0.3, 0.0, math.inf, 1e30])
def test_value_equals_the_reference_and_torch(device, dtype, clip_value):
    specials = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, -0.1, 0.30078125, 5.0, -5.0]).to(device)
    grads = [*gradients(device, [dtype]), specials.to(dtype)]
    ours, theirs, torchs = copies(grads), copies(grads), copies(grads)
    assert ste_ops.clip_grad_value_(ours, clip_value) is None
    reference.clip_grad_value_(theirs, clip_value)
    if clip_value == 1e30 and dtype == torch.float16:
        ops.clip_grad_value_([p.grad for p in torchs], math.inf)  # torch refuses a bound that overflows
    else:
        torch_clip.clip_grad_value_(torchs, clip_value)
    for a, b, c in zip(ours, theirs, torchs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(a.grad, c.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_non_finite_norms_do_what_torch_does(device, bad, norm_type, dtype):
    grads = [torch.randn(50, device=device).to(dtype), torch.randn(3, 3, device=device).to(dtype)]
    grads[0][17] = bad
    ours, torchs = copies(grads), copies(grads)
    norm = ste_ops.clip_grad_norm_(ours, 1.0, norm_type)
    expected = torch_clip.clip_grad_norm_(torchs, 1.0, norm_type)
    torch.testing.assert_close(norm, expected.to(norm.dtype), equal_nan=True)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)


@pytest.mark.parametrize("function", ["get_total_norm", "clip_grad_norm_"])
def test_error_if_nonfinite_writes_nothing(device, function):
    grads = [torch.full((3,), 9.0, device=device), torch.tensor([math.inf], device=device)]
    arguments = [grads] if function == "get_total_norm" else [[parameter(g) for g in grads], 1.0]
    for utils in (ste_ops, reference, torch_clip):
        call = getattr(utils, function, None) or torch_clip._get_total_norm
        with pytest.raises(RuntimeError, match=r"total norm of order 2\.0 .* is non-finite"):
            call(*arguments, error_if_nonfinite=True)
    assert grads[0].tolist() == [9.0] * 3


@pytest.mark.parametrize(
    ("dtype", "scale", "norm_type"),
    [
        (torch.float16, 1.5e4, 2.0),
        (torch.float32, 1e20, 2.0),
        (torch.float32, 1e-30, 2.0),
        (torch.float32, 1e-44, 2.0),
        (torch.float32, 3e37, 9.0),
        (torch.float32, 1e-30, 20.0),
        (torch.float64, 1e200, 2.0),
        (torch.float64, 1e-200, 2.0),
        (torch.float64, 1e-310, 2.0),
        (torch.float64, 1e200, 3.0),
    ],
)
def test_no_overflow_in_between(device, dtype, scale, norm_type):
    values = (torch.tensor([3.0, 4.0], dtype=torch.float64) * scale).to(dtype)
    exact = [v / scale for v in values.double().tolist()]
    expected = sum(v**norm_type for v in exact) ** (1 / norm_type) * scale
    for grads in ([values], [values[:1], values[1:]], [torch.stack([values, values])[:, :1], values[:1] * 0]):
        if len(grads[-1]) == 1 and grads[-1] == 0:
            want = exact[0] * 2 ** (1 / norm_type) * scale
        else:
            want = expected
        norm = ste_ops.get_total_norm([g.to(device) for g in grads], norm_type).double().item()
        assert math.isclose(
            norm, want, rel_tol=2e-7 if dtype != torch.float64 else 1e-14, abs_tol=1.5e-45 if scale == 1e-44 else 0
        )


def test_a_large_first_gradient_does_not_spoil_a_second_look(device):
    grads = [torch.tensor([1e200, 1e-200, math.inf], dtype=torch.float64, device=device)]
    assert ste_ops.get_total_norm(grads).item() == math.inf
    grads[0][2] = math.nan
    assert math.isnan(ste_ops.get_total_norm(grads).item())
    assert ste_ops.get_total_norm([torch.zeros(5, dtype=torch.float64, device=device)]).item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [24, 26])
def test_accuracy(exponent):
    x = torch.full((1 << exponent,), 0.1)
    expected = math.sqrt((1 << exponent) * float(x[0]) ** 2)
    assert abs(ste_ops.get_total_norm(x).item() / expected - 1) < 1e-7


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_the_same_bits_at_any_number_of_threads(norm_type):
    grads = gradients("cpu", [torch.float64, torch.float32], shapes=((700, 900), (5,), (300_001,), (64, 64)))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            own = copies(grads)
            norm = ste_ops.clip_grad_norm_(own, 0.5, norm_type)
            row = ste_ops._functions.clip._clip_rows(grads[0].view(2, -1), 0.5, norm_type, (1,))
            found.append([norm, row, *(p.grad for p in own)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
