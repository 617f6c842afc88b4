"""Clipping inside the graph: identity forward, a clipped gradient backward."""

from __future__ import annotations

import math

import pytest
import torch

import ste_ops
from ste_ops import reference
from ste_ops._library import ops

FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NORM_TYPES = [2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5]
DIMS = [None, 0, -1, (0, 2), (1, 2), (2, 1, 0), ()]
LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "channels last": lambda t: t.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "outer last": lambda t: t.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "sliced": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand(t.shape),
}


def gradient(function, x, grad, *arguments):
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(function(x, *arguments), x, grad)
    return found


def tolerance(dtype):
    return {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_equals_the_reference(device, dtype, layout):
    x = LAYOUTS[layout](torch.randn(5, 6, 7, device=device).to(dtype))
    grad = LAYOUTS[layout](torch.randn(5, 6, 7, device=device).to(dtype))
    for clip_value in (0.3, 0.0, math.inf):
        ours = gradient(ste_ops.clip_gradient_value, x, grad, clip_value)
        theirs = gradient(reference.clip_gradient_value, x, grad, clip_value)
        assert torch.equal(ours, theirs)
        assert ours.dtype == dtype
    if layout in ("transposed", "channels last", "outer last"):
        assert ours.stride() == grad.stride()


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_norm_equals_the_reference(device, norm_type, dim, dtype):
    x = torch.randn(5, 6, 7, device=device).to(dtype)
    for layout in LAYOUTS.values():
        grad = layout(torch.randn(5, 6, 7, device=device).to(dtype))
        grad = grad * torch.linspace(0.01, 3, 5, device=device).to(dtype)[:, None, None]  # some rows clipped, some not
        ours = gradient(ste_ops.clip_gradient_norm, x, grad, 0.9, norm_type, dim)
        theirs = gradient(reference.clip_gradient_norm, x, grad, 0.9, norm_type, dim)
        torch.testing.assert_close(ours, theirs, rtol=tolerance(dtype), atol=0)


@pytest.mark.parametrize("norm_type", [2.0, 3.0, math.inf])
@pytest.mark.parametrize("shape", [(3, 40_000), (300_001,), (1, 5), (70, 1), (1000, 3), (2, 270_000)], ids=str)
def test_long_and_short_rows(device, norm_type, shape):
    x, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
    for bound in (1.5, 1e9):
        ours = gradient(ste_ops.clip_gradient_norm, x, grad, bound, norm_type, -1)
        theirs = gradient(reference.clip_gradient_norm, x, grad, bound, norm_type, -1)
        torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=0)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
@pytest.mark.parametrize("length", [3, 300_000])
def test_rows_do_not_overflow_in_between(device, scale, length):
    grad = torch.ones(2, length, dtype=torch.float64, device=device) * scale
    ours = gradient(ste_ops.clip_gradient_norm, torch.zeros_like(grad), grad, 0.5 * scale, 2.0, 1)
    norm = math.sqrt(length) * scale
    torch.testing.assert_close(ours, grad * min(1, 0.5 * scale / (norm + 1e-6)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_rows(device, bad):
    grad = torch.ones(2, 3, device=device)
    grad[0, 1] = bad
    ours = gradient(ste_ops.clip_gradient_norm, torch.zeros_like(grad), grad, 1.0, 2.0, 1)
    expected = [math.nan] * 3 if math.isnan(bad) else [0.0, math.nan, 0.0]
    torch.testing.assert_close(ours[0].cpu(), torch.tensor(expected), equal_nan=True)
    assert ours[1].tolist() == pytest.approx([1 / math.sqrt(3)] * 3)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3)], ids=str)
def test_small_shapes(device, shape):
    x = torch.zeros(shape, device=device)
    grad = torch.full(shape, -4.0, device=device)
    for dim in (None, 0, -1):
        ours = gradient(ste_ops.clip_gradient_norm, x, grad, 1.0, 2.0, dim)
        torch.testing.assert_close(ours, gradient(reference.clip_gradient_norm, x, grad, 1.0, 2.0, dim))
    assert torch.equal(gradient(ste_ops.clip_gradient_value, x, grad, 1.0), grad.clamp(-1, 1))


@pytest.mark.parametrize("function", [ste_ops.clip_gradient_value, ste_ops.clip_gradient_norm])
def test_forward_is_the_identity(device, function):
    x = torch.randn(4, 5, device=device).t()
    y = function(x, 0.1)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(x, y)
    assert y.stride() == x.stride()
    assert not y.requires_grad
    x.requires_grad_()
    y = function(x, 0.1)
    with torch.no_grad():
        assert not function(x, 0.1).requires_grad
    assert y.requires_grad
    assert x._version == 0
    assert y.detach().data_ptr() == x.data_ptr()


VALUE = [(ste_ops.clip_gradient_value, reference.clip_gradient_value, (0.6,))]
NORM = [
    (ste_ops.clip_gradient_norm, reference.clip_gradient_norm, (0.8, p, dim))
    for p in (2.0, 1.0, 3.0, math.inf, -math.inf, 0.5)
    for dim in (None, 0, (0, 2), ())
]


def name_of(argument) -> str:
    return getattr(argument, "__name__", str(argument))


@pytest.mark.parametrize(("function", "expected", "arguments"), VALUE + NORM, ids=name_of)
def test_double_backward(device, function, expected, arguments):
    x = torch.randn(3, 4, 2, dtype=torch.float64, device=device, requires_grad=True)
    grad = torch.randn_like(x).detach().requires_grad_()
    upper = torch.randn_like(x)
    found = []
    for f in (function, expected):
        (first,) = torch.autograd.grad(f(x, *arguments), x, grad, create_graph=True)
        found.append(torch.autograd.grad(first, grad, upper))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(("function", "_", "arguments"), VALUE + NORM[:8], ids=name_of)
