"""fake_quantize, pact and dorefa_activation against the reference and against torch, on every device."""

import math

import numpy as np
import pytest
import torch
from support.quantize_cases import channel_axes, filler, gradients, layouts, same_bits, scales, special_values
from support.surrogate_table import DTYPES, assert_same_bits

import ste_ops
from ste_ops import reference
from ste_ops._library import ops

nan, inf = math.nan, math.inf
QUANT_MIN, QUANT_MAX = -4, 3


# Values and the gradients of x.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_quantize_equals_the_reference(device, dtype):
    for layout, x in layouts(dtype, device):
        upstream = filler(dtype, device, 1)(*x.shape)
        for axis in channel_axes(x):
            scale, zero_point = scales(x, axis, device)
            rest = zero_point, QUANT_MIN, QUANT_MAX, axis
            received, expected = (
                gradients(lambda x, m=m, s=scale, r=rest: m.fake_quantize(x, s, *r), upstream, x)
                for m in (ste_ops, reference)
            )
            assert all(map(same_bits, received, expected)), (layout, axis)
            assert received[0].stride() == torch.empty_like(x).stride(), layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations_equal_the_reference(device, dtype):
    for layout, x in layouts(dtype, device):
        upstream = filler(dtype, device, 1)(*x.shape)
        for bits in (1, 3, 24):
            received = gradients(ste_ops.dorefa_activation, upstream, x, bits)
            expected = gradients(reference.dorefa_activation, upstream, x, bits)
            assert all(map(same_bits, received, expected)), (layout, bits)
            alpha = torch.full((), 1.7, device=device).to(dtype)
            out, of_x, _ = gradients(ste_ops.pact, upstream, x, alpha, bits)
            expected = gradients(reference.pact, upstream, x, alpha, bits)
            assert same_bits(out, expected[0]), (layout, bits)
            assert same_bits(of_x, expected[1]), (layout, bits)
            assert out.stride() == torch.empty_like(x).stride(), layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_gradient_of_alpha(device, dtype, shape):
    for layout, x in layouts(dtype, device, special=False):
        upstream = filler(dtype, device, 1, special=False)(*x.shape)
        alpha = torch.full(shape, 0.8, dtype=torch.float64, device=device)
        grads = [gradients(f, upstream, x, alpha, 2)[2] for f in (ste_ops.pact, reference.pact)]
        assert grads[0].shape == shape
        torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12, msg=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_special_value_in_every_lane(device, dtype):
    x = special_values(dtype).to(device)
    x = torch.stack([x.roll(k) for k in range(17)]).flatten()
    for fn in (
        lambda m, x: m.fake_quantize(x, 0.25, 1, QUANT_MIN, QUANT_MAX),
        lambda m, x: m.fake_quantize(x, 1e-30, 300, -2, 2),
        lambda m, x: m.fake_quantize(x, 1e30, 0, -128, 127),
        lambda m, x: m.lsq(x, torch.full((), 0.5, device=device), 0, 7),
        lambda m, x: m.lsq_plus(x, *torch.tensor([0.5, 0.25], device=device), 0, 7),
        lambda m, x: m.pact(x, torch.full((), 2.0, device=device), 4),
        lambda m, x: m.dorefa_activation(x, 2),
    ):
        received, expected = (
            gradients(lambda x, m=m, fn=fn: fn(m, x), torch.ones_like(x), x) for m in (ste_ops, reference)
        )
        assert all(map(same_bits, received, expected))


def test_what_is_written_in_the_docs(device):
    """The reference is held to the same numbers, so that a mistake in both does not cancel."""
    x = torch.tensor([-inf, -1.3, -1.0, 0.25, 0.75, 0.875, 0.876, inf, nan], device=device)
    ones = torch.ones_like(x)
    for m in (ste_ops, reference):
        # Steps of 0.5 from -2 to 1, half to even.
        out, of_x = gradients(lambda x, m=m: m.fake_quantize(x, 0.5, 1, -3, 2), ones, x)
        assert_same_bits(out.cpu(), torch.tensor([-2, -1.5, -1, 0, 0.5, 0.5, 0.5, 0.5, nan]), any_nan=True)
        assert of_x.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
        x_ = x[1:8]
        out, of_x, of_scale = gradients(
            m.lsq, torch.ones_like(x_), x_, torch.full((1,), 0.5, device=device), -2, 1, None, 0.5
        )
        assert out.tolist() == [-1, -1, 0, 0.5, 0.5, 0.5, 0.5]
        assert of_x.tolist() == [0, 0, 1, 0, 0, 0, 0]
        #               x / 0.5: -2.6  -2  0.5   1.5 and above
        assert of_scale.item() == pytest.approx(0.5 * (-2 - 2 - 0.5 + 1 + 1 + 1 + 1))
        x_ = torch.tensor([-0.5, 0.0, 0.4, 0.8, 1.6, 2.0, 3.0, nan], device=device)
        out, of_x, of_alpha = gradients(m.pact, torch.ones_like(x_), x_, torch.full((), 2.0, device=device), 1)
        assert_same_bits(out.cpu(), torch.tensor([0, 0, 0, 0, 2.0, 2, 2, nan]), any_nan=True)
        assert of_x.tolist() == [0, 1, 1, 1, 1, 0, 0, 0]
        assert of_alpha.item() == 2
        out, of_x = gradients(lambda x, m=m: m.dorefa_activation(x, 1), torch.ones_like(x_), x_)
        assert_same_bits(out.cpu(), torch.tensor([0, 0, 0, 1, 1, 1, 1, nan]), any_nan=True)
        assert of_x.tolist() == [0, 1, 1, 1, 0, 0, 0, 0]


