"""Alias tables and multinomial: equal to the reference, exact in their integers, right in their statistics."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from fractions import Fraction

import emulator
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._library import ops

FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def weights_with_specials(n: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Random weights of several magnitudes, zeros of both signs, a denormal, and in odd sizes one beside which all the
    others are small."""
    w = torch.rand(n, dtype=torch.float64) ** 8
    w[::5] = 0.0
    w[1::7] = -0.0
    w = w.to(dtype)
    w[n // 2] = torch.finfo(dtype).smallest_normal / 4
    if n % 2 == 1:
        w[n // 3] = torch.finfo(dtype).max / 2
    return w.to(device)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("n", [1, 2, 3, 64, 255, 256, 2048, 5000])
def test_table_equals_reference(device: str, dtype: torch.dtype, n: int) -> None:
    w = weights_with_specials(n, dtype)
    expected, table = reference.AliasTable(w), ste_ops.AliasTable(w.to(device))
    assert torch.equal(table.mass().cpu(), expected.mass())
    for seed in (0, 1, -1, 2**63, 2**64 - 1):
        assert torch.equal(table.sample_at(seed, 17, 300).cpu(), expected.sample_at(seed, 17, 300))


def test_long_table_equals_reference(device: str) -> None:
    # Several tiles of either backend, the last of them short.
    for w in (torch.rand(20_001), torch.arange(20_001.0), torch.cat([torch.full((9000,), 9.0), torch.ones(11_000)])):
        expected, table = reference.AliasTable(w), ste_ops.AliasTable(w.to(device))
        assert torch.equal(table.mass().cpu(), expected.mass())
        assert torch.equal(table.sample_at(1, 0, 500).cpu(), expected.sample_at(1, 0, 500))


def test_rows_equal_reference(device: str) -> None:
    w = torch.rand(5, 700) * torch.tensor([1.0, 1e-30, 1e30, 3.0, 1e-40])[:, None]
    expected, table = reference.AliasTable(w), ste_ops.AliasTable(w.to(device))
    assert torch.equal(table.mass().cpu(), expected.mass())
    assert torch.equal(table.sample_at(3, 0, 150).cpu(), expected.sample_at(3, 0, 150))
    # A row's draws depend on its number and its weights alone.
    assert torch.equal(ste_ops.AliasTable(w[:2].to(device)).sample_at(3, 0, 150), table.sample_at(3, 0, 150)[:2])


@pytest.mark.parametrize("make", [lambda w: w[:, ::2], lambda w: w.t(), lambda w: w[:1].expand(3, -1)])
def test_layouts(device: str, make: object) -> None:
    w = make(torch.rand(6, 8, device=device))  # type: ignore[operator]
    assert torch.equal(ste_ops.AliasTable(w).mass(), ste_ops.AliasTable(w.contiguous()).mass())


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.uint64]
)
def test_integer_weights(device: str, dtype: torch.dtype) -> None:
    w = torch.tensor([3, 0, 1, 1, 5], dtype=dtype, device=device)
    assert torch.equal(ste_ops.AliasTable(w).mass(), ste_ops.AliasTable(w.double()).mass())


def test_integers_beyond_float64_round() -> None:
    w = torch.tensor([2**63 - 1, 2**53 + 1, 2**62 + 1, 3])
    mass = ste_ops.AliasTable(w).mass()
    assert torch.equal(mass, ste_ops.AliasTable(torch.tensor([2.0**63, 2.0**53, 2.0**62, 3.0]).double()).mass())
    with pytest.raises(ValueError, match=r"weights must be non-negative, got -9\.22.*e\+18 at index 1"):
        ste_ops.AliasTable(torch.tensor([1, -(2**63)]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1e300) | st.sampled_from([0.0, 5e-324, 1e-310, 1.7e308]), min_size=1, max_size=40))
