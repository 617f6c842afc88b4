"""Codes of what quantizers put out: their layout, and that every number comes back from them."""

from __future__ import annotations

import math

import pytest
import torch

from ste_ops._library import ops
from ste_ops.functional.quantize._codes import Grid, levels_of, pack, whole_grid

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = [1, 2, 4, 8]


def arithmetic(dtype):
    return torch.promote_types(dtype, torch.float32)


def grid_of(bits, dtype, device, step=0.3, low=None):
    low = -(2 ** (bits - 1)) if low is None else low
    values = levels_of(torch.empty(0, dtype=dtype, device=device), low, low + 2**bits - 1)
    return Grid(values * torch.tensor(step, dtype=values.dtype, device=device))


def some(grid, shape, dtype):
    values = grid.values.cpu()
    return values[torch.randint(0, values.numel(), shape)].to(dtype).to(grid.values.device)


def test_the_layout_is_that_of_masks_low_bits_first(device):
    q = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], device=device)
    values = torch.tensor([0.0, 1.0], device=device)
    assert ops.pack_codes(q, values, None, 1, 1)[:2].tolist() == [0b10000110, 0b1]
    values = torch.arange(4.0, device=device)
    q = torch.tensor([3.0, 0.0, 2.0, 1.0, 2.0], device=device)
    assert ops.pack_codes(q, values, None, 1, 2)[:2].tolist() == [0b01_10_00_11, 0b10]
    values = torch.arange(16.0, device=device)
    assert ops.pack_codes(torch.tensor([15.0, 1.0, 7.0], device=device), values, None, 1, 4)[:2].tolist() == [0x1F, 7]
    values = torch.arange(256.0, device=device)
    assert ops.pack_codes(torch.tensor([255.0, 1.0], device=device), values, None, 1, 8)[:2].tolist() == [255, 1]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_comes_back(device, dtype, bits):
    for step in (0.3, 1.0, 2.0**-20, 1e-3):
        grid = grid_of(bits, dtype, device, step)
        for numel in (1, 3, 63, 64, 1000, 5003):
            q = some(grid, (numel,), dtype)
            codes = pack(q, grid)
            assert torch.equal(codes.unpack(), q)
            assert codes._codes.numel() == math.ceil(numel * bits / 8) + math.ceil(numel * q.element_size() / 512)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_that_a_dtype_rounds_away(device, dtype):
    """Neighbours that are one number have one code; of bfloat16 the numbers are far from multiples of the step."""
    values = levels_of(torch.empty(0, dtype=dtype, device=device), 0, 255)
    for offset in (0.0, 1.0, 100.0, -3.7):
        grid = Grid(values * 0.01 + offset)
        q = grid.values[torch.randint(0, 256, (700,))].to(dtype)
        assert torch.equal(pack(q, grid).unpack(), q)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scale_of_each_channel_and_token(device, dtype):
    levels = levels_of(torch.empty(0, dtype=dtype, device=device), -8, 7)
    for shape in ((3, 5, 7), (2, 64, 1), (4, 6, 129), (2, 3, 136), (2, 2, 688), (1, 3, 1000), (3, 1, 5)):
        scale = torch.rand(shape[1], dtype=levels.dtype, device=device) + 0.1
        level = torch.randint(-8, 8, shape, device=device).to(levels.dtype)
        q = (level * scale[:, None]).to(dtype)
        grid = Grid(levels, scale, axis=1)
        for laid in (
            q,
            q.transpose(1, 2).contiguous().transpose(1, 2),
            q.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        ):
            out = pack(laid, grid).unpack()
            assert torch.equal(out, laid)
            assert out.stride() == laid.stride()
        scale = torch.rand(shape[:2], dtype=levels.dtype, device=device) + 0.1
        tokens = (level * scale[..., None]).to(dtype)
        grid = Grid(levels, scale.reshape(-1))
        assert torch.equal(pack(tokens, grid).unpack(), tokens)
        if shape[1] > 1 and shape[2] > 1:
            assert pack(tokens.transpose(1, 2).contiguous().transpose(1, 2), grid) is None


