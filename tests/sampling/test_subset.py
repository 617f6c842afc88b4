"""subset_ste: the reference's draws and gradients, the law of draws without replacement, safe softmaxes."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.categorical_cases import FLOATING, LAYOUTS, raises_for_values, saved_bytes, seeded
from support.chi_square import fits
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._functions.sampling.subset import subset_gradient
from ste_ops._library import ops


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING)
def test_equals_reference(device: str, dtype: torch.dtype, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 7).mul(2).to(dtype).to(device)).requires_grad_()
    grad = torch.randn_like(x)
    for k, tau in itertools.product({1, min(2, x.shape[-1]), x.shape[-1]}, (1.0, 0.4)):
        ours, theirs = (of.subset_ste(x, k, tau, generator=seeded(5, device)) for of in (ste_ops, reference))
        assert torch.equal(ours, theirs)
        assert ours.stride() == torch.empty_like(x).stride()
        tolerance = {"rtol": 1e-3, "atol": 1e-5} if dtype == torch.float32 else {}
        received, expected = (torch.autograd.grad(out, x, grad)[0] for out in (ours, theirs))
        torch.testing.assert_close(received, expected, **tolerance)


@pytest.mark.parametrize("rows", [3, 40, 300])
@pytest.mark.parametrize("n", [5, 40])
def test_each_seed_has_a_stretch_of_its_own(device: str, rows: int, n: int) -> None:
    seeds = torch.tensor([3, -8, 2**40], device=device)
    x, grad = torch.randn(2, 3, rows, n, device=device)
    out, gradient = ops.subset(x, seeds, 3), ops.subset_backward(grad, x, seeds, 3, 0.7)
    for i in range(3):
        seed = seeds[i : i + 1]
        assert torch.equal(ops.subset(x[i], seed, 3), out[i])
        assert torch.equal(ops.subset_backward(grad[i], x[i], seed, 3, 0.7), gradient[i])


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
@pytest.mark.parametrize(
    "shape", [(37, 6), (7, 6), (400, 11), (70, 31), (33, 32), (3, 33), (2, 1024), (2, 1025), (1, 5000)], ids=str
)
def test_the_bits_of_the_cpu(device: str, shape: tuple[int, int]) -> None:
    cpu, seed = torch.ops.ste_ops, torch.tensor([11])
    for dtype, k in ((torch.float32, 5), (torch.float64, 2), (torch.bfloat16, 1)):
        x, grad = torch.randn(shape).mul(3).to(dtype), torch.randn(shape).to(dtype)
        x[:, 1] = -torch.inf
        out, gradient = ops.subset(x, seed, k), ops.subset_backward(grad, x, seed, k, 0.7)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(cpu.subset(x, seed, k), out)
                assert torch.equal(cpu.subset_backward(grad, x, seed, k, 0.7), gradient)
        finally:
            torch.set_num_threads(before)


def test_k_of_all_sizes(device: str) -> None:
    x = torch.randn(9, 6, device=device)
    x[4, 2] = -torch.inf
    for k in range(1, 6):
        out = ste_ops.subset_ste(x, k)
        assert torch.equal(out.sum(-1), torch.full((9,), float(k), device=device))
        assert ((out == 0) | (out == 1)).all()
        assert out[4, 2] == 0
    assert torch.equal(ste_ops.subset_ste(x[:4], 6), torch.ones(4, 6, device=device))


def test_one_of_them_is_the_categorical_draw(device: str) -> None:
    x = torch.randn(8, 6, dtype=torch.float64, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    results = []
    for draw in (
        lambda: ste_ops.subset_ste(x, 1, 0.6, generator=seeded(3, device)),
        lambda: ste_ops.categorical_ste(x, "gumbel", 0.6, generator=seeded(3, device)),
    ):
        out = draw()
        results.append((out.detach(), torch.autograd.grad(out, x, grad)[0]))
    torch.testing.assert_close(*results)


def subset_law(logits: Tensor, k: int) -> Tensor:
    """What each set of k is drawn with: the sum over its orders of drawing one after the other from what is left."""
    weights = torch.softmax(logits.double(), -1).tolist()
    law = torch.zeros(2 ** len(weights), dtype=torch.float64)
    for order in itertools.permutations(range(len(weights)), k):
        chance, left = 1.0, 1.0
        for i in order:
            chance, left = chance * weights[i] / left, left - weights[i]
        law[sum(2**i for i in order)] += chance
    return law


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize(("k", "dtype"), [(2, torch.float32), (3, torch.bfloat16)])
def test_law(device: str, k: int, dtype: torch.dtype) -> None:
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0, -0.3], dtype=dtype, device=device)
    draws = ste_ops.subset_ste(logits.expand(40_000, -1), k)
    sets = (draws.double() @ (2.0 ** torch.arange(5, device=device)).double()).long().cpu()
    law = subset_law(logits.cpu(), k)
    assert fits(sets, law)
    assert not fits(sets, torch.where(law > 0, law + 0.01, 0.0))
    # Sets in proportion to the product of their weights are another law.
    members = [[i for i in range(5) if s >> i & 1] for s in range(32)]
    independent = torch.stack([logits.double().cpu()[m].sum().exp() for m in members])
    assert not fits(sets, torch.where(law > 0, independent, 0.0))


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_the_gradient_tends_to_that_of_the_law(device: str) -> None:
    """For a linear function; at tau = 0.1 within 6 standard errors and a twentieth of the bias at tau = 1."""
    logits = torch.tensor([0.4, -0.5, 1.0], dtype=torch.float64)
    values = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    x = logits.clone().requires_grad_()
    weights = torch.softmax(x, -1)
    law = sum(
        weights[i] * weights[j] / (1 - weights[i]) * (values[i] + values[j])
        for i, j in itertools.permutations(range(3), 2)
    )
    (exact,) = torch.autograd.grad(law, x)

    def mean_and_error(tau: float) -> tuple[Tensor, Tensor]:
        rows = logits.to(device).expand(200_000, -1).contiguous().requires_grad_()
        (grad,) = torch.autograd.grad((ste_ops.subset_ste(rows, 2, tau) * values.to(device)).sum(), rows)
        return grad.mean(0).cpu(), grad.std(0).cpu() / 200_000**0.5

    soft, _ = mean_and_error(1.0)
    sharp, error = mean_and_error(0.1)
    bias = (soft - exact).abs()
    assert ((sharp - exact).abs() < 6 * error + bias.max() / 20).all()
    assert ((soft - exact).abs() > 6 * error + bias.max() / 20).any()


@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
def test_softmaxes_near_one_lose_nothing(device: str, tau: float) -> None:
    """1 - p is far below float32's resolution of p; the reference forms it by a sum in float64."""
    x = torch.tensor([[0.0, 30.0, 60.0, 61.0], [0.0, 1.0, 300.0, 600.0], [5.0, 5.0, 5.0, 80.0]], device=device)
    grad = torch.randn(3, 4, device=device)
    for k in (2, 3):
        results = []
        for of, dtype in ((ste_ops, torch.float32), (reference, torch.float64)):
            leaf = x.to(dtype).requires_grad_()
            out = of.subset_ste(leaf, k, tau, generator=seeded(8, device))
            results.append(torch.autograd.grad(out, leaf, grad.to(dtype))[0].double())
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-6)


