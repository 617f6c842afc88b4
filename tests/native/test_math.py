"""The torch-free mathematics of csrc/core against NumPy."""

import math

import numpy as np
import pytest

import native
import ste_ops

SPECIALS = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1.17549435e-38]


@pytest.fixture(scope="module")
def dtype():
    return native.load().dtype


@pytest.fixture(scope="module")
def binarize():
    return native.load().binarize


def float32_edges():
    """Every float32 around which a 16-bit rounding decides: each 16-bit value, its neighbours and its ties."""
    halves = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    half = halves.view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        next_half = np.nextafter(halves.view(np.float16), np.float16(np.inf)).astype(np.float32)
        ties = (half.astype(np.float64) + next_half) / 2
    bfloats = (np.arange(0x10000, dtype=np.uint32) << 16).view(np.float32)
    bfloat_ties = (np.arange(0x10000, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    exact = np.concatenate([half, ties.astype(np.float32), bfloats, bfloat_ties])
    bits = exact.view(np.uint32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([bits, bits + 1, bits - 1, random]).view(np.float32)


def bfloat16_bits(x):
    """Round to nearest even by NumPy's own integer arithmetic, in 64 bits so that nothing wraps."""
    bits = x.view(np.uint32).astype(np.uint64)
    low, kept = bits & 0xFFFF, bits >> 16
    kept = kept + ((low > 0x8000) | ((low == 0x8000) & (kept & 1 == 1)))
    return kept.astype(np.uint16)


def test_float16_loads_all_65536_values(dtype):
    bits = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    np.testing.assert_array_equal(dtype.load_float16(bits), bits.view(np.float16).astype(np.float32))
    loaded = dtype.load_float16(bits)
    assert np.array_equal(np.signbit(loaded), bits >> 15 == 1)


def test_bfloat16_loads_all_65536_values(dtype):
    bits = np.arange(0x10000, dtype=np.uint32)
    loaded = dtype.load_bfloat16(bits.astype(np.uint16))
    assert np.array_equal(loaded.view(np.uint32), bits << 16)


def test_float16_stores_to_nearest_even(dtype):
    x = float32_edges()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    stored = dtype.store_float16(x)
    numbers = ~np.isnan(x)
    assert np.array_equal(stored[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(stored[~numbers].view(np.float16)).all()


def test_bfloat16_stores_to_nearest_even(dtype):
    x = float32_edges()
    stored = dtype.store_bfloat16(x)
    numbers = ~np.isnan(x)
    assert np.array_equal(stored[numbers], bfloat16_bits(x)[numbers])
    assert np.isnan((stored[~numbers].astype(np.uint32) << 16).view(np.float32)).all()


def test_what_was_loaded_is_stored_back(dtype):
    bits = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    for name, exponent in [("float16", 0x7C00), ("bfloat16", 0x7F80)]:
        numbers = bits[~((bits & exponent == exponent) & (bits & (0x7FFF ^ exponent) != 0))]
        loaded = getattr(dtype, f"load_{name}")(numbers)
        assert np.array_equal(getattr(dtype, f"store_{name}")(loaded), numbers)


def test_all_256_bytes_pack_and_unpack(binarize):
    for byte in range(256):
        bools = np.unpackbits(np.uint8(byte), bitorder="little")
        assert np.array_equal(binarize.unpack8(byte), bools)
        assert binarize.pack8(bools) == byte


def test_mask_bits(binarize):
    mask = np.random.default_rng(0).integers(0, 256, 40, dtype=np.uint8)
    expected = np.unpackbits(mask, bitorder="little")
    assert [binarize.mask_bit(mask, i) for i in range(320)] == expected.astype(bool).tolist()
    assert [binarize.mask_bytes(n) for n in range(100)] == [math.ceil(n / 8) for n in range(100)]
    assert binarize.mask_bytes(2**40 + 1) == 2**37 + 1


def inputs(width):
    numpy_type = np.dtype(f"float{width}")
    specials = np.array(SPECIALS, np.float64).astype(numpy_type)
    around = np.concatenate([np.nextafter(specials, numpy_type.type(s * np.inf)) for s in (1, -1)])
    random = np.random.default_rng(0).standard_normal(1000).astype(numpy_type)
    return np.concatenate([specials, around, random])


@pytest.mark.parametrize("width", [32, 64])
def test_steps(binarize, width):
    x = inputs(width)
    heaviside, sign = (getattr(binarize, f"{name}_float{width}")(x) for name in ("heaviside", "sign"))
    assert np.array_equal(heaviside, np.where(x > 0, 1, 0))
    assert np.array_equal(sign, np.where(x >= 0, 1, -1))


def test_levels(binarize):
    """Their bits, of a NaN its own."""
    x = np.array([-2, -0.5, 0, 0.5, 2, np.nan, -np.nan])
    levels = np.array([-1, 0, 0, 0, 1, np.nan, -np.nan])
    for width in (64, 32, 16):
        kind, bits = f"float{width}", f"uint{width}"
        given = x.astype(kind) if width > 16 else x.astype(kind).view(bits)
        received = getattr(binarize, f"ternary_bits_{kind}")(given)
        np.testing.assert_array_equal(received, levels.astype(kind).view(bits))
    top = [(numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for numbers in (x, levels)]
    np.testing.assert_array_equal(binarize.ternary_bits_bfloat16(top[0]), top[1])


def test_numbers_of_the_surrogates_are_their_positions(binarize):
    for number, name in enumerate(binarize.surrogates()):
        assert getattr(ste_ops.surrogate, name).number == number


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("threshold", [1.0, 0.1, 1 / 3, 1e-40, 65504.0])
def test_clip_passes_its_bounds(binarize, width, threshold):
    x = inputs(width)
    bound = x.dtype.type(threshold)
    x = np.concatenate([x, [bound, -bound, np.nextafter(bound, x.dtype.type(np.inf))]]).astype(x.dtype)
    passes = getattr(binarize, f"passes_float{width}")(ste_ops.surrogate.Clip.number, threshold, 0.0, x)
    assert np.array_equal(passes, ~(np.abs(x) > bound))


HALVES = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
AS_FLOAT32 = {
    "float16": HALVES.view(np.float16).astype(np.float32),
    "bfloat16": (HALVES.astype(np.uint32) << 16).view(np.float32),
}


@pytest.mark.parametrize("name", AS_FLOAT32)
def test_16_bit_values_step_as_integers(binarize, name):
    x = AS_FLOAT32[name]
    assert np.array_equal(getattr(binarize, f"heaviside_{name}")(HALVES), np.where(x > 0, 1, 0))
    assert np.array_equal(getattr(binarize, f"sign_{name}")(HALVES), np.where(x >= 0, 1, -1))


@pytest.mark.parametrize("name", AS_FLOAT32)
def test_16_bit_values_compare_as_integers(binarize, name):
    """With bounds that the type holds, that lie between two of its values, and that lie beyond them all."""
    x = AS_FLOAT32[name]
    finite = np.abs(x[np.isfinite(x) & (x != 0)]).astype(np.float64)
    drawn = np.random.default_rng(0).choice(finite, 60)
    for threshold in [*drawn, *drawn * 1.0001, *drawn * 0.9999, 1e-45, 1e-40, 65504.0, 65505.0, 65519.9, 65520.0, 3e38]:
        bound = np.float32(threshold)
        expected = [f(x, t) for t in (bound, -bound) for f in (np.greater, np.greater_equal, np.less, np.less_equal)]
        received = getattr(binarize, f"comparisons_{name}")(HALVES, bound)
        assert np.array_equal(received, np.stack(expected).T @ (1 << np.arange(8))), threshold
        passes = getattr(binarize, f"passes_{name}")(ste_ops.surrogate.Clip.number, threshold, 0.0, HALVES)
        assert np.array_equal(passes, ~(np.abs(x) > bound)), threshold


@pytest.mark.parametrize("name", AS_FLOAT32)
def test_rect_and_ternary_compare_16_bit_values_as_integers(binarize, name):
    x = AS_FLOAT32[name]
    for number in (0.05, 0.3, 1 / 3, 0.5, 1.0, 1e-40, 65519.0):
        with np.errstate(over="ignore"):
            bound = np.float32(0.5 / number)
        passes = getattr(binarize, f"passes_{name}")(ste_ops.surrogate.Rect.number, number, 0.0, HALVES)
        assert np.array_equal(passes, np.abs(x) < bound), number
        bound = np.float32(number)
        levels = getattr(binarize, f"ternary_{name}")(number, HALVES)
        assert np.array_equal(levels, (x > bound).astype(int) - (x < -bound)), number


# exp and log.


def ulps(received, precise):
    """The error in units in the last place of what is received."""
    unit = np.spacing(np.abs(precise).astype(received.dtype)).astype(precise.dtype)
    return np.abs(received.astype(precise.dtype) - precise) / unit


EXACT = {32: np.float64, 64: np.longdouble}
LIMIT = {32: 87, 64: 708}


@pytest.mark.parametrize("width", [32, 64])
def test_exp(binarize, width):
    kind, limit, exp = np.dtype(f"float{width}").type, LIMIT[width], getattr(binarize, f"exp_float{width}")
    x = np.random.default_rng(0).uniform(-limit, limit, 400_000)
    halfway = (np.arange(-100, 101) + 0.5) * math.log(2)  # where the remainder is largest
    x = np.concatenate([x, x / limit, x / limit * 1e-9, halfway[np.abs(halfway) < limit], [limit, -limit]]).astype(kind)
    assert ulps(exp(x), np.exp(x.astype(EXACT[width]))).max() < 1.5
    beyond = np.nextafter(kind(limit), kind(np.inf))
    numbers = np.array([0.0, -0.0, np.inf, -np.inf, -beyond, beyond, -1e30, np.nan], kind)
    np.testing.assert_array_equal(exp(numbers), np.array([1, 1, np.inf, 0, 0, np.inf, 0, np.nan], kind))


@pytest.mark.parametrize("width", [32, 64])
def test_log(binarize, width):
    kind, log = np.dtype(f"float{width}").type, getattr(binarize, f"log_float{width}")
    random, limits = np.random.default_rng(0), np.finfo(kind)
    spread = np.exp(random.uniform(np.log(limits.tiny), np.log(limits.max) - 1, 400_000))
    near = 1 + random.uniform(-0.5, 0.5, 400_000) * 10.0 ** random.uniform(-7, 0, 400_000)
    edges = np.sqrt([0.5, 2.0]) * (1 + np.arange(-9, 10)[:, None] * limits.eps)
    x = np.concatenate([spread, near, edges.ravel(), [limits.tiny, limits.max]]).astype(kind)
    x = x[x != 1]
    assert ulps(log(x), np.log(x.astype(EXACT[width]))).max() < 2
    np.testing.assert_array_equal(log(np.array([1, np.nan], kind)), np.array([0, np.nan], kind))


@pytest.mark.parametrize("width", [32, 64])
def test_power(binarize, width):
    kind, power = np.dtype(f"float{width}").type, getattr(binarize, f"power_float{width}")
    random = np.random.default_rng(0)
    x = (10.0 ** random.uniform(-6, 6, 400_000)).astype(kind)
    for p in (kind(-2 / 3), kind(-0.1), kind(0), kind(1 / 3), kind(1)):
        expected = x.astype(EXACT[width]) ** EXACT[width](p)
        assert (ulps(power(x, p), expected) - np.abs(p * np.log2(x))).max() < 2
    np.testing.assert_array_equal(power(np.array([1, np.nan], kind), kind(0)), np.array([1, np.nan], kind))
