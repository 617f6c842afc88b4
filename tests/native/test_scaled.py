"""csrc/core of the quantizers that scale by a statistic, and of N:M sparsity, against NumPy."""

import numpy as np
import pytest

import native

SPECIALS = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1.17549435e-38, 88.0, -88.0, 1e30]


@pytest.fixture(scope="module")
def scaled():
    return native.load().scaled


@pytest.mark.parametrize("width", [32, 64])
def test_tanh_is_close_everywhere(scaled, width):
    dtype = np.dtype(f"float{width}").type
    around = np.linspace(-12 if width == 32 else -22, 12 if width == 32 else 22, 200_001)
    small = np.logspace(-37, 0, 20_001)
    x = np.concatenate([around, small, -small, SPECIALS]).astype(dtype)
    received, expected = getattr(scaled, f"tanh_float{width}")(x), np.tanh(x.astype(np.longdouble))
    assert np.array_equal(np.isnan(received), np.isnan(x))
    numbers = ~np.isnan(x)
    error = np.abs(received[numbers] - expected[numbers]) / np.spacing(np.abs(expected[numbers]).astype(dtype))
    assert error.max() <= 4
    assert np.array_equal(np.signbit(received[numbers]), np.signbit(x[numbers]))
    assert (np.abs(received[numbers]) <= 1).all()


def test_values_of_an_element(scaled):
    w = np.array([*SPECIALS, 0.5, 1.5, 2.5, -0.5, -1.5, 0.3], np.float32)
    assert np.array_equal(scaled.sign_float32(w, np.float32(0.7)), np.where(w >= 0, np.float32(0.7), np.float32(-0.7)))
    numbers = np.isfinite(w)
    step = np.float32(0.5)
    expected = np.clip(np.rint(w / step), -1, 1) * step
    np.testing.assert_array_equal(scaled.bitnet_weight_float32(w, step)[numbers], expected[numbers])
    expected = np.clip(np.rint(w / step), -4, 3) * step
    np.testing.assert_array_equal(scaled.bitnet_activation_float32(w, step, 3.0)[numbers], expected[numbers])
    assert np.isnan(scaled.bitnet_weight_float32(np.float32(np.nan), step))


@pytest.mark.parametrize("width", [32, 64])
def test_what_a_weight_adds_to_the_gradient_of_its_mean(scaled, width):
    w = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan], f"float{width}")
    grad = np.array([2.0, 3.0, 4.0, 5.0, 6.0, -7.0, 8.0, 0.0], f"float{width}")
    expected = np.where(np.isnan(w), np.nan, np.where(w >= 0, grad, -grad))
    np.testing.assert_array_equal(getattr(scaled, f"xnor_term_float{width}")(grad, w), expected)


def test_keys_have_the_order_of_magnitudes(scaled):
    bits = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    for name, values in (
        ("float16", bits.view(np.float16).astype(np.float32)),
        ("bfloat16", (bits.astype(np.uint32) << 16).view(np.float32)),
        ("float32", np.random.default_rng(0).standard_normal(5000).astype(np.float32)),
    ):
        keys = getattr(scaled, f"magnitude_key_{name}")(values if name == "float32" else bits)
        # As numbers of float64: NaN above infinity above all others.
        magnitude = np.abs(values.astype(np.float64))
        magnitude = np.where(np.isnan(values), 2e300, np.where(np.isinf(values), 1e300, magnitude))
        expected, received = (np.unique(x, return_inverse=True)[1] for x in (magnitude, keys))
        np.testing.assert_array_equal(received, expected, name)
