"""Clipping in smaller pieces than the whole model: units of a layer, samples of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from support.clip_cases import FLOATING, LAYOUTS, MIXED, gradients, rounding

import ste_ops
from ste_ops import reference
from ste_ops._library import ops

SHAPES = [(40, 33), (7,), (), (0, 3), (3, 0), (6, 5, 3, 3), (2, 40_000), (1, 9), (50, 1), (40_000,)]


def weight(values, grad):
    p = values.clone(memory_format=torch.preserve_format).requires_grad_()
    p.grad = grad
    return p


def models(device, dtypes, layout=lambda t: t.clone()):
    """Weights of one model, twice; about half of the units have a gradient that is too large."""
    weights = gradients(device, dtypes, SHAPES)
    grads = [0.02 * g for g in gradients(device, dtypes, SHAPES)]
    for g in grads:
        if g.dim() > 1 and len(g) > 1:
            g[::2] *= 0.01
    return [[weight(w, layout(g)) for w, g in zip(weights, grads, strict=True)] for _ in range(2)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=rounding(a.dtype), atol=0, equal_nan=True)


@pytest.mark.parametrize("dtypes", [*([d] for d in FLOATING), MIXED], ids=lambda d: "-".join(str(x)[6:] for x in d))
def test_agc_equals_the_reference(device, dtypes):
    for arguments in ((), (1e-4, 10.0), (0.0,), (math.inf,)):
        ours, theirs = models(device, dtypes)
        before = [p.grad.clone() for p in ours]
        assert ste_ops.clip_grad_agc_(iter(ours), *arguments) is None
        reference.clip_grad_agc_(theirs, *arguments)
        assert_same(ours, theirs)
        changed = [bool((p.grad != g).any()) for p, g in zip(ours, before, strict=True)]
        assert any(changed) == (arguments != (math.inf,))


def timm_adaptive_clip_grad(p, clip_factor, eps):
    """The formula that timm and the authors' code share."""
    dims = tuple(range(1, p.dim()))
    w, g = (torch.linalg.vector_norm(t, 2, dims or None, keepdim=bool(dims)) for t in (p.detach(), p.grad))
    bound = w.clamp(min=eps) * clip_factor
    return torch.where(g < bound, p.grad, p.grad * (bound / g.clamp(min=1e-6)))


def test_agc_equals_timm(device):
    ours, _ = models(device, [torch.float32])
    ours = [p for p in ours if p.numel()]
    expected = [timm_adaptive_clip_grad(p, 0.03, 1e-3) for p in ours]
    ste_ops.clip_grad_agc_(ours, 0.03)
    torch.testing.assert_close([p.grad for p in ours], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agc_of_any_strides(device, layout):
    values, grad = torch.randn(37, 130, device=device), torch.randn(37, 130, device=device)
    for of_weight, of_grad in [(layout, layout), ("contiguous", layout), (layout, "contiguous")]:
        ours = LAYOUTS[of_weight](values).requires_grad_()
        ours.grad = LAYOUTS[of_grad](grad)
        theirs = weight(values, grad.clone())
        ste_ops.clip_grad_agc_(ours, 0.9)
        reference.clip_grad_agc_(theirs, 0.9)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=3e-7, atol=0)
    image = weight(torch.randn(8, 3, 5, 5, device=device), torch.randn(8, 3, 5, 5, device=device))
    last = weight(image.detach(), image.grad.contiguous(memory_format=torch.channels_last))
    for p in (image, last):
        ste_ops.clip_grad_agc_(p)
    torch.testing.assert_close(image.grad, last.grad, rtol=3e-7, atol=0)


def test_agc_of_special_values(device):
    w = torch.ones(6, 2, device=device)
    w[1], w[2, 0] = 0, math.nan
    g = torch.full((6, 2), 0.5, device=device)
    g[3, 0], g[4, 0], g[5] = math.nan, math.inf, 0
    ours, theirs = weight(w, g.clone()), weight(w, g.clone())
    ste_ops.clip_grad_agc_(ours)
    reference.clip_grad_agc_(theirs)
    assert_same([ours], [theirs])
    assert ours.grad[1].tolist() == pytest.approx([1e-5 / math.sqrt(2)] * 2)
    assert ours.grad[2:4].isnan().all()
    tiny = weight(
        torch.ones(2, dtype=torch.float64, device=device) * 1e-200,
        torch.full((2,), 1e200, dtype=torch.float64, device=device),
    )
    ste_ops.clip_grad_agc_(tiny, 1.0, 0.0)
    assert tiny.grad.tolist() == pytest.approx([1e-200] * 2)


