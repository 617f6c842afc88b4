"""Rounding and clamping against the reference, on every device; the statistics of stochastic rounding."""

import math

import pytest
import torch
from support.quantize_cases import filler, layouts, same_bits, special_values
from support.surrogate_table import DTYPES, assert_same_bits
from torch.func import grad, jvp, vmap

import ste_ops
from ste_ops import reference

nan, inf = math.nan, math.inf

FUNCTIONS = {
    "round": lambda m, x: m.round(x),
    "floor": lambda m, x: m.floor(x),
    "ceil": lambda m, x: m.ceil(x),
    "trunc": lambda m, x: m.trunc(x),
    "clamp": lambda m, x: m.clamp(x, -1.3, 0.7),
    "stochastic_round": lambda m, x: m.stochastic_round(x, generator=seeded(x)),
}


def seeded(x, seed=3):
    return torch.Generator(x.device).manual_seed(seed)


@pytest.mark.parametrize(
    ("x", "round", "floor", "ceil", "trunc", "clamp"),
    [
        (0.5, 0.0, 0.0, 1.0, 0.0, 0.5),
        (1.5, 2.0, 1.0, 2.0, 1.0, 1.0),
        (-0.5, -0.0, -1.0, -0.0, -0.0, -0.5),
        (-0.75, -1.0, -1.0, -0.0, -0.0, -0.75),
        (-2.5, -2.0, -3.0, -2.0, -2.0, -1.0),
        (-0.0, -0.0, -0.0, -0.0, -0.0, -0.0),
        (nan, nan, nan, nan, nan, nan),
        (inf, inf, inf, inf, inf, 1.0),
        (-inf, -inf, -inf, -inf, -inf, -1.0),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_in_the_docs(device, dtype, x, round, floor, ceil, trunc, clamp):
    """The reference is held to the same numbers, so that a mistake in both does not cancel."""
    x = torch.full((9,), x, dtype=dtype, device=device)
    for module in (ste_ops, reference):
        for name, value in (("round", round), ("floor", floor), ("ceil", ceil), ("trunc", trunc)):
            assert_same_bits(getattr(module, name)(x), torch.full_like(x, value), name, any_nan=True)
        assert_same_bits(module.clamp(x, -1, 1), torch.full_like(x, clamp), any_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_in_every_layout(device, dtype):
    for layout, x in layouts(dtype, device):
        upstream = filler(dtype, device, 1)(*x.shape)
        for name, fn in FUNCTIONS.items():
            if name == "stochastic_round" and layout not in ("contiguous", "transposed", "sliced", "empty", "scalar"):
                continue  # its reference draws one number after the other
            z = x.detach().requires_grad_()
            out, expected = fn(ste_ops, z), fn(reference, x)
            assert_same_bits(out.detach(), expected, f"{name} {layout}", any_nan=True)
            assert out.stride() == torch.empty_like(x).stride(), f"{name} {layout}"
            assert_same_bits(torch.autograd.grad(out, z, upstream)[0], upstream, f"{name} {layout}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_special_value_in_every_lane(device, dtype):
    x = special_values(dtype).to(device)
    x = torch.stack([x.roll(k) for k in range(17)]).flatten()
    for name in ("round", "floor", "ceil", "trunc", "clamp"):
        received, expected = FUNCTIONS[name](ste_ops, x), FUNCTIONS[name](reference, x)
        assert_same_bits(received, expected, name, any_nan=True)
        assert_same_bits(FUNCTIONS[name](ste_ops, received), received, f"{name} is idempotent", any_nan=True)
    assert same_bits(ste_ops.stochastic_round(x.round()), x.round())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_all_65536_values(device, dtype):
    x = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    for name in ("round", "floor", "ceil", "trunc", "clamp"):
        assert_same_bits(FUNCTIONS[name](ste_ops, x), FUNCTIONS[name](reference, x), name, any_nan=True)


# Stochastic rounding.


def mean_is_right(draws, x):
    """Whether the mean of the draws is within five standard errors of x: wrong once in two million."""
    p = x - math.floor(x)
    return abs(draws.double().mean().item() - x) <= 5 * math.sqrt(p * (1 - p) / draws.numel())


@pytest.mark.parametrize("x", [0.25, 7.9, -0.001953125, -3.4, 1e-5])
def test_the_mean_is_x(device, x):
    n = 40_000
    exact = torch.tensor(x, dtype=torch.float32).item()
    draws = ste_ops.stochastic_round(
        torch.full((n,), exact, device=device), generator=seeded(torch.ones((), device=device))
    )
    low = math.floor(exact)
    assert set(draws.unique().tolist()) <= {float(low), float(low + 1)}
    assert mean_is_right(draws, exact)
    if 0.01 < exact - low < 0.99:
        # A bias of two in a hundred would be found.
        assert not mean_is_right(draws + 0.02, exact)
        assert not mean_is_right(torch.full_like(draws, low), exact)


def test_neighbours_are_independent(device):
    draws = ste_ops.stochastic_round(
        torch.full((40_000,), 0.5, device=device), generator=seeded(torch.ones((), device=device))
    )
    for lag in (1, 2, 64):
        agree = (draws[lag:] == draws[:-lag]).double().mean().item()
        assert abs(agree - 0.5) < 5 * 0.5 / math.sqrt(40_000), lag


def test_a_seed_decides_the_draws(device):
    x = torch.randn(1000, device=device)
    first = ste_ops.stochastic_round(x, generator=seeded(x))
    assert torch.equal(first, ste_ops.stochastic_round(x, generator=seeded(x)))
    assert not torch.equal(first, ste_ops.stochastic_round(x, generator=seeded(x, 4)))
    torch.manual_seed(1)
    second = ste_ops.stochastic_round(x)
    assert not torch.equal(second, ste_ops.stochastic_round(x))
    torch.manual_seed(1)
    assert torch.equal(second, ste_ops.stochastic_round(x))


def test_many_threads_equal_one(device):
    x, threads, results = torch.randn(200_003, device=device), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(ste_ops.stochastic_round(x, generator=seeded(x)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_vmap_randomness(device):
    x = torch.full((4, 500), 0.5, device=device)
    same = vmap(ste_ops.stochastic_round, randomness="same")(x)
    assert bool((same == same[0]).all())
    different = vmap(ste_ops.stochastic_round, randomness="different")(x)
    assert not bool((different == different[0]).all())
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(ste_ops.stochastic_round)(x)
    torch.manual_seed(5)
    alone = ste_ops.stochastic_round(x[0])
    torch.manual_seed(5)
    assert torch.equal(vmap(ste_ops.stochastic_round, randomness="same", in_dims=1)(x.t().contiguous())[2], alone)


# Transforms, and what is refused.


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(device, name):
    def fn(x):
        return FUNCTIONS[name](ste_ops, x)

    x, v = torch.randn(3, 5, device=device) * 2, torch.randn(3, 5, device=device)
    out, tangent = jvp(fn, (x,), (v,))
    assert torch.equal(out, fn(x))
    assert torch.equal(tangent, v)
    assert torch.equal(grad(lambda x: (fn(x) * v).sum())(x), v)
    if name == "stochastic_round":
        return
    assert torch.equal(vmap(fn, in_dims=1, out_dims=1)(x), fn(x))
    assert torch.equal(vmap(vmap(grad(lambda x: fn(x) * 3)))(x), torch.full_like(x, 3))


def test_nothing_is_saved(device):
    x = torch.randn(64, device=device, requires_grad=True)
    for name, fn in FUNCTIONS.items():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            fn(ste_ops, x)
        assert not saved, name


def test_compiles(device):
    torch._dynamo.reset()

    def loss(x):
        y = ste_ops.round(x * 3) + ste_ops.floor(x).cos() * ste_ops.clamp(x.t(), -1, 0.5).t()
        return (y + ste_ops.ceil(x) * ste_ops.trunc(x)).square().sum()

    x = torch.randn(5, 7, device=device, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    torch.testing.assert_close(*(torch.autograd.grad(f(x), x) for f in (compiled, loss)))
    y = torch.compile(ste_ops.stochastic_round, fullgraph=True, backend="aot_eager")(x)
    assert bool(((y - x).abs() < 1).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_refused(name):
    fn = FUNCTIONS[name]
    with pytest.raises(TypeError, match=f"{name}: x must be a tensor, got list"):
        getattr(ste_ops, name)([1.0], *((0, 1) if name == "clamp" else ()))
    with pytest.raises(TypeError, match=f"{name}: x must be float64, .*, got torch.int64"):
        fn(ste_ops, torch.arange(3))


def test_bounds_of_clamp_are_checked():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="clamp: min must not be greater than max, got 2 and 1"):
        ste_ops.clamp(x, 2, 1)
    with pytest.raises(ValueError, match="clamp: max must not be NaN"):
        ste_ops.clamp(x, 0, nan)
    with pytest.raises(ValueError, match="clamp: min must be a number or a floating tensor of one element, got"):
        ste_ops.clamp(x, x, 1)
    with pytest.raises(TypeError, match="clamp: min must be a number, got '1'"):
        ste_ops.clamp(x, "1", 1)
    assert ste_ops.clamp(x, -inf, inf).tolist() == ste_ops.clamp(x, 1, 1).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match=r"stochastic_round: generator must be a torch\.Generator or None, got int"):
        ste_ops.stochastic_round(x, generator=3)
