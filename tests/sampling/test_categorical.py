"""categorical_ste: the reference's draws and gradients, the law of softmax, higher derivatives and transforms."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.categorical_cases import ESTIMATORS, FLOATING, LAYOUTS, raises_for_values, saved_bytes, seeded
from support.chi_square import fits
from torch import Tensor
from torch.autograd import forward_ad

import ste_ops
from ste_ops import reference
from ste_ops._functions.sampling.categorical import GUMBEL, REINMAX, STRAIGHT_THROUGH, categorical_gradient
from ste_ops._library import ops

NUMBERS = [STRAIGHT_THROUGH, GUMBEL, REINMAX]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING)
def test_equals_reference(device: str, dtype: torch.dtype, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 7).mul(2).to(dtype).to(device)).requires_grad_()
    grad = torch.randn_like(x)
    for estimator, tau in itertools.product(ESTIMATORS, (1.0, 0.5)):
        ours, theirs = (
            of.categorical_ste(x, estimator, tau, generator=seeded(5, device)) for of in (ste_ops, reference)
        )
        assert torch.equal(ours, theirs)
        assert ours.dtype == dtype
        assert ours.stride() == torch.empty_like(x).stride()
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
        received, expected = (torch.autograd.grad(out, x, grad)[0] for out in (ours, theirs))
        torch.testing.assert_close(received, expected, **tolerance)


@pytest.mark.parametrize("rows", [3, 40, 300])
@pytest.mark.parametrize("n", [5, 40])
def test_each_seed_has_a_stretch_of_its_own(device: str, rows: int, n: int) -> None:
    """As vmap with different randomness calls it; 3 rows are few to be taken together, 300 of 5 more than a block."""
    seeds = torch.tensor([3, -8, 2**40], device=device)
    x, grad = torch.randn(2, 3, rows, n, device=device)
    out, index = ops.categorical(x, seeds)
    gradients = [ops.categorical_backward(grad, x, seeds, index, e, 0.7) for e in NUMBERS]
    for i in range(3):
        seed = seeds[i : i + 1]
        assert all(map(torch.equal, ops.categorical(x[i], seed), (out[i], index[i])))
        for estimator, gradient in zip(NUMBERS, gradients, strict=True):
            alone = ops.categorical_backward(grad[i], x[i], seed, index[i], estimator, 0.7)
            assert torch.equal(alone, gradient[i])


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
@pytest.mark.parametrize(
    "shape", [(37, 3), (7, 3), (1300, 4), (70, 31), (33, 32), (3, 33), (2, 1024), (2, 1025), (1, 9000)], ids=str
)
def test_the_bits_of_the_cpu(device: str, shape: tuple[int, int]) -> None:
    """Rows of part of a warp, too few of them to lie transposed, of a warp, of one tile, of a block; one thread and
    two."""
    cpu, seed = torch.ops.ste_ops, torch.tensor([11])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, grad = torch.randn(shape).mul(3).to(dtype), torch.randn(shape).to(dtype)
        x[:, 1] = -torch.inf
        out, index = ops.categorical(x, seed)
        noise = ops.gumbel_noise(x, seed)
        gradients = [ops.categorical_backward(grad, x, seed, index, e, 0.7) for e in NUMBERS]
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert all(map(torch.equal, cpu.categorical(x, seed), (out, index)))
                assert torch.equal(cpu.gumbel_noise(x, seed), noise)
                for estimator, gradient in zip(NUMBERS, gradients, strict=True):
                    assert torch.equal(cpu.categorical_backward(grad, x, seed, index, estimator, 0.7), gradient)
        finally:
            torch.set_num_threads(before)


def test_one_seed_is_one_draw(device: str) -> None:
    x = torch.randn(30, 6, device=device)
    draws = [
        ste_ops.categorical_ste(x, e, tau, generator=seeded(2, device)) for e in ESTIMATORS for tau in (0.1, 1.0, 5.0)
    ]
    assert all(torch.equal(draw, draws[0]) for draw in draws)
    assert torch.equal(ste_ops.categorical_ste(x[:7], generator=seeded(2, device)), draws[0][:7])
    assert not torch.equal(ste_ops.categorical_ste(x, generator=seeded(3, device)), draws[0])


# The law of the draw.


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize(("categories", "dtype"), [(2, torch.float32), (7, torch.float16), (1300, torch.float64)])
def test_law(device: str, categories: int, dtype: torch.dtype) -> None:
    rows = 60_000 if categories < 100 else 3_000
    logits = torch.randn(categories).mul(2).to(dtype).to(device)
    draws = ste_ops.categorical_ste(logits.expand(rows, -1)).argmax(-1).cpu()
    truth = torch.softmax(logits.double(), -1).cpu()
    assert fits(draws, truth)
    assert not fits(draws, torch.softmax(logits.double() * (0.9 if categories < 100 else 0.5), -1).cpu())


def test_large_logits_keep_the_law(device: str) -> None:
    """The noise of 1e4 + noise would be rounded to multiples of 1e-3 in float32, of 8 in float16."""
    logits = torch.tensor([6e4, 6e4, 6e4 - 32], device=device, dtype=torch.float16)
    draws = ste_ops.categorical_ste(logits.expand(3000, -1)).argmax(-1).cpu()
    assert fits(draws, torch.tensor([0.5, 0.5, 0.0]))


def test_extremes_give_no_nan(device: str) -> None:
    for dtype in FLOATING:
        high = 6e4 if dtype == torch.float16 else 1e4
        x = torch.tensor(
            [[high, -high, 0.0, 1.0], [-high] * 4, [high, high, -high, high], [-torch.inf, 0.0, -torch.inf, 3.0]]
        )
        for estimator, tau in itertools.product(ESTIMATORS, (1.0, 1e-3, 1e3)):
            leaf = x.to(dtype).to(device).requires_grad_()
            out = ste_ops.categorical_ste(leaf, estimator, tau)
            assert torch.equal(out.sum(-1), out.new_ones(4))
            assert (out[3, [0, 2]] == 0).all()
            (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out))
            assert grad.isfinite().all()
            assert (grad[3, [0, 2]] == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("categories", [3, 2000])
def test_rows_that_cannot_be_drawn(device: str, bad: float, categories: int) -> None:
    x = torch.zeros(4, categories, device=device)
    x[2, :] = bad
    if bad > 0 or bad != bad:
        x[2, 1:] = -torch.inf
    if raises_for_values(device):
        message = "got only -inf in row 2" if bad < 0 else f"must be finite or -inf, got {bad} at index 0 of row 2"
        with pytest.raises(RuntimeError, match=f"categorical_ste: logits .*{message}"):
            ste_ops.categorical_ste(x)
    else:
        leaf = x.requires_grad_()
        for estimator in ESTIMATORS:
            out = ste_ops.categorical_ste(leaf, estimator)
            (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out))
            for each in (out, grad):
                assert each[2].isnan().all()
                assert each[[0, 1, 3]].isfinite().all()


def test_bad_arguments(device: str) -> None:
    x = torch.zeros(2, 3, device=device)
    for error, message, call in (
        (TypeError, "logits must be a tensor, got list", lambda: ste_ops.categorical_ste([0.0])),  # type: ignore[arg-type]
        (TypeError, "logits must be float64, .* got torch.int64", lambda: ste_ops.categorical_ste(x.long())),
        (ValueError, r"at least one dimension, got shape \(\)", lambda: ste_ops.categorical_ste(x[0, 0])),
        (ValueError, r"at least one category, got shape \(2, 0\)", lambda: ste_ops.categorical_ste(x[:, :0])),
        (ValueError, "estimator must be one of .*, got 'gumble'", lambda: ste_ops.categorical_ste(x, "gumble")),  # type: ignore[arg-type]
        (ValueError, r"tau must be in \[1e-30, 1e30\], got 0", lambda: ste_ops.categorical_ste(x, tau=0.0)),
        (ValueError, "tau must be in .*, got nan", lambda: ste_ops.categorical_ste(x, tau=float("nan"))),
        (TypeError, "tau must be a number, got str", lambda: ste_ops.categorical_ste(x, tau="1")),  # type: ignore[arg-type]
        (TypeError, "generator must be", lambda: ste_ops.categorical_ste(x, generator=1)),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=f"categorical_ste: .*{message}|categorical_ste: {message}"):
            call()


def test_refuses_a_gradient_of_another_shape(device: str) -> None:
    x, grad = torch.zeros(2, 3, device=device), torch.zeros(3, 2, device=device)
    seed, index = (torch.zeros(count, dtype=torch.int64, device=device) for count in (1, 2))
    for estimator in NUMBERS:
        with pytest.raises(RuntimeError, match=r"categorical_backward: grad .* shape \[2, 3\], got \[3, 2\]"):
            ops.categorical_backward(grad, x, seed, index, estimator, 1.0)


# Derivatives of the gradient, and transforms.


@pytest.mark.parametrize("tau", [1.0, 0.6])
@pytest.mark.parametrize("estimator", NUMBERS)
def test_higher_derivatives(device: str, estimator: int, tau: float) -> None:
    x, grad = (torch.randn(2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    seed = torch.tensor([9], device=device)
    index = ops.categorical(x.detach(), seed)[1]

    def pulled(grad: Tensor, x: Tensor) -> Tensor:
        return categorical_gradient(grad, x, seed, index, estimator, tau)

    assert torch.autograd.gradcheck(pulled, (grad, x), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pulled, (grad, x))


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
def test_create_graph_is_that_of_the_relaxed_function(device: str, estimator: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)
    results = []
    for of in (ste_ops, reference):
        out = of.categorical_ste(x, estimator, 0.8, generator=seeded(4, device))
        (first,) = torch.autograd.grad((out * x).sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*results)


def test_forward_mode(device: str) -> None:
    x, tangent = torch.randn(2, 3, 5, dtype=torch.float64, device=device)
    for estimator in ESTIMATORS:

        def fn(x: Tensor, estimator: str = estimator) -> Tensor:
            return ste_ops.categorical_ste(x, estimator, 0.7, generator=seeded(1, device))

        _, pull = torch.func.vjp(fn, x)
        _, received = torch.func.jvp(fn, (x,), (tangent,))
        torch.testing.assert_close(received, pull(tangent)[0])  # the matrices are symmetric
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(fn(forward_ad.make_dual(x, tangent)))
            torch.testing.assert_close(dual.tangent, received)


def test_func_grad_and_jacobian(device: str) -> None:
    x, grad = torch.randn(2, 6, device=device)
    for estimator in ESTIMATORS:

        def fn(x: Tensor, estimator: str = estimator) -> Tensor:
            return ste_ops.categorical_ste(x, estimator, generator=seeded(1, device))

        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(fn(leaf), leaf, grad)
        torch.testing.assert_close(torch.func.grad(lambda x, fn=fn: (fn(x) * grad).sum())(x), expected)
        torch.testing.assert_close(torch.func.jacrev(fn)(x).t() @ grad, expected)
        gradient = torch.func.grad(lambda x, fn=fn: (fn(x) * x).sum())
        hessian = torch.func.jacfwd(gradient, randomness="same")(x)
        torch.testing.assert_close(hessian, torch.func.jacrev(gradient)(x))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_vmap(device: str, estimator: str) -> None:
    x, g = torch.randn(2, 4, 3, 5, device=device)

    def draw(x: Tensor) -> Tensor:
        return ste_ops.categorical_ste(x, estimator)

    def grad(x: Tensor, g: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (draw(x) * g).sum())(x)

    for in_dim in (0, 1):
        torch.manual_seed(1)
        batched = torch.vmap(draw, in_dims=in_dim, randomness="same")(x)
        torch.manual_seed(1)
        gradients = torch.vmap(grad, in_dims=in_dim, randomness="same")(x, g)
        for i in range(x.shape[in_dim]):
            torch.manual_seed(1)
            assert torch.equal(batched[i], draw(x.select(in_dim, i)))
            torch.manual_seed(1)
            torch.testing.assert_close(gradients[i], grad(x.select(in_dim, i), g.select(in_dim, i)))
    flat = torch.zeros(6, 60, 2, device=device)
    different = torch.vmap(draw, randomness="different")(flat)
    assert len({tuple(row.flatten().tolist()) for row in different}) == 6
    assert torch.vmap(grad, randomness="different")(x, g).isfinite().all()
    nested = torch.vmap(torch.vmap(draw, randomness="different"), randomness="different")(x)
    assert torch.equal(nested.sum(-1), torch.ones(4, 3, device=device))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(draw)(x)


def test_compiles_whole_in_training(device: str) -> None:
    def loss(x: Tensor, g: Tensor) -> Tensor:
        return (ste_ops.categorical_ste(x * 2, "reinmax") * g).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    g, x = torch.randn(2, 40, 5, device=device)
    x.requires_grad_()
    compiled(x, g).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(x.grad.sum(-1), torch.zeros(40, device=device), atol=1e-5, rtol=0)
    assert len({compiled(x, g).item() for _ in range(4)}) > 1


def test_autocast_leaves_the_dtype(device: str) -> None:
    with torch.autocast(device, dtype=torch.bfloat16):
        linear = torch.nn.Linear(4, 3, device=device)(torch.randn(2, 4, device=device))
        assert ste_ops.categorical_ste(linear).dtype == torch.bfloat16
    assert ste_ops.categorical_ste(linear.float()).dtype == torch.float32


@pytest.mark.parametrize(("estimator", "beside"), [("straight_through", 0), ("gumbel", 512), ("reinmax", 512)])
def test_what_is_saved(estimator: str, beside: int) -> None:
    x = torch.randn(64, 10, requires_grad=True)
    assert saved_bytes(lambda: ste_ops.categorical_ste(x, estimator)) == x.untyped_storage().nbytes() + 8 + beside
