"""csrc/core/clip/norm.h and strided.h against NumPy in long double."""

import itertools
import math

import numpy as np
import pytest

import native


@pytest.fixture(scope="module")
def norm():
    return native.load().norm


def exact_norm(x, p):
    x = np.abs(x.astype(np.longdouble))
    if p == 0:
        return float(np.count_nonzero(x))
    if math.isinf(p):
        return float(x.max() if p > 0 else x.min())
    largest = x.max()
    if not (largest > 0 and np.isfinite(largest)):
        return float(largest)
    return float(largest * ((x / largest) ** np.longdouble(p)).sum() ** (1 / np.longdouble(p)))


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, math.inf, -math.inf, 0.5, 2.5, 3.0, 10.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [0, 20, -20, 200, -200, -310])
def test_norm(norm, p, dtype, exponent):
    if dtype == np.float32 and abs(exponent) > 20:
        pytest.skip("out of float32's range")
    if exponent and 0 < p < 1 and abs(exponent) >= 300:
        pytest.skip("denormals have too few bits to compare")
    x = (np.random.default_rng(0).standard_normal(500) * 10.0**exponent).astype(dtype)
    expected = exact_norm(x, p)
    assert norm.total_norm(x, p) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf, -math.inf, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(norm, p, dtype):
    nan_first, nan_last = np.array([np.nan, 1, 2], dtype), np.array([1, 2, np.nan], dtype)
    assert math.isnan(norm.total_norm(nan_first, p))
    assert math.isnan(norm.total_norm(nan_last, p))
    assert math.isnan(norm.total_norm(np.array([np.inf, np.nan], dtype), p))
    infinite = norm.total_norm(np.array([-np.inf, 1], dtype), p)
    assert infinite == (1 if p == -math.inf else math.inf)
    assert norm.total_norm(np.array([0, -0.0, 0], dtype), p) == 0
    assert norm.total_norm(np.array([0, -0.0, np.nan, 1e-38], dtype), 0.0) == 2


def test_coefficient(norm):
    assert norm.clip_coefficient(5.0, 1.0) == 1 / (5 + 1e-6)
    assert norm.leaves_alone(norm.clip_coefficient(1.0, 1.0 + 1e-6))
    assert norm.leaves_alone(math.inf)
    assert not norm.leaves_alone(norm.clip_coefficient(1.0, 1.0))
    assert not norm.leaves_alone(norm.clip_coefficient(math.nan, 1.0))
    assert norm.clip_coefficient(math.inf, 1.0) == 0
    assert math.isnan(norm.clip_coefficient(math.inf, math.inf))
    assert norm.leaves_alone(norm.clip_coefficient(0.0, math.inf))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clamp(norm, dtype):
    clamp = getattr(norm, f"clamp_{dtype.__name__}")
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, -0.5, 0.25, 3, -3], dtype)
    expected = np.array([np.nan, 0.5, -0.5, 0.0, -0.0, 0.5, -0.5, 0.25, 0.5, -0.5], dtype)
    got = clamp(x, dtype(0.5))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[1:]), np.signbit(x[1:]))


def test_bound_is_what_an_element_holds(norm):
    assert norm.clip_bound_float16(0.1) == float(np.float16(0.1))
    assert norm.clip_bound_bfloat16(0.3) == 0.30078125
    assert norm.clip_bound_float16(1e30) == math.inf


LAYOUTS = [
    ((3, 4), (4, 1)),
    ((4, 3), (1, 4)),
    ((3, 4), (8, 2)),
    ((3, 4), (9, 1)),
    ((2, 3, 4), (12, 1, 3)),
    ((2, 1, 3), (3, 77, 1)),
    ((3, 4), (1, 0)),
    ((5, 3), (2, 1)),
    ((2, 2, 2), (1, 16, 4)),
    ((), ()),
    ((1, 1), (5, 9)),
    ((6,), (2,)),
    ((2, 3), (3, 2)),
]


@pytest.mark.parametrize(("sizes", "strides"), LAYOUTS)
def test_layouts(norm, sizes, strides):
    expected = [sum(map(int.__mul__, index, strides)) for index in itertools.product(*map(range, sizes))]
    offsets, dense, separate = norm.walk(list(sizes), list(strides))
    assert sorted(offsets) == sorted(expected)
    assert dense == (sorted(expected) == list(range(len(expected))))
    assert not (separate and len(set(expected)) < len(expected))
    interleaved = (sizes, strides) == ((2, 3), (3, 2))  # safe, but not certainly so
    assert separate == (len(set(expected)) == len(expected) and not interleaved)