def test_agc_as_a_user_meets_it(device):
    grad = torch.full((2, 2), 5.0, device=device)
    p, q, unused = (weight(torch.ones(2, 2, device=device), grad) for _ in range(3))
    unused.grad = None
    before = grad._version
    ste_ops.clip_grad_agc_([p, unused, q, p], 0.1)
    assert grad.tolist() == [pytest.approx([0.1] * 2)] * 2  # once, though it is there three times
    assert grad._version > before
    assert p.requires_grad
    ste_ops.clip_grad_agc_([])
    sparse = torch.zeros(6, 3, device=device, requires_grad=True)
    torch.nn.functional.embedding(torch.tensor([1], device=device), sparse, sparse=True).sum().backward()
    expanded = weight(torch.ones(2, 3, device=device), torch.ones(2, 1, device=device).expand(2, 3))
    grad.fill_(5)
    for bad, error, message in [
        (sparse, TypeError, "gradients must be strided, got torch.sparse_coo at index 1"),
        (expanded, RuntimeError, "cannot be written in place"),
        (3.0, TypeError, "parameters must be a tensor or an iterable of tensors, got 'float'"),
    ]:
        with pytest.raises(error, match="clip_grad_agc_: .*" + message):
            ste_ops.clip_grad_agc_([p, bad])
        assert (grad == 5).all()
    for module in (ste_ops, reference):
        with pytest.raises(ValueError, match="clip_factor must be a non-negative number"):
            module.clip_grad_agc_(p, -1.0)
        with pytest.raises(ValueError, match="eps must be a non-negative number"):
            module.clip_grad_agc_(p, 0.1, math.nan)
    for arguments, message in [(([grad], [grad, grad]), "must be as many"), (([grad[0]], [grad]), "parameter's shape")]:
        with pytest.raises(RuntimeError, match=message):
            ops.clip_grad_agc_(*arguments, 0.1, 0.1)


def test_agc_of_many(device):
    ours, theirs = (
        [weight(torch.ones(2, 3, device=device), torch.full((2, 3), i + 1.0)) for i in range(800)] for _ in "ab"
    )
    ste_ops.clip_grad_agc_(ours)
    reference.clip_grad_agc_(theirs)
    assert_same(ours, theirs)


def samples(device, dtypes, batch=5, shapes=((40, 33), (7,), (), (0,), (5000,))):
    grads = [torch.randn(batch, *s, device=device).to(dtypes[i % len(dtypes)]) for i, s in enumerate(shapes)]
    return [
        g * torch.linspace(0.001, 1, max(batch, 2), device=device)[:batch].view(-1, *[1] * (g.dim() - 1)).to(g)
        for g in grads
    ]


@pytest.mark.parametrize("dtypes", [*([d] for d in FLOATING), MIXED], ids=lambda d: "-".join(str(x)[6:] for x in d))
@pytest.mark.parametrize("batch", [0, 1, 5, 70])
def test_per_sample_equals_the_reference(device, dtypes, batch):
    grads = samples(
        device, dtypes, batch, ((40, 33), (7,), (), (0,)) if batch > 5 else ((40, 33), (7,), (), (0,), (5000,))
    )
    kept = [g.clone() for g in grads]
    for max_norm in (5.0, 1e9, 0.0):
        sums, norms = ste_ops.clip_per_sample_(grads, max_norm, return_norms=True)
        expected, expected_norms = reference.clip_per_sample_(grads, max_norm, return_norms=True)
        torch.testing.assert_close(norms, expected_norms, rtol=1e-7, atol=0)
        for a, b in zip(sums, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=rounding(b.dtype), atol=1e-12 if b.dtype == torch.float64 else 1e-6)
    assert all(torch.equal(g, k) for g, k in zip(grads, kept, strict=True))


def test_per_sample_equals_opacus(device):
    """clip_and_accumulate of Opacus' DPOptimizer, in its own operations."""
    grads = samples(device, [torch.float32], 9, ((6, 5), (6,), (3,)))
    norms = torch.stack([g.reshape(len(g), -1).norm(2, dim=-1) for g in grads], dim=1).norm(2, dim=1)
    factor = (2.0 / (norms + 1e-6)).clamp(max=1.0)
    expected = [torch.einsum("i,i...", factor, g) for g in grads]
    torch.testing.assert_close(ste_ops.clip_per_sample_(iter(grads), 2.0), expected)
    assert (factor < 1).any()
    assert (factor == 1).any()


