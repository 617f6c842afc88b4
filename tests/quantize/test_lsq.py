"""lsq against its paper, against the reference and against torch, on every device."""

import math

import pytest
import torch
from support.quantize_cases import channel_axes, filler, gradients, layouts, same_bits, scales
from support.surrogate_table import DTYPES, assert_same_bits

import ste_ops
from ste_ops import reference

QUANT_MIN, QUANT_MAX = -4, 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lsq_equals_the_reference(device, dtype):
    for layout, x in layouts(dtype, device):
        upstream = filler(dtype, device, 1)(*x.shape)
        for axis in channel_axes(x):
            scale, _ = scales(x, axis, device)
            rest = QUANT_MIN, QUANT_MAX, axis
            out, of_x, _ = gradients(ste_ops.lsq, upstream, x, scale, *rest)
            expected, expected_of_x, _ = gradients(reference.lsq, upstream, x, scale, *rest)
            assert same_bits(out, expected), (layout, axis)
            assert same_bits(of_x, expected_of_x), (layout, axis)
            assert out.stride() == torch.empty_like(x).stride(), layout
            # Without a gradient for scale: the same from a mask.
            received = gradients(lambda x, s=scale, r=rest: ste_ops.lsq(x, s, *r), upstream, x)
            assert all(map(same_bits, received, (expected, expected_of_x))), (layout, axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_the_scale(device, dtype):
    """Of float64, so that it is the sum itself; in the other dtypes it is that, rounded."""
    for layout, x in layouts(dtype, device, special=False):
        upstream = filler(dtype, device, 1, special=False)(*x.shape)
        for axis in channel_axes(x):
            scale, _ = scales(x, axis, device)
            rest = QUANT_MIN, QUANT_MAX, axis
            received, expected = (
                gradients(f, upstream, x, scale.double(), *rest)[2] for f in (ste_ops.lsq, reference.lsq)
            )
            torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-12, msg=f"{layout} {axis}")
            if layout != "channels_last":
                continue
            for other in DTYPES:
                scale = scale.to(other)
                rounded = gradients(ste_ops.lsq, upstream, x, scale, *rest)[2]
                exact = gradients(ste_ops.lsq, upstream, x, scale.double(), *rest)[2]
                assert_same_bits(rounded, exact.to(other), f"{other} {axis}")


def test_agrees_with_torch_learnable_fake_quantize(device):
    """Whose scale has the same gradient but between a bound and the half step around it; torch adds it in float32."""
    x, upstream = torch.randn(300, device=device), torch.randn(300, device=device)
    v = x * (1 / torch.full_like(x, 0.3))
    half_step = ((v >= 3) & (v < 3.6)) | ((v <= -4) & (v > -4.6))
    assert half_step.any()
    upstream[half_step] = 0
    scale, zero = torch.full((1,), 0.3, device=device), torch.zeros(1, device=device)
    expected = gradients(
        lambda x, s: torch._fake_quantize_learnable_per_tensor_affine(x, s, zero, -4, 3, 0.7), upstream, x, scale
    )
    received = gradients(lambda x, s: ste_ops.lsq(x, s, -4, 3, None, 0.7), upstream, x, scale)
    assert same_bits(received[0], expected[0])
    assert torch.equal(received[1], expected[1])
    assert half_step.sum() < 100
    torch.testing.assert_close(received[2], expected[2], rtol=1e-5, atol=1e-5)


def equation_3(v: float, quant_min: int, quant_max: int) -> float:
    """The derivative of the quantized value with respect to the step, as printed in arXiv:1902.08153."""
    if quant_min < v < quant_max:
        return -v + round(v)
    return float(quant_min) if v <= quant_min else float(quant_max)


@pytest.mark.parametrize(("quant_min", "quant_max"), [(-2, 1), (0, 3), (-8, 7)])
@pytest.mark.parametrize("constant", [False, True])
def test_lsq_is_equation_3(device, quant_min, quant_max, constant):
    """Point by point, between a bound and the half step beyond it too, where a mask on the integer differs."""
    edge = [bound + d for bound in (quant_min, quant_max) for d in (-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75)]
    for v in [*edge, -0.25, 0.0, 0.3125, 0.5]:
        x = torch.tensor([v * 0.5], device=device)
        scale = torch.tensor([0.5], device=device)
        given = [x] if constant else [x, scale]
        call = lambda x, s=scale: ste_ops.lsq(x, s, quant_min, quant_max, None, 1.0)  # noqa: E731
        out, of_x, *of_scale = gradients(call, torch.ones_like(x), *given)
        assert out.item() == 0.5 * min(max(round(v), quant_min), quant_max), v
        assert of_x.item() == float(quant_min < v < quant_max), v
        assert [g.item() for g in of_scale] == ([] if constant else [equation_3(v, quant_min, quant_max)]), v


def test_the_default_gradient_scale(device):
    x = torch.randn(6, 50, device=device)
    for axis, sharing in ((None, 300), (0, 50), (1, 6)):
        scale, _ = scales(x, axis, device)
        by_default = gradients(ste_ops.lsq, x, x, scale, -8, 7, axis)[2]
        given = gradients(ste_ops.lsq, x, x, scale, -8, 7, axis, 1 / math.sqrt(sharing * 7))[2]
        torch.testing.assert_close(by_default, given)
