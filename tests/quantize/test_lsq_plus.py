"""lsq_plus against the reference, against lsq, and at its bounds, on every device."""

import math

import pytest
import torch
from support.quantize_cases import channel_axes, filler, gradients, layouts, same_bits, scales
from support.surrogate_table import DTYPES, assert_same_bits

import ste_ops
from ste_ops import reference

LOW, HIGH = -4, 3


def offsets(scale):
    """As many, in (-0.6, 0.4)."""
    return scale.flip(0) * 2 - 0.8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lsq_plus_equals_the_reference(device, dtype):
    for layout, x in layouts(dtype, device):
        upstream = filler(dtype, device, 1)(*x.shape)
        for axis in channel_axes(x):
            scale, _ = scales(x, axis, device)
            for given in ((scale, offsets(scale)), (scale[:1], offsets(scale)), (scale, offsets(scale[:1]))):
                out, of_x, *_ = gradients(ste_ops.lsq_plus, upstream, x, *given, LOW, HIGH, axis)
                expected, expected_of_x, *_ = gradients(reference.lsq_plus, upstream, x, *given, LOW, HIGH, axis)
                assert same_bits(out, expected), (layout, axis)
                assert same_bits(of_x, expected_of_x), (layout, axis)
                assert out.stride() == torch.empty_like(x).stride(), layout
                # Without a gradient for scale and offset: the same from a mask.
                received = gradients(lambda x, g=given, a=axis: ste_ops.lsq_plus(x, *g, LOW, HIGH, a), upstream, x)
                assert all(map(same_bits, received, (expected, expected_of_x))), (layout, axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradients_of_scale_and_offset(device, dtype):
    """Of float64, so that each is the sum itself; in the other dtypes it is that, rounded."""
    for layout, x in layouts(dtype, device, special=False):
        upstream = filler(dtype, device, 1, special=False)(*x.shape)
        for axis in channel_axes(x):
            scale, _ = scales(x, axis, device)
            given = scale.double(), offsets(scale).double()
            rest = LOW, HIGH, axis
            received, expected = (gradients(m.lsq_plus, upstream, x, *given, *rest)[2:] for m in (ste_ops, reference))
            torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-12, msg=f"{layout} {axis}")
            if layout != "channels_last":
                continue
            for mine, other in [(a, b) for a in DTYPES for b in DTYPES]:
                given = scale.to(mine), offsets(scale).to(other)
                rounded = gradients(ste_ops.lsq_plus, upstream, x, *given, *rest)[2:]
                exact = gradients(ste_ops.lsq_plus, upstream, x, *(g.double() for g in given), *rest)[2:]
                assert_same_bits(rounded[0], exact[0].to(mine), f"{mine} {other} {axis}")
                assert_same_bits(rounded[1], exact[1].to(other), f"{mine} {other} {axis}")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_of_them_for_the_tensor_and_the_other_for_channels(device, axis):
    """Their gradients are sums over what they belong to, times one and the same grad_scale."""
    x, upstream = torch.randn(2, 6, 50, device=device, dtype=torch.float64)
    scale, _ = scales(x, axis, device)
    scale = scale.double()
    for given in ((scale[:1], offsets(scale)), (scale, offsets(scale[:1])), (scale[0], offsets(scale))):
        received, expected = (gradients(m.lsq_plus, upstream, x, *given, 0, 7, axis) for m in (ste_ops, reference))
        assert [g.shape for g in received[2:]] == [g.shape for g in given]
        torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-12)


