"""Resampling: equal to the reference, the exact law of the counts, and unbiased past a million particles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch
from support.chi_square import fits
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.reference.sampling.weights import masses

NAMES = ["systematic_resample", "stratified_resample", "residual_resample"]
FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(name: str, weights: Tensor, num_samples: int, seed: int = 0, module: object = ste_ops) -> Tensor:
    generator = torch.Generator(weights.device).manual_seed(seed)
    return getattr(module, name)(weights, num_samples, generator=generator)


def native(name: str, weights: Tensor, num_samples: int, seed: int) -> Tensor:
    """Under the seed itself."""
    return getattr(ops, name)(weights, torch.tensor([seed], device=weights.device), num_samples)


def kinds_of_weights(n: int) -> Iterator[Tensor]:
    yield torch.rand(n) ** 4
    yield torch.ones(n)
    w = torch.zeros(n)
    w[n // 2] = 1.0
    yield w
    w = torch.rand(n, dtype=torch.float64) * (torch.arange(n) % 3 > 0) + (torch.arange(n) == n - 1) * n
    w[0] = 5e-324
    yield w


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("n", "num_samples"), [(1, 1), (1, 300), (5, 3), (3, 1000), (1000, 10), (2500, 2500), (5000, 1)]
)
def test_equals_reference(device: str, name: str, n: int, num_samples: int) -> None:
    for w in kinds_of_weights(n):
        for seed in (0, 2**63 + 1):
            # The reference takes the generator's seed; on CUDA a generator gives another one.
            drawn_seed = int(torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(seed)))
            assert torch.equal(
                native(name, w.to(device), num_samples, drawn_seed).cpu(), draw(name, w, num_samples, seed, reference)
            )


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_dtypes_equal_reference(device: str, name: str) -> None:
    w = torch.rand(5, 70) * torch.tensor([1.0, 1e-30, 1e30, 3.0, 1e-40])[:, None]
    drawn = native(name, w.to(device), 50, 7)
    for row in range(5):
        alone = getattr(ops, name)(w[: row + 1].to(device), torch.tensor([7], device=device), 50)
        assert torch.equal(alone, drawn[: row + 1])  # a row's draws depend on its number and its weights alone
    seed = int(torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(3)))
    assert torch.equal(native(name, w.to(device), 50, seed).cpu(), draw(name, w, 50, 3, reference))
    for dtype in FLOATING:
        w = torch.rand(3, 20).to(dtype)
        assert torch.equal(native(name, w.to(device), 33, seed).cpu(), draw(name, w, 33, 3, reference))
    w = torch.rand(40, 6, device=device)
    assert torch.equal(native(name, w.t(), 9, 1), native(name, w.t().contiguous(), 9, 1))


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads(name: str) -> None:
    before = torch.get_num_threads()
    w = torch.rand(60_001) ** 8
    rows = torch.rand(300, 300)
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([native(name, w, 70_003, 5), native(name, w[:50], 90_000, 5), native(name, rows, 100, 5)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def law_of_counts(name: str, counts: list[int], expected: list[Fraction]) -> bool:
    """What holds of every single resampling."""
    floors = [x.numerator // x.denominator for x in expected]
    if name == "systematic_resample":
        return all(c in (f, f + (x > f)) for c, f, x in zip(counts, floors, expected, strict=True))
    if name == "stratified_resample":
        return all(x - 2 < c < x + 2 and (c == 0 if x == 0 else True) for c, x in zip(counts, expected, strict=True))
    return all(f <= c and (c == 0 if x == 0 else True) for c, f, x in zip(counts, floors, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_law_of_the_counts(name: str) -> None:
    for n, num_samples in itertools.product((2, 5, 40), (1, 7, 100)):
        w = torch.rand(n, dtype=torch.float64) ** 3
        w[n // 2] = 0
        mass = masses(w.tolist())
        expected = [Fraction(num_samples * m, sum(mass)) for m in mass]
        for seed in range(20):
            drawn = native(name, w, num_samples, seed)
            if name != "residual_resample":
                assert (drawn.diff() >= 0).all()
            else:
                copies = sum(x.numerator // x.denominator for x in expected)
                assert (drawn[:copies].diff() >= 0).all()
            counts = torch.bincount(drawn, minlength=n).tolist()
            assert law_of_counts(name, counts, expected)
        assert not law_of_counts(name, [c - num_samples - 2 for c in counts], expected)


# Of each scheme the expectation of every count is N p: in a reference over a grid of its uniforms, exactly.


def mean_counts(
    ancestors: Callable[..., list[int]], mass: list[int], grid: Iterator[object], of: int
) -> list[Fraction]:
    total = [0] * len(mass)
    for u in grid:
        for i in ancestors(u):
            total[i] += 1
    return [Fraction(t, of) for t in total]


@pytest.mark.parametrize("mass", [[3, 0, 1], [1, 1, 1, 1, 1], [7, 2, 0, 3], [1, 9]])
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_expected_counts_are_exact(monkeypatch: pytest.MonkeyPatch, mass: list[int], num_samples: int) -> None:
    """Uniforms from a grid that no stretch of weight cuts, through the reference, which the kernels equal."""
    from ste_ops.reference.sampling import resample

    n, total = len(mass), sum(mass)
    # Masses of power-of-two unit: `total` is divided among them alone.
    monkeypatch.setattr(resample, "masses", lambda weights: mass)
    expected = [Fraction(num_samples * m, total) for m in mass]
    grid = [((2 * j + 1) << 63) // total for j in range(total)]  # the middle of each of `total` equal stretches

    def run(name: str, bits: Callable[[int], tuple[int, int]]) -> list[int]:
        monkeypatch.setattr(resample, "random_bits", lambda seed, row, k: bits(k))
        return getattr(resample, name)(torch.ones(n), num_samples).tolist()

    systematic = mean_counts(lambda u: run("systematic_resample", lambda k: (u, 0)), mass, iter(grid), total)
    assert systematic == expected
    points = itertools.product(grid, repeat=num_samples)
    stratified = mean_counts(
        lambda u: run("stratified_resample", lambda k: (u[k], 0)), mass, points, total**num_samples
    )
    assert stratified == expected
    # One residual draw after the other has the same law; buckets and units are drawn apart.
    rest = num_samples - sum(num_samples * m // total for m in mass)
    cells = [(((2 * b + 1) << 63) // max(rest, 1), u) for b in range(rest) for u in grid] or [(0, 0)]
    residual = mean_counts(lambda c: run("residual_resample", lambda k: c), mass, iter(cells), len(cells))
    assert residual == expected


@pytest.mark.parametrize("name", NAMES)
def test_statistics(name: str) -> None:
    """The counts over many rows against N p; weights of which one is a tenth off fail."""
    w = torch.rand(30) ** 3
    w[4] = 0

    def counts(weights: Tensor) -> Tensor:
        return draw(name, weights.expand(20_000, -1), 3)

    # Ancestors of one row depend on each other; the first of a row in a random place do not.
    place = torch.randint(0, 3, (20_000, 1))
    assert fits(counts(w).gather(1, place), w)
    biased = w.clone()
    biased[w.argmax()] *= 1.2
    assert not fits(counts(biased).gather(1, place), w)


@pytest.mark.parametrize("name", NAMES)
def test_unbiased_past_a_million_particles(name: str) -> None:
    """float32 weights 2:1 over 2^24 + 1000 particles, of which float32 sums would lose the last thousand."""
    n = 2**24 + 1000
    w = torch.ones(n)
    w[: n // 2] = 2.0
    drawn = draw(name, w, 300_000)
    heavy = int((drawn < n // 2).sum())
    if name == "residual_resample":  # every copy is a draw here
        assert fits((drawn >= n // 2).long(), torch.tensor([2.0, 1.0]))
        assert not fits((drawn >= n // 2).long(), torch.tensor([2.1, 1.0]))
    else:
        assert heavy in (200_000, 200_001, 199_999)
    tail = int((drawn >= 2**24).sum())
    assert abs(tail - 300_000 * 1000 / (1.5 * n)) < (2 if name != "residual_resample" else 40)


def test_float32_sums_are_biased_there() -> None:
    """What the exact sums are for: the same in float32 gives whole stretches of particles nothing or too much."""
    n = 2**24 + 1000
    in_float = torch.ones(n).cumsum(0)
    last = (torch.arange(n - 1500, n, dtype=torch.float64) + 0.5) / n  # a point for each of these particles
    drawn = torch.searchsorted(in_float / in_float[-1], last.float())
    assert (torch.bincount(drawn.clamp(max=n - 1), minlength=n)[-1000:] != 1).any()
    assert torch.equal(draw("systematic_resample", torch.ones(n), n), torch.arange(n))


@pytest.mark.parametrize("name", NAMES)
def test_zero_weights_get_no_copy(device: str, name: str) -> None:
    w = torch.ones(999, device=device)
    w[::2] = 0
    assert (draw(name, w, 20_000) % 2 == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_results_are_like_multinomial(device: str, name: str) -> None:
    resample = getattr(ste_ops, name)
    for shape in ((7,), (4, 7), (0, 7)):
        w = torch.ones(shape, device=device, requires_grad=True)
        drawn = resample(w, 12)
        assert drawn.dtype == torch.int64
        assert drawn.device == w.device
        assert drawn.shape == (*shape[:-1], 12)
        assert not drawn.requires_grad
    assert torch.equal(draw(name, torch.tensor([3, 0, 1]), 8, 5), draw(name, torch.tensor([3.0, 0.0, 1.0]), 8, 5))
    torch.manual_seed(3)
    w = torch.rand(50, device=device)
    first, second = resample(w, 50), resample(w, 50)
    assert not torch.equal(first, second)


BAD_WEIGHTS = [
    ([1.0, -0.5], r"weights must be non-negative, got -0\.5 at index 1"),
    ([0.0, float("inf")], "weights must be finite and non-negative, got inf at index 1"),
    ([0.0, -0.0], "weights must have a positive sum, got only zeros$"),
    ([[1.0, 1.0], [float("nan"), -2.0]], r"weights must be finite and non-negative, got nan at index \(1, 0\)"),
    ([[1.0, 1.0], [0.0, 0.0]], "weights must have a positive sum, got only zeros in row 1"),
]


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused(device: str, name: str) -> None:
    resample = getattr(ste_ops, name)
    for weights, message in BAD_WEIGHTS:
        w = torch.tensor(weights, device=device)
        if device == "cpu" and ops.namespace == "ste_ops":
            with pytest.raises(RuntimeError, match=f"^{name}: {message}"):
                resample(w, 3)
            continue
        drawn = resample(w, 9).reshape(-1, 9)
        assert (drawn[-1] == -1).all()
        assert (drawn[:-1] >= 0).all()
        with pytest.raises(RuntimeError, match=f"^{name}: {message.removesuffix('$')}.*in an earlier call"):
            ste_ops.check_deferred_errors(device)
    with pytest.raises(ValueError, match=rf"^{name}: weights must not be empty, got shape \(0,\)"):
        resample(torch.ones(0, device=device), 1)
    w = torch.ones(3, device=device)
    for count, error, message in [
        (0, ValueError, "num_samples must be >= 1, got 0"),
        (2**41, ValueError, r"num_samples must be at most 2\*\*40"),
        (1.0, TypeError, "num_samples must be an int, got float"),
    ]:
        with pytest.raises(error, match=f"^{name}: {message}"):
            resample(w, count)
    with pytest.raises(TypeError, match=f"^{name}: weights must be a tensor, got list"):
        resample([1.0], 1)


def test_compiles_whole(device: str) -> None:
    def draw_two(w: Tensor, k: int) -> Tensor:
        return ste_ops.systematic_resample(w * 2, k) + ste_ops.residual_resample(w, k)

    w = torch.zeros(3, 6, device=device)
    w[:, 2] = 1
    compiled = torch.compile(draw_two, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w, 5), torch.full((3, 5), 4, device=device))
