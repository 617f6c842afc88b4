"""csrc/core/sampling/philox.h, mass.h, alias.h and bernoulli.h against published vectors, NumPy and exact integers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import native
from ste_ops._random import philox, random_bits
from ste_ops.reference.sampling.alias import alias_columns
from ste_ops.reference.sampling.inverse_cdf import uniform_below

core = native.load().sampling
FULL = 2**32 - 1
DTYPES = {"float64": (np.float64, np.uint64), "float32": (np.float32, np.uint32), "float16": (np.float16, np.uint16)}


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([FULL] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_has_the_published_vectors(counter: list[int], key: int, expected: list[int]) -> None:
    # Random123 1.14, tests/kat_vectors, "philox4x32 10".
    assert core.philox(counter, key) == expected
    assert list(philox(tuple(counter), (key & FULL, key >> 32))) == expected


@pytest.mark.parametrize("first", [0, 2**32 - 20, 2**64 - 64])
def test_philox_blocks_are_single_draws(first: int) -> None:
    low, high = core.philox_block(2**63 + 5, 77, first)
    assert [(int(a), int(b)) for a, b in zip(low, high, strict=True)] == [
        random_bits(2**63 + 5, 77, first + i) for i in range(64)
    ]


def values(name: str) -> np.ndarray:
    """Magnitudes of every kind: zero, denormals, powers of two, ties, the largest."""
    dtype, bits = DTYPES[name]
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    random = rng.integers(0, int(np.array(info.max).view(bits)), 500, dtype=np.uint64).astype(bits).view(dtype)
    specials = np.array([0, info.smallest_subnormal, info.tiny, 0.5, 1, 1.5, 2.5, 3.5, info.max], dtype)
    return np.concatenate([random, specials])


@pytest.mark.parametrize("name", DTYPES)
def test_mass_rounds_half_to_even(name: str) -> None:
    x = values(name)
    bits = x.view(DTYPES[name][1])
    largest = math.frexp(float(x.max()))[1]
    for exponent in [-largest, 1 - largest, 20 - largest, 40 - largest, 62 - largest]:
        expected = [round(Fraction(float(v)) * Fraction(2) ** exponent) for v in x]
        assert getattr(core, name).coarse_mass(bits, exponent).tolist() == expected
        lifted = [max(m, int(v > 0)) for m, v in zip(expected, x, strict=True)]
        assert getattr(core, name).mass(bits, exponent).tolist() == lifted


def test_mass_of_bfloat16_is_that_of_float32() -> None:
    bits = np.arange(0, 0x7F80, 7, dtype=np.uint16)
    wide = bits.astype(np.uint32) << 16
    assert (core.bfloat16.mass(bits, -66) == core.float32.mass(wide, -66)).all()


@pytest.mark.parametrize("name", DTYPES)
def test_validity(name: str) -> None:
    dtype, bits = DTYPES[name]
    x = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, -np.nan, -1.0, np.nextafter(dtype(1), dtype(2))], dtype)
    of = getattr(core, name)
    assert of.is_weight(x.view(bits)).tolist() == [True, True, True, False, False, False, False, False, True]
    assert of.is_probability(x.view(bits)).tolist() == [True, True, True] + [False] * 6


@pytest.mark.parametrize("name", DTYPES)
def test_bernoulli_compares_exactly(name: str) -> None:
    dtype, bits = DTYPES[name]
    p = values(name)
    p = p[p <= 1]
    rng = np.random.default_rng(1)
    random = rng.integers(0, 2**64, len(p), dtype=np.uint64)
    thresholds = [max(round(Fraction(float(v)) * 2**64), int(v > 0)) for v in p]
    of = getattr(core, name)
    assert of.bernoulli(p.view(bits), random).tolist() == [int(r) < t for r, t in zip(random, thresholds, strict=True)]
    edges = np.array([max(t - 1, 0) for t in thresholds], np.uint64)
    assert of.bernoulli(p.view(bits), edges).tolist() == (p > 0).tolist()
    assert of.bernoulli(np.array([1, 0.5], dtype).view(bits), np.uint64(2**64 - 1)).tolist() == [True, False]


def test_integers() -> None:
    x = np.array([0, 1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)
    assert core.bit_width(x).tolist() == [int(v).bit_length() for v in x]
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2**64, (2, 1000), dtype=np.uint64)
    expected = [int(i) * int(j) >> 64 for i, j in zip(a, b, strict=True)]
    assert core.multiply_high(a, b).tolist() == expected


@pytest.mark.parametrize("name", DTYPES)
def test_integer_mass_is_the_mass(name: str) -> None:
    of, bits = getattr(core, name), np.sort(values(name)[values(name) > 0]).view(DTYPES[name][1])
    for exponent in range(-40, 60, 7):
        exponent -= int(np.frexp(values(name).max())[1]) - 20
        small_enough = bits[np.ldexp(bits.view(DTYPES[name][0]).astype(np.float64), exponent) < 2.0**62]
        integers = small_enough[of.is_integer(small_enough, exponent)]
        assert of.integer_mass(integers, exponent).tolist() == of.mass(integers, exponent).tolist()
        # All that are not below such a weight are such weights.
        assert np.array_equal(integers, small_enough[len(small_enough) - len(integers) :])
    assert of.integer_mass(bits[:1] * 0, 3).tolist() == [0]


def test_uniform_below() -> None:
    rng = np.random.default_rng(5)
    low, high, total = rng.integers(0, 2**64, (3, 1000), dtype=np.uint64)
    low[:4], high[:4] = [0, 2**64 - 1, 0, 2**64 - 1], [0, 2**64 - 1, 2**64 - 1, 0]
    total[:500] >>= rng.integers(0, 63, 500, dtype=np.uint64)
    total[500:510] = 2**64 - 1
    expected = [uniform_below(int(a), int(b), int(t)) for a, b, t in zip(low, high, total, strict=True)]
    assert core.uniform_below(low, high, total).tolist() == expected
    # Where the second number decides: the product of the first alone falls just short of the next unit.
    low = np.array([2**64 // 3, 2**64 // 3], np.uint64)
    assert core.uniform_below(low, np.array([0, 2**63], np.uint64), np.uint64(3)).tolist() == [0, 1]


def test_logarithms() -> None:
    rng = np.random.default_rng(4)
    x = np.exp(rng.uniform(-700, 700, 100_000))
    np.testing.assert_allclose(core.portable_log(x, np.int64(0)), np.log(x), rtol=4e-16, atol=2e-16)
    np.testing.assert_allclose(core.portable_log(np.float64(3), np.int64(-1074)), math.log(3) - 1074 * math.log(2))
    # The smallest random numbers, which win the draw, and the largest.
    random = rng.integers(0, 2**64, 100_000, dtype=np.uint64) >> rng.integers(0, 60, 100_000, dtype=np.uint64)
    random[:3] = [0, 2**62, 2**64 - 1]
    v = (random.astype(np.float64) + 0.5) * 2.0**-64
    left = ((~random).astype(np.float64) + 0.5) * 2.0**-64
    expected = np.where(v < 0.5, -np.log1p(-np.minimum(v, 0.5)), -np.log(left))
    np.testing.assert_allclose(core.exponential(random), expected, rtol=2e-15)


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 2**24 + 3, 2**36])
def test_totals_stay_within_64_bits(n: int) -> None:
    # One weight alone, all alike, and the mass of one beside as many as there may be that it all but swallows.
    for others in (0.0, 1.0, 2.0**-40):
        coarse_exponent = core.float64.coarse_exponent(int(np.float64(1).view(np.uint64)), n)
        coarse = lambda w, e=coarse_exponent: round(Fraction(w) * Fraction(2) ** e)  # noqa: E731
        coarse_total = coarse(1.0) + (n - 1) * coarse(others)
        assert coarse_total <= 2**62
        exponent = core.mass_exponent(coarse_exponent, coarse_total, n)
        mass = lambda w, e=exponent: max(round(Fraction(w) * Fraction(2) ** e), int(w > 0))  # noqa: E731
        total = mass(1.0) + (n - 1) * mass(others)
        assert 2**48 <= total <= 2**61 + 2 * n
        assert total >= 2**59 or n > 2**30
        capacity, padding = core.columns_of(total, n)
        assert capacity == -(-total // n)
        assert core.padded(total, padding) == capacity * n < 2**62
        bits = (n - 1).bit_length()
        assert capacity <= 2 ** (63 - bits)  # a threshold below it and an alias share 63 bits


def masses_of_every_kind() -> list[list[int]]:
    rng = np.random.default_rng(3)
    cases = [[5], [3, 0], [0, 3], [7, 7, 7], [0, 0, 9, 0], [10, 1, 1, 1], [1, 1, 1, 10], [2**60, 1], [1, 2**60]]
    cases += [(2 ** rng.integers(0, 50, n) * rng.integers(0, 3, n)).tolist() for n in (5, 31, 32, 33, 1000)]
    cases += [(1000 * rng.integers(0, 2, 257)).tolist(), rng.integers(10**15, 10**15 + 2, 300).tolist()]
    return [case for case in cases if sum(case) > 0]


@pytest.mark.parametrize("masses", masses_of_every_kind(), ids=len)
def test_alias_entries_are_those_of_the_sweep(masses: list[int]) -> None:
    n, total = len(masses), sum(masses)
    capacity, padding = core.columns_of(total, n)
    prefix = np.concatenate([[0], np.cumsum(np.array(masses, object))])
    padded = [core.padded(int(b), padding) - core.padded(int(a), padding) for a, b in pairwise(prefix)]
    assert sum(padded) == capacity * n
    assert all(m <= p for m, p in zip(masses, padded, strict=True))
    assert [m == 0 for m in masses] == [p == 0 for p in padded]
    thresholds, aliases = alias_columns(padded, capacity)
    bits = (n - 1).bit_length()
    expected = [t << bits | a for t, a in zip(thresholds, aliases, strict=True)]
    for steps in (1, 7, n):
        assert core.alias_entries(np.array(masses, np.uint64), steps).tolist() == expected
    recovered = list(thresholds)
    for threshold, alias in zip(thresholds, aliases, strict=True):
        recovered[alias] += capacity - threshold
    assert recovered == padded