def test_with_an_offset_of_0_it_is_lsq(device):
    for layout, x in layouts(torch.float32, device):
        upstream = filler(torch.float32, device, 1)(*x.shape)
        for axis in channel_axes(x):
            scale, _ = scales(x, axis, device)
            received = gradients(ste_ops.lsq_plus, upstream, x, scale, torch.zeros_like(scale), LOW, HIGH, axis)
            expected = gradients(ste_ops.lsq, upstream, x, scale, LOW, HIGH, axis)
            assert torch.equal(received[0].nan_to_num(9.0), expected[0].nan_to_num(9.0)), layout  # -0 + 0 is 0
            assert all(map(same_bits, received[1:3], expected[1:])), (layout, axis)


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (0, 3), (-8, 7)])
@pytest.mark.parametrize("learned", [(), (0,), (1,), (0, 1)])
def test_the_bounds_and_the_ties(device, low, high, learned):
    """Point by point; all of these numbers are exact."""
    edge = [bound + d for bound in (low, high) for d in (-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75)]
    for v in [*edge, -0.25, 0.0, 0.3125, 0.5, -math.inf, math.inf]:
        x = torch.tensor([v * 0.5 + 0.375], device=device)
        parameters = [torch.tensor([0.5], device=device), torch.tensor([0.375], device=device)]

        def call(x, *some, parameters=parameters):
            given = [some[learned.index(i)] if i in learned else p for i, p in enumerate(parameters)]
            return ste_ops.lsq_plus(x, *given, low, high, None, 0.25)

        out, of_x, *others = gradients(call, torch.full_like(x, 3.0), x, *[parameters[i] for i in learned])
        assert (
            out.item() == 0.5 * (min(max(round(v), low), high) if math.isfinite(v) else low if v < 0 else high) + 0.375
        )
        inside = low < v < high
        assert of_x.item() == (3.0 if inside else 0.0), v
        slope = round(v) - v if inside else low if v <= low else high
        wanted = [0.75 * slope, 0.0 if inside else 0.75]
        assert [g.item() for g in others] == [wanted[i] for i in learned], v


def test_a_nan_stays(device):
    x = torch.tensor([0.3, math.nan, 0.1], device=device)
    scale, offset = torch.tensor([0.5], device=device), torch.tensor([0.1], device=device)
    for m in (ste_ops, reference):
        out, of_x, of_scale, of_offset = gradients(m.lsq_plus, torch.ones_like(x), x, scale, offset, -4, 3)
        assert out.isnan().tolist() == [False, True, False]
        assert of_x.tolist() == [1, 0, 1]
        assert of_scale.isnan().item()
        # What does not pass to x goes to the offset.
        torch.testing.assert_close(of_offset.item(), 1 / math.sqrt(9))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_offset_that_is_not_finite(device, request, value):
    """On the CPU it is refused; on CUDA, where the host would wait for it, the result says so."""
    x = torch.randn(3, 5, device=device, requires_grad=True)
    scale, offset = torch.ones(5, device=device, requires_grad=True), torch.zeros(5, device=device)
    offset[3] = value
    if "cpu" in request.node.name:
        for given in ((scale, offset), (scale.detach(), offset)):
            with pytest.raises(RuntimeError, match=r"lsq_plus: offset must be finite, got -?(nan|inf) at index 3"):
                ste_ops.lsq_plus(x, *given, -4, 3, 1)
        with pytest.raises(RuntimeError, match=r"lsq_plus: offset must be finite, got -?(nan|inf) at index 3"):
            torch.ops.ste_ops.lsq_plus_backward(x.detach(), x.detach(), scale.detach(), offset, -4, 3, 1, 1.0)
        with pytest.raises(RuntimeError, match=r"lsq_plus: scale must be positive and finite, .* got 0 at index 0"):
            ste_ops.lsq_plus(x, scale * 0, offset * 0, -4, 3, 1)
        return
    out = ste_ops.lsq_plus(x, scale, offset, -4, 3, 1)
    assert torch.equal(out.isfinite().cpu(), torch.tensor([True, True, True, False, True]).expand(3, 5))


def test_the_operator_itself_refuses_a_gradient_of_two_shapes():
    x = torch.randn(3, 5)
    with pytest.raises(
        RuntimeError, match="lsq_plus_backward: scale and offset must have as many elements, got 1 and 5"
    ):
        torch.ops.ste_ops.lsq_plus_backward(x, x, torch.ones(1), torch.zeros(5), -4, 3, 1, 1.0)