# Agreement with torch.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_agrees_with_torch_fake_quantize(device, dtype):
    x = (torch.randn(7, 33, 5, device=device) * 3).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.25, 0.75, -0.25, 100.0])
    upstream = torch.randn_like(x)
    for scale, zero_point in ((0.1, 0), (0.5, 3), (1 / 3, -8), (0.017, 7)):
        received = gradients(lambda x, s=scale, z=zero_point: ste_ops.fake_quantize(x, s, z, -8, 7), upstream, x)
        expected = gradients(
            lambda x, s=scale, z=zero_point: torch.fake_quantize_per_tensor_affine(x, s, z, -8, 7), upstream, x
        )
        assert same_bits(received[0], expected[0]), scale
        assert torch.equal(received[1], expected[1]), scale  # torch multiplies by the mask: its zeros have signs
    if dtype != torch.float32:
        return
    for axis in range(3):
        scale = torch.rand(x.shape[axis], device=device) + 0.05
        zero_point = torch.randint(-8, 8, (x.shape[axis],), device=device, dtype=torch.int32)
        received, expected = (
            gradients(lambda x, f=f, s=scale, z=zero_point, a=axis: f(x, s, z, a), upstream, x)
            for f in (
                lambda x, s, z, axis: ste_ops.fake_quantize(x, s, z, -8, 7, axis),
                lambda x, s, z, axis: torch.fake_quantize_per_channel_affine(x, s, z, axis, -8, 7),
            )
        )
        assert same_bits(received[0], expected[0]), axis
        assert torch.equal(received[1], expected[1]), axis


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("zero_points", [[0.0, 1.0, -2.0], [0.5, 1.25, -2.75]])
def test_a_floating_zero_point_is_added_before_the_rounding(device, dtype, zero_points):
    """As in torch; x / 0.5 + zero_point has no error here, ties and bounds included."""
    x = (torch.arange(-99, 100, device=device) / 16).expand(3, -1).contiguous()
    scale, zero_point = torch.full((3,), 0.5, device=device), torch.tensor(zero_points, device=device, dtype=dtype)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, -8, 7)
    v = x * 2 + zero_point.float()[:, None]
    passes = ((v.round() >= -8) & (v.round() <= 7)).float()
    for m in (ste_ops, reference):
        received = gradients(lambda x, m=m: m.fake_quantize(x, scale, zero_point, -8, 7, 0), torch.ones_like(x), x)
        assert torch.equal(received[0], expected)
        assert torch.equal(received[1], passes)
    # A number likewise; a whole one is added after the rounding, as torch adds an integer.
    half = gradients(lambda x: ste_ops.fake_quantize(x, 0.5, 0.5, -8, 7), torch.ones_like(x), x)[0]
    assert torch.equal(half, reference.fake_quantize(x, 0.5, 0.5, -8, 7))
    assert torch.equal(half, ste_ops.fake_quantize(x, scale, torch.full((3,), 0.5, device=device), -8, 7, 0))
    whole = gradients(lambda x: ste_ops.fake_quantize(x, 0.5, 1.0, -8, 7), torch.ones_like(x), x)[0]
    assert torch.equal(whole, torch.fake_quantize_per_tensor_affine(x, 0.5, 1, -8, 7))


def test_numbers_tensors_and_mixtures_agree(device):
    x = torch.randn(4, 6, device=device) * 2
    expected = reference.fake_quantize(x, 0.3, 2, -5, 5)
    for scale in (0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.full((6,), 0.3), torch.tensor(0.3).double()):
        for zero_point in (2, 2.0, torch.tensor(2), torch.tensor([2.0]), torch.full((6,), 2, dtype=torch.int8)):
            tensors = [t.to(device) if isinstance(t, torch.Tensor) else t for t in (scale, zero_point)]
            assert_same_bits(ste_ops.fake_quantize(x, *tensors, -5, 5, axis=-1), expected)
    # Parameters that lie apart in memory.
    apart = torch.rand(6, 2, device=device)[:, 0] + 0.1
    assert_same_bits(ste_ops.fake_quantize(x, apart, 0, -5, 5, 1), reference.fake_quantize(x, apart, 0, -5, 5, 1))
    # One scale and an axis: one group.
    received, expected = (gradients(m.lsq, x, x, torch.ones(1, device=device), -2, 1, 1) for m in (ste_ops, reference))
    for pair in zip(received, expected, strict=True):
        torch.testing.assert_close(*pair)