def test_gradgradcheck(device, function, _, arguments):
    x = torch.randn(3, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    grad = torch.randn_like(x).detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: function(t, *arguments), (x,), (grad,))
    assert torch.autograd.gradcheck(lambda t: function(t, 1e9, *arguments[1:]), (x,))


def test_gradcheck_fails_where_it_clips():
    """The forward is the identity: a clipped gradient is not its derivative, and that is the point."""
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda t: ste_ops.clip_gradient_value(t, 0.1), (x,))


def model(clip, x, w):
    y = clip(torch.tanh(x * w))
    return (y**3).sum() * 2


CLIPS = {
    "value": (lambda t: ste_ops.clip_gradient_value(t, 0.2), lambda t: reference.clip_gradient_value(t, 0.2)),
    "norm": (lambda t: ste_ops.clip_gradient_norm(t, 0.5), lambda t: reference.clip_gradient_norm(t, 0.5)),
    "rows": (
        lambda t: ste_ops.clip_gradient_norm(t, 0.5, 1.0, -1),
        lambda t: reference.clip_gradient_norm(t, 0.5, 1.0, -1),
    ),
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_func_transforms(device, name, compiled):
    ours, theirs = CLIPS[name]
    x = torch.randn(4, 3, dtype=torch.float64, device=device)
    w = torch.randn(3, dtype=torch.float64, device=device)

    def plain(row):
        w_ = w.detach().clone().requires_grad_()
        row = row.detach().clone().requires_grad_()
        return torch.autograd.grad(model(theirs, row, w_), (row, w_), create_graph=True), (row, w_)

    # C++ of inductor's own takes seconds a graph: for one graph of one of the three, on one of the devices.
    through = "inductor" if name == "rows" and ops.namespace == "ste_ops" else "aot_eager"

    def maybe(f, backend="aot_eager"):
        return torch.compile(f, fullgraph=True, backend=backend) if compiled else f

    grad = torch.func.grad(lambda x, w: model(ours, x, w), argnums=(0, 1))
    per_sample = maybe(torch.func.vmap(grad, in_dims=(0, None)), through)(x, w)
    other_axis = maybe(torch.func.vmap(grad, in_dims=(1, None), out_dims=1))(x.t().contiguous(), w)
    for i in range(4):
        expected, _ = plain(x[i])
        torch.testing.assert_close((per_sample[0][i], per_sample[1][i]), tuple(expected))
        torch.testing.assert_close(other_axis[0][:, i], expected[0])
    torch.testing.assert_close(maybe(grad)(x[0], w), tuple(plain(x[0])[0]))
    hessian = maybe(torch.func.jacrev(torch.func.grad(lambda x: model(ours, x, w))))(x[0])
    (first, _), (row, _) = plain(x[0])
    rows = [torch.autograd.grad(first[i], row, retain_graph=True)[0] for i in range(3)]
    torch.testing.assert_close(hessian, torch.stack(rows))
    forward_over_reverse = maybe(torch.func.jacfwd(torch.func.grad(lambda x: model(ours, x, w))))(x[0])
    assert forward_over_reverse.shape == (3, 3)
    out, tangent = maybe(lambda x, t: torch.func.jvp(ours, (x,), (t,)))(x, x + 1)
    assert torch.equal(out, x)
    assert torch.equal(tangent, x + 1)


@pytest.mark.parametrize("name", CLIPS)
def test_compiled_training(device, name):
    ours, _ = CLIPS[name]
    linear = torch.nn.Linear(3, 3).to(device)

    def loss(x):
        return (ours(linear(x)) ** 2).sum()

    x = torch.randn(4, 3, device=device)
    loss(x).backward()
    expected = [p.grad.clone() for p in linear.parameters()]
    linear.zero_grad()
    torch.compile(loss, fullgraph=True)(x).backward()
    torch.testing.assert_close([p.grad for p in linear.parameters()], expected)


def test_autocast_and_hooks(device):
    x = torch.randn(3, 3, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        y = ste_ops.clip_gradient_norm(x @ x, 0.1)
    assert y.dtype == torch.bfloat16
    y.retain_grad()
    (y.float() ** 2).sum().backward()
    assert y.grad is not None
    assert x.grad is not None


def test_refuses_bad_arguments(device):
    x = torch.ones(2, 3, device=device)
    for call, error, message in [
        (lambda: ste_ops.clip_gradient_value(3.0, 1.0), TypeError, "x must be a tensor, got float"),
        (lambda: ste_ops.clip_gradient_value(x.int(), 1.0), TypeError, r"float16, got torch\.int32"),
        (lambda: ste_ops.clip_gradient_value(x, -1.0), ValueError, "clip_value must be a non-negative number, got -1"),
        (
            lambda: ste_ops.clip_gradient_norm(x, math.nan),
            ValueError,
            "max_norm must be a non-negative number, got nan",
        ),
        (lambda: ste_ops.clip_gradient_norm(x, 1.0, -2.0), ValueError, "norm_type must be a non-negative number"),
        (lambda: ste_ops.clip_gradient_norm(x, 1.0, dim=2), IndexError, r"dim must be in \[-2, 1\], got 2"),
        (lambda: ste_ops.clip_gradient_norm(x, 1.0, dim=(0, -2)), ValueError, "dim must name each dimension once"),
    ]:
        with pytest.raises(error, match=message):
            call()
