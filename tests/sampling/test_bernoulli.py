"""bernoulli_ste: equal to the reference, an identity backward under every transform, right in its statistics."""

from __future__ import annotations

import pytest
import torch
from support.chi_square import fits
from torch import Tensor
from torch.autograd import forward_ad

import ste_ops
from ste_ops import reference
from ste_ops._library import ops

FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda p: p,
    "transposed": lambda p: p.transpose(0, 2),
    "sliced": lambda p: p[:, 1:, ::2],
    "expanded": lambda p: p[:1].expand(4, -1, -1),
    "channels_last": lambda p: p[None].to(memory_format=torch.channels_last),
    "empty": lambda p: p[:0],
    "0-d": lambda p: p[0, 0, 0],
}


def both(p: Tensor) -> tuple[Tensor, Tensor]:
    """The native and the reference draw under one seed."""
    torch.manual_seed(5)
    ours = ste_ops.bernoulli_ste(p)
    torch.manual_seed(5)
    return ours, reference.bernoulli_ste(p.cpu()) if p.device.type == "cpu" else ours


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING)
def test_equals_reference(device: str, dtype: torch.dtype, layout: str) -> None:
    p = torch.rand(4, 10, 9, dtype=torch.float64).to(dtype).to(device)
    p.view(-1)[:6] = torch.tensor([0.0, -0.0, 1.0, torch.finfo(dtype).tiny, torch.finfo(dtype).tiny / 2, 0.5])
    p = LAYOUTS[layout](p)
    ours, expected = both(p)
    assert torch.equal(ours, expected)
    assert ours.dtype == p.dtype
    assert ours.stride() == torch.empty_like(p).stride()
    assert ((ours == 0) | (ours == 1)).all()


def test_zero_never_and_one_always(device: str) -> None:
    p = torch.tensor([0.0, -0.0, 1.0], device=device).repeat(5000)
    assert torch.equal(ste_ops.bernoulli_ste(p), p.abs())


@pytest.mark.parametrize("dtype", FLOATING)
def test_statistics(device: str, dtype: torch.dtype) -> None:
    p = torch.full((60_000,), 0.3, dtype=dtype, device=device)
    drawn = ste_ops.bernoulli_ste(p).long().cpu()
    truth = p[0].double().item()
    assert fits(drawn, torch.tensor([1 - truth, truth]))
    assert not fits(drawn, torch.tensor([1 - truth - 0.02, truth + 0.02]))