def test_extremes_give_no_nan(device: str) -> None:
    for dtype in FLOATING:
        high = 6e4 if dtype == torch.float16 else 1e4
        x = torch.tensor([[high, -high, 0.0, 1.0], [-high] * 4, [high, high, -high, high], [-torch.inf, 0.0, 1.0, 3.0]])
        for k, tau in itertools.product((1, 2, 3), (1.0, 1e-3, 1e3)):
            leaf = x.to(dtype).to(device).requires_grad_()
            out = ste_ops.subset_ste(leaf, k, tau)
            (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out))
            assert grad.isfinite().all(), (dtype, k, tau, grad)
            assert out[3, 0] == grad[3, 0] == 0


@pytest.mark.parametrize("categories", [4, 1500])
def test_rows_that_cannot_be_drawn(device: str, categories: int) -> None:
    few = torch.full((3, categories), -torch.inf, device=device)
    few[:, :2] = 0.0
    few[:2] = 0.0
    invalid = torch.zeros(3, categories, device=device)
    invalid[2, 1] = torch.nan
    if raises_for_values(device):
        with pytest.raises(RuntimeError, match=r"subset_ste: k must be at most 2, the number of .* in row 2, got 3"):
            ste_ops.subset_ste(few, 3)
        with pytest.raises(RuntimeError, match="logits must be finite or -inf, got nan at index 1 of row 2"):
            ste_ops.subset_ste(invalid, 3)
    else:
        for x in (few, invalid):
            out = ste_ops.subset_ste(x, 3)
            assert out[2].isnan().all()
            assert torch.equal(out[:2].sum(-1), torch.full((2,), 3.0, device=device))