# Properties.


def test_idempotent(device):
    x = torch.randn(1000, device=device) * 3
    alpha = torch.full((), 2.0, device=device)
    for fn in (
        lambda x: ste_ops.fake_quantize(x, 0.25, 3, -7, 8),
        lambda x: ste_ops.fake_quantize(x, 0.3, 0, -8, 7),
        lambda x: ste_ops.lsq(x, torch.full((), 0.3, device=device), -8, 7),
        lambda x: ste_ops.pact(x, alpha, 4),
        lambda x: ste_ops.dorefa_activation(x, 3),
    ):
        assert_same_bits(fn(fn(x)), fn(x))
        assert fn(x).unique().numel() <= 16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_have_one_bit_an_element(device, dtype):
    values = filler(dtype, device)(301)
    alpha = torch.ones((), device=device)
    for length in range(301):
        x = values[:length]
        wide = x.double() if dtype == torch.float64 else x.float()
        q = torch.round(wide * (1 / torch.full_like(wide, 0.25)))
        expected = {
            "fake_quantize": (q >= -4) & (q <= 3),
            "dorefa_activation": (x >= 0) & (x <= 1),
            "inside": (x >= 0) & (x < 1),
            "above": x >= 1,
        }
        received = {
            "fake_quantize": ops.fake_quantize(x, None, None, 0.25, 0.0, -4, 3, -1)[1],
            "dorefa_activation": ops.dorefa_activation(x, 2)[1],
        }
        received["inside"], received["above"] = ops.pact(x, alpha, 2)[1:]
        for name, mask in received.items():
            packed = np.packbits(expected[name].cpu().numpy(), bitorder="little")
            assert mask.tolist() == packed.tolist(), (name, length)


def test_bytes_saved_for_backward(device):
    n = 1000
    x = torch.randn(n, device=device, requires_grad=True)
    scale = torch.full((), 0.3, device=device, requires_grad=True)

    def saved(fn):
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
            fn()
        return tensors

    def size(tensors):
        return sum(t.nbytes for t in tensors)

    assert size(saved(lambda: ste_ops.fake_quantize(x, 0.1, 0, -8, 7))) == n // 8
    assert size(saved(lambda: ste_ops.dorefa_activation(x, 2))) == n // 8
    assert size(saved(lambda: ste_ops.pact(x, scale, 2))) == 2 * (n // 8) + 4
    assert size(saved(lambda: ste_ops.lsq(x, scale.detach(), -8, 7))) == n // 8
    assert size(saved(lambda: ste_ops.lsq_plus(x, scale.detach(), scale.detach(), -8, 7))) == n // 8
    for kept, count in (
        (saved(lambda: ste_ops.lsq(x, scale, -8, 7)), 1),
        (saved(lambda: ste_ops.lsq_plus(x, scale, scale, -8, 7)), 2),
        (saved(lambda: ste_ops.lsq_plus(x, scale.detach(), scale, -8, 7)), 2),
    ):
        assert size(kept) == x.nbytes + 4 * count
        assert kept[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize("shape", [(300_007,), (40, 7501), (7501, 40), (3, 100, 1003)])
def test_many_threads_equal_one(device, shape):
    x, upstream = torch.randn(shape, device=device), torch.randn(shape, device=device)
    alpha = torch.ones((), device=device)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append([])
            for axis in channel_axes(x):
                scale, _ = scales(x, axis, device)
                results[-1] += gradients(ste_ops.lsq, upstream, x, scale, -4, 3, axis)
                results[-1] += gradients(ste_ops.lsq_plus, upstream, x, scale, scale.flip(0), -4, 3, axis)
            results[-1] += gradients(ste_ops.pact, upstream, x, alpha, 2)
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(same_bits, result, results[0]))


def test_the_sum_is_float64(device):
    """Terms that float32 would lose: 2^25 and then 4096 times 1."""
    x = torch.full((4097,), 100.0, device=device)
    upstream = torch.ones_like(x)
    upstream[0] = 2.0**25
    scale = torch.ones((), device=device, dtype=torch.float64)
    *_, of_scale = gradients(ste_ops.lsq, upstream, x, scale, -1, 1, None, 1.0)
    assert of_scale.item() == 2**25 + 4096
    *_, of_offset = gradients(ste_ops.lsq_plus, upstream, x, scale, scale, -1, 1, None, 1.0)
    assert of_offset.item() == 2**25 + 4096
    *_, of_alpha = gradients(ste_ops.pact, upstream, x, scale, 2)
    assert of_alpha.item() == 2**25 + 4096