def test_per_sample_adds_to_out(device):
    grads = samples(device, MIXED, 6)
    out = [torch.zeros_like(g[0]) for g in grads]
    out[0] = torch.zeros(33, 40, dtype=grads[0].dtype, device=device).t()
    versions = [t._version for t in out]
    for half in (slice(0, 3), slice(3, 6)):
        assert all(
            a is b for a, b in zip(ste_ops.clip_per_sample_([g[half] for g in grads], 2.0, out=out), out, strict=True)
        )
    for a, b in zip(out, ste_ops.clip_per_sample_(grads, 2.0), strict=True):
        torch.testing.assert_close(a, b, rtol=2 * rounding(b.dtype), atol=2e-2 if b.dtype == torch.bfloat16 else 4e-3)
    assert all(t._version > v for t, v in zip(out, versions, strict=True))


def test_per_sample_of_vmap(device):
    linear = torch.nn.Linear(4, 3).to(device)
    x, y = torch.randn(8, 4, device=device), torch.randn(8, 3, device=device)

    def loss(parameters, x, y):
        return (torch.func.functional_call(linear, parameters, x) - y).square().sum()

    parameters = {k: v.detach() for k, v in linear.named_parameters()}
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    sums, norms = ste_ops.clip_per_sample_(grads.values(), 1.0, return_norms=True)
    expected = reference.clip_per_sample_(grads.values(), 1.0)
    torch.testing.assert_close(sums, expected)
    (clipped, _) = ste_ops.clip_per_sample_([g[:1] for g in grads.values()], 1.0), norms
    assert ste_ops.get_total_norm(clipped) <= 1 + 1e-6


def test_per_sample_in_its_own_range(device):
    grads = torch.tensor([[3e200, 4e200], [3e-200, 4e-200], [0, 0]], dtype=torch.float64, device=device)
    sums, norms = ste_ops.clip_per_sample_(grads, 1e200, return_norms=True)
    assert norms.tolist() == pytest.approx([5e200, 5e-200, 0], rel=1e-14)
    assert sums[0].tolist() == pytest.approx([0.6e200, 0.8e200], rel=1e-14)
    grads = torch.full((2, 3), math.nan, dtype=torch.float64, device=device)
    assert ste_ops.clip_per_sample_(grads, 1.0)[0].isnan().all()


def test_per_sample_refuses_bad_arguments(device):
    x = torch.ones(3, 2, device=device)
    out = [torch.zeros(2, device=device)]
    for arguments, error, message in [
        (([x, x[:2]], 1.0), ValueError, "one batch size, got 3 at index 0 and 2 at index 1"),
        (([x, x[0, 0]], 1.0), ValueError, "a dimension of samples, got a 0-d tensor at 1"),
        (([x, x.int()], 1.0), TypeError, "got torch.strided torch.int32 at index 1"),
        (([x, 3], 1.0), TypeError, "must be tensors, got int at index 1"),
        (([x], math.nan), ValueError, "max_norm must be a non-negative number"),
    ]:
        with pytest.raises(error, match="clip_per_sample_: .*" + message):
            ste_ops.clip_per_sample_(*arguments)
    for bad, message in [
        ([out[0], out[0]], "a tensor for each of grad_samples, got 2 for 1"),
        ([out[0][:1]], r"\(2,\) torch.float32, got \(1,\) torch.float32 at index 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ste_ops.clip_per_sample_(x, 1.0, out=bad)
    for arguments, message in [
        (([x], [out[0], out[0]]), "as many as grad_samples"),
        (([x, x], [out[0], out[0]]), "different tensors, got one twice"),
        (([x.t()], [torch.zeros(3, device=device)]), "must be contiguous"),
        (([x], [out[0].half()]), "a sample's shape and dtype"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.clip_per_sample_(*arguments, 1.0)
    assert out[0].tolist() == [0, 0]


def test_the_same_bits_at_any_number_of_threads():
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            (model, _) = models("cpu", [torch.float32])
            model.append(weight(torch.ones(2, 600_000), torch.randn(2, 600_000)))
            ste_ops.clip_grad_agc_(model)
            grads = samples("cpu", [torch.float32], 3, ((300_001,), (40, 30)))
            found.append([p.grad for p in model] + ste_ops.clip_per_sample_(grads, 2.0))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