def test_mass_is_the_weights(weights: list[float]) -> None:
    if not any(weights):
        return
    table = ste_ops.AliasTable(torch.tensor(weights, dtype=torch.float64))
    mass = table.mass().tolist()
    n, total, weight_total = len(weights), sum(mass), sum(map(Fraction, weights))
    assert total % n == 0
    for m, w in zip(mass, weights, strict=True):
        assert (m == 0) == (w == 0)
        # Rounding moves a unit, and padding one more and n in total.
        assert abs(m - Fraction(w) / weight_total * total) <= 2 + Fraction(2 * n * m, total)
    assert table.probabilities().tolist() == pytest.approx([m / total for m in mass], rel=5e-16, abs=0)


def test_draws_at_any_number_of_threads(restore_threads: None) -> None:
    w = weights_with_specials(300_001, torch.float32)
    rows = torch.rand(1000, 300)
    p = torch.rand(300_001)
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        table = ste_ops.AliasTable(w)
        drawn = [table.mass(), table.sample_at(5, 0, 300_001), ste_ops.multinomial(rows, 200, True)]
        results.append([*drawn, ste_ops.bernoulli_ste(p)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_stream_is_cut_anywhere(device: str) -> None:
    for table in (ste_ops.AliasTable(torch.rand(50, device=device)), ste_ops.AliasTable(torch.rand(3, 50).to(device))):
        whole = table.sample_at(9, 0, 500)
        for cut in (0, 1, 127, 128, 129, 500):
            parts = [table.sample_at(9, 0, cut), table.sample_at(9, cut, 500 - cut)]
            assert torch.equal(torch.cat(parts, -1), whole)
    far = table.sample_at(9, 2**40 - 5, 10)
    assert torch.equal(far[:, 3:], table.sample_at(9, 2**40 - 2, 7))


@pytest.mark.parametrize(
    ("rows", "n", "num_samples"), [(1, 60, 50_001), (3, 60, 5), (2, 7, 300), (3, 9, 1000), (40, 5, 9), (6200, 3, 3)]
)
def test_draws_of_any_shape(device: str, rows: int, n: int, num_samples: int) -> None:
    # Against the CPU: rows that share a block or begin between two vectors, and more of both than a grid takes at once.
    w = torch.rand(rows, n)
    w[rows // 2] = 0
    seed = torch.tensor([5])
    native = torch.ops.ste_ops
    table = native.alias_table(w)
    expected = native.alias_sample(*table, seed, 3, num_samples, 1)
    drawn = ops.alias_sample(*(x.to(device) for x in (*table, seed)), 3, num_samples, 1)
    assert torch.equal(drawn.cpu(), expected)
    assert (expected[rows // 2] == -1).all()


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_share_a_stream(device: str, ranks: int) -> None:
    for w in (torch.rand(50), torch.rand(3, 50)):
        table, expected = ste_ops.AliasTable(w.to(device)), reference.AliasTable(w)
        parts = [table.sample_at(9, 4 + rank, 200, stride=ranks) for rank in range(ranks)]
        whole = torch.stack(parts, -1).reshape(*w.shape[:-1], -1)
        assert torch.equal(whole, table.sample_at(9, 4, 200 * ranks))
        assert torch.equal(parts[1].cpu(), expected.sample_at(9, 5, 200, stride=ranks))
    far = table.sample_at(9, 2**40 - 1, 3, stride=2**40)
    assert torch.equal(far.cpu(), expected.sample_at(9, 2**40 - 1, 3, stride=2**40))


def test_seeds_follow_the_generator(device: str) -> None:
    w = torch.rand(100, device=device)
    draw = lambda seed: ste_ops.multinomial(w, 50, True, generator=torch.Generator(device).manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(3)
    first, second = ste_ops.multinomial(w, 50, True), ste_ops.multinomial(w, 50, True)
    torch.manual_seed(3)
    assert torch.equal(first, ste_ops.multinomial(w, 50, True))
    assert not torch.equal(first, second)
    seed = torch.tensor([11], device=device)
    assert torch.equal(ste_ops.AliasTable(w).sample_at(seed, 0, 9), ste_ops.AliasTable(w).sample_at(11, 0, 9))


def test_multinomial_is_like_torch(device: str) -> None:
    for shape in ((7,), (4, 7), (0, 7)):
        w = torch.ones(shape, device=device)
        ours = ste_ops.multinomial(w, 12, replacement=True)
        assert ours.dtype == torch.int64
        assert ours.device == w.device
        assert ours.shape == (*shape[:-1], 12)
        assert ours.requires_grad is False


def test_multinomial_reads_no_gradient(device: str) -> None:
    w = torch.rand(5, device=device, requires_grad=True)
    assert not ste_ops.multinomial(w, 3, True).requires_grad


def test_more_than_2_24_categories() -> None:
    n = 2**24 + 1000
    w = torch.ones(n, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="2\\^24"):
        torch.multinomial(w, 1, True)
    table = ste_ops.AliasTable(w)
    assert table.mass().unique().tolist() == [int(table.mass()[0])]
    assert (table.sample(300_000) >= 2**24).any()  # the tail is there


def test_zero_weights_are_never_drawn(device: str) -> None:
    w = torch.ones(999, device=device)
    w[::2] = 0
    assert (ste_ops.multinomial(w, 50_000, True) % 2 == 1).all()


def test_a_tiny_weight_keeps_its_chance(device: str) -> None:
    mass = ste_ops.AliasTable(torch.tensor([1e308, 5e-324], dtype=torch.float64, device=device)).mass()
    assert mass[1] == 1


def test_copies_draw_the_same(device: str) -> None:
    table = ste_ops.AliasTable(torch.rand(3, 20, device=device))
    others = [copy.copy(table), table.to(device)]
    if not emulator.CHECK_EVERYTHING:  # memory that torch's allocator is not asked for
        others += [copy.deepcopy(table), pickle.loads(pickle.dumps(table))]
    for other in others:
        assert torch.equal(other.sample_at(1, 0, 40), table.sample_at(1, 0, 40))
    assert repr(table) == f"AliasTable(shape=(3, 20), device='{table.device}')"


BAD_WEIGHTS = [
    ([1.0, -0.5], r"weights must be non-negative, got -0\.5 at index 1"),
    ([float("nan"), -1.0], "weights must be finite and non-negative, got nan at index 0"),
    ([0.0, float("inf")], "weights must be finite and non-negative, got inf at index 1"),
    ([0.0, -float("inf")], "weights must be finite and non-negative, got -inf at index 1"),
    ([0.0, 0.0], "weights must have a positive sum, got only zeros$"),
    ([[1.0, 1.0], [1.0, -2.0]], r"weights must be non-negative, got -2\.0 at index \(1, 1\)"),
    ([[1.0, 1.0], [0.0, -0.0]], "weights must have a positive sum, got only zeros in row 1"),
    ([], r"weights must not be empty, got shape \(0,\)"),
    ([[[1.0]]], r"weights must be 1-D or 2-D, got shape \(1, 1, 1\)"),
    (1.0, r"weights must be 1-D or 2-D, got shape \(\)"),
    ([1j], "weights must be float64, float32, .*, got torch.complex64"),
]


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS)
def test_bad_weights_are_refused(device: str, weights: object, message: str) -> None:
    w = torch.tensor(weights, device=device)
    with pytest.raises(ValueError, match="^AliasTable: " + message):
        ste_ops.AliasTable(w)
    if ops.namespace == "ste_ops" and device == "cpu":  # elsewhere later: test_deferred_errors.py
        with pytest.raises(RuntimeError, match="^multinomial: " + message):
            ste_ops.multinomial(w, 1, True)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [float("nan")], [0.0, 0.0]])
def test_a_bad_table_draws_minus_one(device: str, weights: list[float]) -> None:
    w = torch.tensor([[1.0] * len(weights), weights], device=device)
    table, capacity = ops.alias_table(w)
    assert capacity[0] > 0 >= capacity[1]
    drawn = ops.alias_sample(table, capacity, torch.tensor([1], device=device), 0, 200)
    assert (drawn[0] >= 0).all()
    assert (drawn[1] == -1).all()


def test_the_first_bad_weight_is_named(device: str) -> None:
    w = torch.ones(10_000, device=device)
    w[[9999, 4321, 7000]] = -1.0
    with pytest.raises(ValueError, match=r"index 4321$"):
        ste_ops.AliasTable(w)


def test_bad_arguments_are_refused(device: str) -> None:
    w = torch.ones(3, device=device)
    table = ste_ops.AliasTable(w)
    for count, error, message in [
        (0, RuntimeError, "num_samples must be >= 1, got 0"),
        (-3, RuntimeError, "num_samples must be >= 1, got -3"),
        (2**62, RuntimeError, r"num_samples must be at most 2\*\*40"),
        (2.0, TypeError, "num_samples must be an int, got float"),
        (True, TypeError, "num_samples must be an int, got bool"),
    ]:
        with pytest.raises(error, match="^multinomial: " + message):
            ste_ops.multinomial(w, count, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights must be a tensor, got list"):
        ste_ops.multinomial([1.0], 1, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int"):
        ste_ops.multinomial(w, 1, True, generator=3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="generator must be on the device of the draws"):
        ste_ops.multinomial(w.to("meta"), 1, True, generator=torch.Generator())
    with pytest.raises(ValueError, match="start must be >= 0, got -1"):
        table.sample_at(0, -1, 1)
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        table.sample(0)
    with pytest.raises(ValueError, match="stride must be >= 1, got 0"):
        table.sample_at(0, 0, 1, stride=0)
    with pytest.raises(ValueError, match=r"numbers below 2\*\*63, got start 0, num_samples 8388608 and stride 10995"):
        table.sample_at(0, 0, 2**23, stride=2**40)


def test_operators_check_their_arguments(device: str) -> None:
    table, capacity = ops.alias_table(torch.ones(3, device=device))
    seed = torch.tensor([1], device=device)
    for arguments, message in [
        ((table.int(), capacity, seed, 0, 1), "table must be a contiguous int64 tensor"),
        ((table, capacity.expand(2), seed, 0, 1), "capacity must hold one int64 for each of 1 rows"),
        ((table, capacity, seed.int(), 0, 1), "seed must be int64"),
        ((table, capacity, seed.expand(2).contiguous(), 0, 1), "seed must have one element, got 2"),
        ((table, capacity, seed, -1, 1), "start must be >= 0, got -1"),
        ((table, capacity, seed, 0, -1), "num_samples must be >= 0, got -1"),
        ((table, capacity, seed, 0, 1, 0), "stride must be >= 1, got 0"),
        ((table, capacity, seed, 2**62, 2, 2**62), r"numbers below 2\^63, got start 4611686018427387904"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.alias_sample(*arguments)
    with pytest.raises(RuntimeError, match="weights must be 1-D or 2-D"):
        ops.alias_table(torch.ones(1, 1, 1, device=device))


@pytest.mark.parametrize("shape", [(6,), (3, 6)])
def test_opcheck(device: str, shape: tuple[int, ...]) -> None:
    w = torch.rand(shape, device=device)
    torch.library.opcheck(ops.alias_table, (w,))
    table, capacity = ops.alias_table(w)
    torch.library.opcheck(ops.alias_sample, (table, capacity, torch.tensor([4], device=device), 2, 5))


@pytest.mark.parametrize("shape", [(6,), (3, 6)])
def test_compiles_whole(device: str, shape: tuple[int, ...]) -> None:
    def draw(w: Tensor, k: int) -> Tensor:
        return ste_ops.multinomial(w * 2, k, True) + 1

    whole = ops.namespace == "ste_ops" and len(shape) == 2  # C++ of inductor's own takes seconds a graph
    compiled = torch.compile(draw, fullgraph=True, backend="inductor" if whole else "aot_eager")
    w = torch.zeros(shape, device=device)
    w[..., 2] = 1
    for k in (4, 5, 9):
        assert torch.equal(compiled(w, k), torch.full((*shape[:-1], k), 3, device=device))
    first, second = (compiled(torch.rand(1000, device=device), 50) for _ in range(2))
    assert not torch.equal(first, second)