def assert_the_cpu_reads_them(codes, out):
    """Codes may be moved."""
    packed, (values, scale, inner, bits) = codes._codes.cpu(), codes._arguments
    back = torch.empty_like(out, device="cpu")
    torch.ops.ste_ops.unpack_codes(packed, values.cpu(), scale, inner, bits, back)
    torch.testing.assert_close(back, out.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("other", [math.nan, math.inf, 0.15, -3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_none_of_the_numbers_is_never_another(device, dtype, other):
    grid = grid_of(2, dtype, device)
    q = some(grid, (3000,), dtype)
    q[1234] = other
    codes = pack(q, grid)
    if device == "cpu" and ops.namespace == "ste_ops":
        assert codes is None
        return
    out, run = codes.unpack(), 512 // q.element_size()
    assert_the_cpu_reads_them(codes, out)
    lost = torch.zeros(3000, dtype=torch.bool)
    lost[1234 // run * run : (1234 // run + 1) * run] = True
    assert torch.equal(out.isnan().cpu(), lost)
    assert torch.equal(out.cpu()[~lost], q.cpu()[~lost])


def test_either_zero_is_one(device):
    grid = grid_of(2, torch.float32, device)
    q = torch.tensor([-0.0, 0.0, 0.3], device=device)
    assert torch.equal(pack(q, grid).unpack(), q)


def test_nothing_and_what_has_gaps_has_no_codes(device):
    grid = whole_grid(torch.empty(0, device=device), -1, 1, step=2)
    assert grid.values.tolist() == [-1.0, 1.0]
    assert grid.bits == 1
    assert pack(torch.ones(0, device=device), grid) is None
    assert pack(torch.ones(4, 6, device=device)[:, ::2], grid) is None
    assert pack(torch.ones(4, 1, device=device).expand(4, 3), grid) is None
    assert whole_grid(torch.empty(0), -128, 127).bits == 8
    assert whole_grid(torch.empty(0), -128, 128) is None


def test_views_of_other_memory_are_left_alone(device):
    grid = whole_grid(torch.empty(0, device=device), -1, 1, step=2)
    signs = torch.ones(4, 6, device=device)
    signs[:2] = -1
    out = pack(signs[1:3], grid).unpack()
    assert torch.equal(out, signs[1:3])


@pytest.mark.parametrize(
    ("error", "change"),
    [
        ("pack_codes: bits must be 1, 2, 4 or 8, got 3", {"bits": 3}),
        ("pack_codes: values must have 1 to 2 elements, got 4", {"values": torch.arange(4.0)}),
        ("pack_codes: values must have 1 to 2 elements, got 0", {"values": torch.empty(0)}),
        ("pack_codes: values must be contiguous Float, got Double", {"values": torch.arange(2.0).double()}),
        ("pack_codes: q must be contiguous", {"q": torch.ones(4, 4).t()}),
        ("pack_codes: q must hold whole periods of 3 scales for 5 elements each, got 16", {"scale": torch.ones(3)}),
        ("pack_codes: q must be float64, float32, bfloat16 or float16, got Int", {"q": torch.ones(4, dtype=torch.int)}),
    ],
)
def test_wrong_arguments(device, error, change):
    arguments = {"q": torch.ones(16), "values": torch.arange(2.0), "scale": None, "inner": 5, "bits": 1} | change
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments.values()]
    with pytest.raises(RuntimeError, match=f"^{error}"):
        ops.pack_codes(*moved)


def test_codes_of_another_length(device):
    values, out = torch.arange(2.0, device=device), torch.empty(16, device=device)
    with pytest.raises(RuntimeError, match=r"unpack_codes: codes must be \d+ contiguous bytes for 16 elements, got 9"):
        ops.unpack_codes(torch.zeros(9, dtype=torch.uint8, device=device), values, None, 1, 1, out)
