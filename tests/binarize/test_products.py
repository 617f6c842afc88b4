"""Products of signs against the reference, which sums floats: equal, on every device."""

from __future__ import annotations

import os
import random

import pytest
import torch
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._functions.binary_products import float_is_faster
from ste_ops._library import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = int(os.environ.get("STE_OPS_FUZZ", "12"))


def numbers(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """With zeros of both signs, infinities and NaN among them."""
    x = torch.randn(shape, device=device).to(dtype)
    for value in (0.0, -0.0, float("inf"), float("-inf"), float("nan")):
        x = torch.where(torch.rand(shape, device=device) < 0.02, torch.full_like(x, value), x)
    return x


def laid_out(x: Tensor, rng: random.Random) -> Tensor:
    """In one of several layouts in memory."""
    kind = rng.randrange(4)
    if kind == 0 and x.dim() >= 2:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == 1 and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if kind == 2 and x.dim() > 0:
        return torch.stack([x, x], -1)[..., 0]
    return x


def assert_equal(received: Tensor, expected: Tensor, place: object) -> None:
    assert (received.dtype, received.shape) == (expected.dtype, expected.shape), place
    assert torch.equal(received, expected), place


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits(device, dtype):
    rng = random.Random(1)
    for shape in ((0,), (1,), (8,), (33,), (5, 31), (3, 40), (2, 9, 3, 5), (2, 0, 3), (3, 9, 70)):
        for dim in range(-len(shape), len(shape)):
            x = laid_out(numbers(*shape, dtype=dtype, device=device), rng)
            bits = ste_ops.pack_bits(x, dim)
            assert_equal(bits, reference.pack_bits(x, dim), (shape, dim))
            back = ste_ops.unpack_bits(bits, shape[dim], dim, dtype)
            assert_equal(back, torch.where(x >= 0, 1.0, -1.0).to(dtype), (shape, dim))


def test_bits_by_hand(device):
    x = torch.tensor([0.0, -0.0, float("nan"), -1.0, 1.0, float("inf"), float("-inf"), 2.0, -3.0, 4.0], device=device)
    assert ste_ops.pack_bits(x).tolist() == [0b10110011, 0b10]
    assert ste_ops.unpack_bits(ste_ops.pack_bits(x), 10).tolist() == [1, 1, -1, -1, 1, 1, -1, 1, -1, 1]


@pytest.mark.parametrize("seed", range(CASES))
def test_linear(device, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype, size = rng.choice(DTYPES), [0, 1, 3, 8, 31, 32, 33, 70, 129, 513, 1100]
    batch, inner, out = rng.choice(size[:9]), rng.choice(size), rng.choice(size[:9])
    shape = (batch, inner) if rng.random() < 0.7 else (2, batch, inner)
    x = laid_out(numbers(*shape, dtype=dtype, device=device), rng)
    weight = laid_out(numbers(out, inner, dtype=rng.choice(DTYPES), device=device), rng)
    step = rng.random() < 0.3
    bias = torch.randn(out, device=device).to(dtype) if rng.random() < 0.5 else None
    scale = rng.choice([None, 0.3, torch.rand(out, device=device), torch.rand(1, device=device).to(dtype)])
    expected = reference.binary_linear(x, weight, bias, scale=scale, step=step)
    place = (shape, out, dtype, step)
    assert_equal(ste_ops.binary_linear(x, weight, bias, scale=scale, step=step), expected, place)
    bits = ste_ops.pack_bits(torch.where(x > 0, 1.0, -1.0) if step else x)
    packed = ste_ops.pack_bits(weight)
    ours = ste_ops.binary_linear(bits, packed, bias, scale=scale, in_features=inner, step=step, dtype=dtype)
    assert_equal(ours, expected, place)


def convolution(seed: int, device: str) -> tuple[int, Tensor, Tensor, dict]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype, dims = rng.choice(DTYPES), rng.choice([1, 2, 2, 2])
    groups, channels = rng.choice([1, 1, 2, 3]), rng.choice([1, 3, 8, 20, 32, 33, 70])
    features = rng.choice([1, 3, 16, 17, 33, 40])
    kernel = [rng.randint(1, 4) for _ in range(dims)]
    step = rng.random() < 0.3
    settings = {
        "stride": [rng.randint(1, 3) for _ in range(dims)],
        "padding": [rng.randint(0, 3) for _ in range(dims)],
        "dilation": [rng.randint(1, 2) for _ in range(dims)],
        "groups": groups,
        "padding_value": rng.choice([0, 0, 1] if step else [0, 0, 1, -1]),
        "step": step,
    }
    if rng.random() < 0.3:
        settings |= {"padding": rng.choice(["same", "valid"]), "stride": 1}
    size = [rng.randint(8, 20) for _ in range(dims)]
    x = laid_out(numbers(rng.randint(0, 3), groups * channels, *size, dtype=dtype, device=device), rng)
    weight = laid_out(numbers(groups * features, channels, *kernel, dtype=dtype, device=device), rng)
    if rng.random() < 0.5:
        settings |= {
            "bias": torch.randn(groups * features, device=device),
            "scale": torch.rand(groups * features, device=device),
        }
    return dims, x, weight, settings


@pytest.mark.parametrize("seed", range(CASES))
def test_convolutions(device, seed):
    dims, x, weight, settings = convolution(seed, device)
    name = f"binary_conv{dims}d"
    ours, expected = getattr(ste_ops, name), getattr(reference, name)(x, weight, **settings)
    place = (x.shape, weight.shape, x.dtype, settings)
    assert_equal(ours(x, weight, **settings), expected, place)
    packed = ste_ops.pack_bits(weight, 1)
    assert_equal(ours(x, packed, **settings), expected, place)
    if settings["groups"] == 1 or weight.shape[1] % 8 == 0:
        bits = ste_ops.pack_bits(torch.where(x > 0, 1.0, -1.0) if settings["step"] else x, 1)
        known = {"in_channels": x.shape[1], "dtype": x.dtype}
        assert_equal(ours(bits, packed, **settings, **known), expected, place)


def test_a_small_group_takes_floats_and_its_kernel_counts_the_same(device):
    sizes = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
    x, weight = torch.randn(2, 6, 5, 5, device=device), torch.randn(6, 1, 3, 3, device=device)
    assert float_is_faster(6, 6, *sizes, 6)
    assert not float_is_faster(32, 32, *sizes, 1)
    out = ste_ops.binary_conv2d(x, weight, padding=1, groups=6)
    assert torch.equal(out, ops.binary_conv2d(x, weight, None, None, 6, 6, *sizes, 6, 0, False, False, torch.float32))


def test_equal_to_torch(device):
    """Without scale and bias, and with a bias that is added to the finished product."""
    for dtype in DTYPES:
        x, weight = (torch.randn(n, 700, device=device).to(dtype) for n in (9, 20))
        signs = [ste_ops.sign(t) for t in (x, weight)]
        out = ste_ops.binary_linear(x, weight)
        assert torch.equal(out, torch.nn.functional.linear(*signs)), dtype
        if dtype.itemsize >= 4:
            bias = torch.randn(20, device=device).to(dtype)
            assert torch.equal(ste_ops.binary_linear(x, weight, bias), out + bias), dtype


def test_the_numbers_of_xnor_net(device):
    """Equation 11 of XNOR-Net: sign(I) and sign(W), the count of agreeing less differing places, times alpha."""
    x = torch.tensor([[0.4, -0.3, 0.9, -1.2, 0.1]], device=device)
    w = torch.tensor([[0.5, 0.5, -1.0, -2.0, 1.0]], device=device)
    alpha = w.abs().mean(1)  # (0.5 + 0.5 + 1 + 2 + 1) / 5 = 1
    # Signs + - + - + and + + - - +: three agree, two differ.
    assert ste_ops.binary_linear(x, w, scale=alpha).tolist() == [[1.0]]
    image = torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]], device=device)
    kernel = torch.ones(1, 1, 3, 3, device=device)
    for value, sums in ((0, 0.0), (1, 5.0), (-1, -5.0)):  # four pixels that cancel, five places of padding
        padded = ste_ops.binary_conv2d(image, kernel, padding=1, padding_value=value)
        assert padded.tolist() == [[[[sums] * 2] * 2]]
    # Of steps only the two ones count.
    assert ste_ops.binary_conv2d(image, kernel, padding=1, step=True).tolist() == [[[[2.0] * 2] * 2]]