def test_bad_arguments(device: str) -> None:
    x = torch.zeros(2, 3, device=device)
    for error, message, call in (
        (ValueError, r"k must be in \[1, 3\], .*, got 0", lambda: ste_ops.subset_ste(x, 0)),
        (ValueError, r"k must be in \[1, 3\], .*, got 4", lambda: ste_ops.subset_ste(x, 4)),
        (TypeError, "k must be an int, got float", lambda: ste_ops.subset_ste(x, 1.0)),  # type: ignore[arg-type]
        (TypeError, "k must be an int, got bool", lambda: ste_ops.subset_ste(x, True)),
        (ValueError, "at least one dimension", lambda: ste_ops.subset_ste(x[0, 0], 1)),
        (ValueError, "tau must be in", lambda: ste_ops.subset_ste(x, 1, -1.0)),
    ):
        with pytest.raises(error, match=f"subset_ste: .*{message}|subset_ste: {message}"):
            call()


def test_refuses_a_gradient_of_another_shape(device: str) -> None:
    x, grad = torch.zeros(2, 3, device=device), torch.zeros(3, 2, device=device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"subset_backward: grad .* shape \[2, 3\], got \[3, 2\]"):
        ops.subset_backward(grad, x, seed, 2, 1.0)


@pytest.mark.parametrize(("k", "tau"), [(1, 1.0), (2, 0.6), (3, 1.0)])
def test_higher_derivatives(device: str, k: int, tau: float) -> None:
    x, grad = (torch.randn(2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    seed = torch.tensor([9], device=device)

    def pulled(grad: Tensor, x: Tensor) -> Tensor:
        return subset_gradient(grad, x, seed, k, tau)

    assert torch.autograd.gradcheck(pulled, (grad, x), check_forward_ad=True)
    if k == 2:
        assert torch.autograd.gradgradcheck(pulled, (grad, x))


def test_transforms(device: str) -> None:
    x, g = torch.randn(2, 4, 3, 5, dtype=torch.float64, device=device)

    def draw(x: Tensor) -> Tensor:
        return ste_ops.subset_ste(x, 2)

    def grad(x: Tensor, g: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (draw(x) * g).sum())(x)

    def twice(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: grad(y, x).square().sum())(x)

    for fn, arguments in ((draw, (x,)), (grad, (x, g)), (twice, (x,))):
        torch.manual_seed(1)
        batched = torch.vmap(fn, randomness="same")(*arguments)
        for i in range(4):
            torch.manual_seed(1)
            torch.testing.assert_close(batched[i], fn(*(a[i] for a in arguments)))
    different = torch.vmap(draw, randomness="different")(torch.zeros(6, 60, 5, device=device))
    assert len({tuple(row.flatten().tolist()) for row in different}) == 6

    def fixed(x: Tensor) -> Tensor:
        return ste_ops.subset_ste(x, 2, 0.7, generator=seeded(1, device))

    _, tangent = torch.func.jvp(fixed, (x,), (g,))
    _, pull = torch.func.vjp(fixed, x)
    torch.testing.assert_close((tangent * x).sum(), (pull(x)[0] * g).sum())


def test_compiles_whole_in_training(device: str) -> None:
    def loss(x: Tensor, g: Tensor) -> Tensor:
        return (ste_ops.subset_ste(x * 2, 2) * g).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    g, x = torch.randn(2, 10, 5, device=device)
    x.requires_grad_()
    compiled(x, g).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_what_is_saved() -> None:
    x = torch.randn(64, 10, requires_grad=True)
    assert saved_bytes(lambda: ste_ops.subset_ste(x, 3)) == x.untyped_storage().nbytes() + 8
