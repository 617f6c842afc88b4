"""Complex gradients: the numbers of torch, where torch clips them, and of the real numbers that they consist of."""

from __future__ import annotations

import math

import pytest
import torch
from support.clip_cases import parameter

import ste_ops
from ste_ops import reference


def gradients(device, dtype=torch.complex64):
    sizes = [(4, 3), (5,), ()]
    return [torch.randn(s, dtype=dtype).to(device) for s in sizes] + [torch.randn(6).to(device)]


def test_a_complex_number_counts_with_its_magnitude(device):
    p = parameter(torch.tensor([3 + 4j, 0], device=device))
    assert ste_ops.clip_grad_norm_(p, 1.0) == 5
    torch.testing.assert_close(p.grad.cpu(), torch.tensor([0.6 + 0.8j, 0]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, math.inf, -math.inf])
def test_as_torch(device, dtype, p):
    grads = gradients(device, dtype)
    ours, theirs = ([parameter(g.clone()) for g in grads] for _ in range(2))
    versions = [q.grad._version for q in ours]
    norm, expected = (m.clip_grad_norm_(ps, 0.3, p) for m, ps in ((ste_ops, ours), (torch.nn.utils, theirs)))
    assert norm.dtype == (torch.float64 if dtype == torch.complex128 else torch.float32)
    torch.testing.assert_close(norm, expected.to(norm.dtype), rtol=1e-5, atol=0)
    torch.testing.assert_close([q.grad for q in ours], [q.grad for q in theirs], rtol=1e-5, atol=1e-7)
    assert all(q.grad._version > v for q, v in zip(ours, versions, strict=True))
    slow = [parameter(g.clone()) for g in grads]
    torch.testing.assert_close(norm, reference.clip_grad_norm_(slow, 0.3, p), rtol=1e-6, atol=0)
    torch.testing.assert_close([q.grad for q in ours], [q.grad for q in slow], rtol=1e-6, atol=1e-7)
    total, norms = ste_ops.get_total_norm([*grads, grads[0]], p, return_norms=True)
    torch.testing.assert_close(
        norms, torch.stack([torch.linalg.vector_norm(g, p) for g in [*grads, grads[0]]]).to(total)
    )
    torch.testing.assert_close(total, norm)  # a gradient that is listed twice counts once


def test_conjugate_and_sparse(device):
    grad = torch.tensor([3 + 4j, 1 - 2j], device=device)
    ours, plain = parameter(grad.clone().conj()), parameter(grad.clone())
    assert torch.equal(*(ste_ops.clip_grad_norm_([p], 1.0) for p in (ours, plain)))
    torch.testing.assert_close(ours.grad.resolve_conj(), plain.grad.conj().resolve_conj())
    for p, expected in ((2.0, 10.0), (1.0, 10.0)):
        weight = torch.zeros(4, 1, dtype=torch.complex64, device=device, requires_grad=True)
        indices = torch.tensor([[1, 1]], device=device)
        weight.grad = torch.sparse_coo_tensor(
            indices, torch.tensor([[3 + 4j], [3 + 4j]], device=device), (4, 1), check_invariants=True
        )
        assert ste_ops.clip_grad_norm_(weight, 5.0, p).item() == pytest.approx(expected)
        torch.testing.assert_close(weight.grad.to_dense()[1].cpu(), torch.tensor([3 + 4j]))


def test_values_are_refused_before_anything_is_written(device):
    first, second = parameter(torch.full((2,), 9.0, device=device)), parameter(torch.ones(1, device=device) * 1j)
    with pytest.raises(TypeError, match=r"clip_grad_value_: gradients must be real, .* got torch.complex64 at index 1"):
        ste_ops.clip_grad_value_([first, second], 1.0)
    assert first.grad.tolist() == [9.0, 9.0]


def test_units_and_samples(device):
    weights, grads = gradients(device)[:3], gradients(device)[:3]
    ours, parts = [], []
    for w, g in zip(weights, grads, strict=True):
        ours.append(w.clone().requires_grad_())
        ours[-1].grad = g.clone()
        w, g = (torch.view_as_real(t.clone() if t.dim() > 1 else t.clone().unsqueeze(0)) for t in (w, g))
        parts.append(w.requires_grad_())
        parts[-1].grad = g
    ste_ops.clip_grad_agc_(ours, 0.1)
    ste_ops.clip_grad_agc_(parts, 0.1)
    for a, b in zip(ours, parts, strict=True):
        assert torch.equal(torch.view_as_real(a.grad).flatten(), b.grad.flatten())
    samples = [torch.randn(5, 3, dtype=torch.complex64).to(device), torch.randn(5).to(device)]
    real = [torch.view_as_real(samples[0]).contiguous(), samples[1]]
    sums, norms = ste_ops.clip_per_sample_([samples[0].conj(), samples[1]], 1.0, return_norms=True)
    expected, same = ste_ops.clip_per_sample_(real, 1.0, return_norms=True)
    assert torch.equal(norms, same)
    torch.testing.assert_close(sums, [torch.view_as_complex(expected[0]).conj().resolve_conj(), expected[1]])


def test_compiled():
    """Complex tensors with and without the conjugate bit, which a graph cannot ask for."""

    def step(x, out):
        norms = torch.stack([ste_ops.get_total_norm([x, x[0].conj()], p) for p in (2.0, 1.0)])
        ste_ops.clip_per_sample_([x], 1.0, out=[out])
        return norms, ste_ops.clip_per_sample_([x], 1.0)[0]

    x = torch.randn(5, 3, dtype=torch.complex64)
    for given in (x, x.conj()):
        torch._dynamo.reset()
        outs = [torch.ones(3, dtype=torch.complex64) for _ in range(2)]
        expected = step(given, outs[0])
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(given, outs[1]), expected)
        torch.testing.assert_close(outs[1], outs[0])