@pytest.mark.parametrize("bad", [1.5, -0.25, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATING)
def test_bad_probabilities(device: str, dtype: torch.dtype, bad: float) -> None:
    p = torch.full((40_000,), 0.5, dtype=dtype, device=device)
    p[[33_333, 20_001]] = bad
    if ops.namespace == "ste_ops" and device == "cpu":
        with pytest.raises(RuntimeError, match=rf"^bernoulli_ste: p must be in \[0, 1\], got {bad} at index 20001$"):
            ste_ops.bernoulli_ste(p)
    else:
        drawn = ste_ops.bernoulli_ste(p)
        assert drawn[[33_333, 20_001]].isnan().all()
        assert drawn.isnan().sum() == 2
        with pytest.raises(RuntimeError, match=rf"^bernoulli_ste: p must be in \[0, 1\], got {bad} at index [23]"):
            ste_ops.check_deferred_errors(device)


def test_of_nothing_but_bad_probabilities_a_block_reports_one(device: str) -> None:
    p = torch.full((3_000,), float("nan"), device=device)
    if ops.namespace != "ste_ops" or device != "cpu":
        assert ste_ops.bernoulli_ste(p).isnan().all()
        with pytest.raises(RuntimeError, match=r"^bernoulli_ste: p must be in \[0, 1\], got nan at index \d+"):
            ste_ops.check_deferred_errors(device)


def test_bad_arguments(device: str) -> None:
    with pytest.raises(TypeError, match="p must be a tensor, got float"):
        ste_ops.bernoulli_ste(0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="p must be float64, float32, bfloat16 or float16, got torch"):
        ste_ops.bernoulli_ste(torch.ones(2, dtype=torch.int64, device=device))
    with pytest.raises(RuntimeError, match="seed must have one element, or one for each row"):
        ops.bernoulli(torch.ones(3, 2, device=device), torch.ones(2, dtype=torch.int64, device=device))


def test_the_gradient_passes_through(device: str) -> None:
    p = torch.rand(3, 5, device=device).t().requires_grad_()
    weights = torch.randn(5, 3, device=device)
    (grad,) = torch.autograd.grad((ste_ops.bernoulli_ste(p) * weights).sum(), p, create_graph=True)
    assert torch.equal(grad, weights)
    x = torch.tensor(0.4, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(ste_ops.bernoulli_ste(x) * x**2, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    # d/dx (s x^2) = x^2 + 2 s x; again, with ds/dx = 1: 2 x + 2 x + 2 s
    assert second.item() in (pytest.approx(1.6), pytest.approx(3.6))


def test_forward_mode(device: str) -> None:
    tangent = torch.randn(4, device=device)
    with forward_ad.dual_level():
        out = ste_ops.bernoulli_ste(forward_ad.make_dual(torch.rand(4, device=device), tangent))
        assert torch.equal(forward_ad.unpack_dual(out).tangent, tangent)
    _, jvp = torch.func.jvp(ste_ops.bernoulli_ste, (torch.rand(4, device=device),), (tangent,))
    assert torch.equal(jvp, tangent)


def test_func_grad_and_jacobian(device: str) -> None:
    p = torch.rand(4, device=device)
    assert torch.equal(torch.func.grad(lambda q: ste_ops.bernoulli_ste(q).sum())(p), torch.ones_like(p))
    jacobian = torch.autograd.functional.jacobian(ste_ops.bernoulli_ste, p)
    assert torch.equal(jacobian, torch.eye(4, device=device))
    assert torch.equal(torch.func.jacrev(ste_ops.bernoulli_ste)(p), torch.eye(4, device=device))


def test_vmap(device: str) -> None:
    p = torch.rand(6, 4, 50, device=device)
    for in_dim in (0, 1, 2):
        same = torch.vmap(ste_ops.bernoulli_ste, in_dims=in_dim, randomness="same")
        torch.manual_seed(1)
        batched = same(p)
        for i in range(p.shape[in_dim]):
            torch.manual_seed(1)
            assert torch.equal(batched[i], ste_ops.bernoulli_ste(p.select(in_dim, i).contiguous()))
    half = torch.full((6, 200), 0.5, device=device)
    different = torch.vmap(ste_ops.bernoulli_ste, randomness="different")(half)
    assert len({tuple(row) for row in different.tolist()}) == 6
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(ste_ops.bernoulli_ste)(half)
    nested = torch.vmap(torch.vmap(ste_ops.bernoulli_ste, randomness="different"), randomness="different")(p)
    assert ((nested == 0) | (nested == 1)).all()


def test_vmap_of_grad(device: str) -> None:
    grad = torch.func.grad(lambda q, g: (ste_ops.bernoulli_ste(q) * g).sum())
    p, g = torch.rand(6, 4, device=device), torch.randn(6, 4, device=device)
    assert torch.equal(torch.vmap(grad, randomness="different")(p, g), g)


def test_opcheck(device: str) -> None:
    seed = torch.tensor([3], device=device)
    for p in (torch.rand(5, 4, device=device), torch.rand(5, 4, device=device).t(), torch.rand(0, device=device)):
        torch.library.opcheck(ops.bernoulli, (p, seed))


def test_compiles_whole_in_training(device: str) -> None:
    def loss(p: Tensor, g: Tensor) -> Tensor:
        return (ste_ops.bernoulli_ste(torch.sigmoid(p)) * g).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if device == "cpu" else "aot_eager")
    g = torch.randn(40, device=device)
    p = torch.randn(40, device=device, requires_grad=True)
    compiled(p, g).backward()
    s = torch.sigmoid(p.detach())
    torch.testing.assert_close(p.grad, g * s * (1 - s))
    draws = {compiled(p, g).item() for _ in range(5)}
    assert len(draws) > 1
