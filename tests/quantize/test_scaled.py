"""Quantizers whose scale is a statistic of the tensor itself, against their references, on every device."""

import math

import pytest
import torch
from support.surrogate_table import DTYPES, LAYOUTS, assert_same_bits, filler, forward_and_gradient
from torch.func import grad, jvp, vmap

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.surrogate import ApproxSign, Clip, Identity, Rect

nan, inf = math.nan, math.inf

# name -> the operator with its arguments, of either module.
CASES = {
    "xnor_weight": lambda module: module.xnor_weight,
    "magnitude_aware_sign": lambda module: module.magnitude_aware_sign,
    "xnor_weight of ApproxSign": lambda module: lambda w: module.xnor_weight(w, ApproxSign()),
    "xnor_weight of Rect": lambda module: lambda w: module.xnor_weight(w, Rect(0.4)),
    "magnitude_aware_sign of ApproxSign": lambda module: lambda w: module.magnitude_aware_sign(w, ApproxSign()),
    "magnitude_aware_sign of Identity": lambda module: lambda w: module.magnitude_aware_sign(w, Identity()),
    "bitnet_weight": lambda module: module.bitnet_weight,
    "bitnet_activation": lambda module: module.bitnet_activation,
    "bitnet_activation of 3 bits": lambda module: lambda x: module.bitnet_activation(x, 3),
    "dorefa_weight of 1 bit": lambda module: lambda w: module.dorefa_weight(w, 1),
    "dorefa_weight of 2 bits": lambda module: lambda w: module.dorefa_weight(w, 2),
    "dorefa_weight of 8 bits": lambda module: lambda w: module.dorefa_weight(w, 8),
}
PASSING = [name for name in CASES if name.startswith("bitnet") or name == "dorefa_weight of 1 bit"]
CURVED = [name for name in CASES if name not in PASSING and name != "bitnet_activation of 3 bits"]

SHAPES = {
    **LAYOUTS,
    "convolution": lambda fill: fill(6, 5, 3, 3),
    "convolution of rows": lambda fill: fill(3, 5, 6).permute(2, 0, 1),
    "wide rows": lambda fill: fill(3, 5000),
    "wide columns": lambda fill: fill(5000, 3).t(),
    "one group in the middle": lambda fill: fill(40, 3, 70).permute(1, 0, 2),
    "tokens apart": lambda fill: fill(4, 30, 50).transpose(1, 2),
}


def finite(dtype, seed=0):
    """The specials without NaN and infinity, which would make a whole group NaN, and with several equal maxima."""
    return lambda *shape: filler(dtype, Clip(1.0), "cpu", seed)(*shape).nan_to_num(0.7, 1.5, -1.5).clamp(-2.5, 2.5)


def tolerance(dtype):
    # 1 - tanh(w)^2 loses the two digits that it is below 1.
    return {"rtol": max(32 * torch.finfo(dtype).eps, 2e-5 if dtype != torch.float64 else 1e-12), "atol": 1e-6}


def assert_levels(name, received, expected, message):
    """Equal but for the last place of the statistic; of tanh's rounding a level may be the next one, rarely."""
    if not name.startswith("dorefa") or "1 bit" in name:
        eps = torch.finfo(received.dtype).eps
        torch.testing.assert_close(
            received, expected, rtol=8 * eps if eps < 1e-15 else 2 * eps, atol=0, msg=lambda m: f"{message}: {m}"
        )
        return
    difference = (received.double() - expected.double()).abs()
    step = 2 / (2 ** (2 if "2 bits" in name else 8) - 1)
    assert float(difference.max() if difference.numel() else 0) <= step * 1.01, message
    assert int((difference > step / 2).sum()) <= max(1, received.numel() // 500), message


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference_in_every_layout(device, name, dtype):
    fn, slow = (CASES[name](module) for module in (ste_ops, reference))
    for layout, make in SHAPES.items():
        w = make(finite(dtype)).to(device)
        upstream = finite(dtype, 1)(*w.shape).to(device)
        received, expected = (forward_and_gradient(f, w, upstream) for f in (fn, slow))
        assert_levels(name, received[0], expected[0], layout)
        torch.testing.assert_close(
            received[1], expected[1], **tolerance(dtype), msg=lambda m, layout=layout: f"{layout}: {m}"
        )
        assert received[0].stride() == torch.empty_like(w).stride(), layout
        assert received[0].dtype == received[1].dtype == dtype
        if name in PASSING:
            assert_same_bits(received[1], upstream, layout)


@pytest.mark.parametrize("name", CASES)
def test_nan_and_infinity_stay_in_their_group(device, name):
    fn, slow = (CASES[name](module) for module in (ste_ops, reference))
    w = torch.randn(5, 7, device=device)
    w[1, 2], w[2, 3], w[3, 1] = nan, inf, -inf
    for x in (w, w.t(), w[:2], w[2:3], w[1]):
        received, expected = (forward_and_gradient(f, x, torch.randn_like(x)) for f in (fn, slow))
        torch.testing.assert_close(received[0], expected[0], equal_nan=True)


def test_what_is_written_in_the_docs(device):
    """The references are held to the same numbers, so that a mistake in both does not cancel."""
    w = torch.tensor([[0.5, -1.5, -0.0, 1.0], [2.0, 0.0, 0.0, 0.0]], device=device)
    upstream = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]], device=device)
    for module in (ste_ops, reference):
        out, gradient = forward_and_gradient(module.xnor_weight, w, upstream)
        assert out.tolist() == [[0.75, -0.75, 0.75, 0.75], [0.5] * 4]
        # Sums of grad * sign(w) over 4: (1 - 2 + 4 + 8) / 4 and 15 / 4.
        assert gradient.tolist() == [[3.5, -2.75, 5.75, 8.75], [3.75, 4.75, 5.75, 7.75]]
        out, gradient = forward_and_gradient(module.magnitude_aware_sign, w, upstream)
        assert out.tolist() == [[0.75, -0.75, 0.75, 0.75], [0.5] * 4]
        assert gradient.tolist() == [[0.75, 0.0, 3.0, 6.0], [0.0, 1.0, 2.0, 4.0]]
        assert module.xnor_weight(w[0]).tolist() == [0.75, -0.75, 0.75, 0.75]
        assert module.xnor_weight(w[0, 1]).item() == -1.5
        assert module.dorefa_weight(w, 1).unique().tolist() == [-0.625, 0.625]
        # The mean is 0.625: half of it and less become 0.
        x = torch.tensor([0.3125, 0.375, -0.3125, -1.5], device=device)
        assert (module.bitnet_weight(x) / 0.625).tolist() == [0.0, 1.0, -0.0, -1.0]
        assert module.bitnet_weight(torch.zeros(3, device=device)).tolist() == [0, 0, 0]
        small = torch.tensor([4e-6, 6e-6, -2e-5], device=device)
        torch.testing.assert_close(module.bitnet_weight(small[:2]), torch.tensor([0, 1e-5], device=device))
        # 3 levels up and 4 down, half to even.
        x = torch.tensor([[3.0, 0.5, 1.5, -2.5], [1e-6, 0.0, -1e-6, 0.0]], device=device)
        assert module.bitnet_activation(x, 3).tolist() == [[3, 0, 2, -2], [0, 0, -0.0, 0]]
        assert module.dorefa_weight(torch.tensor([inf, 0.0, -50.0], device=device), 3).tolist()[::2] == [1, -1]


def test_equal_maxima_share_their_gradient(device):
    w = torch.tensor([0.5, -0.5, 0.5, 0.1], device=device)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    t = math.tanh(0.5)
    total = t * (1 - 2 + 3) + math.tanh(0.1) * 4
    slope = 1 - t * t
    expected = [slope * (g / t - sign * total / t / t / 3) for g, sign in ((1, 1), (2, -1), (3, 1))]
    expected.append((1 - math.tanh(0.1) ** 2) * 4 / t)
    for module in (ste_ops, reference):
        _, gradient = forward_and_gradient(lambda w, module=module: module.dorefa_weight(w, 4), w, upstream)
        torch.testing.assert_close(gradient, torch.tensor(expected, device=device))
        # Zeros divide nothing, and saturated weights are all maxima.
        for x in (torch.zeros(3, device=device), torch.full((3,), 30.0, device=device)):
            found = forward_and_gradient(
                lambda w: ste_ops.dorefa_weight(w, 4), x, torch.full((3,), 0.25, device=device)
            )
            slow = forward_and_gradient(
                lambda w: reference.dorefa_weight(w, 4), x, torch.full((3,), 0.25, device=device)
            )
            torch.testing.assert_close(found, slow)


@pytest.mark.parametrize("name", CURVED)
def test_gradient_against_autograd_in_float64(device, name):
    """Large enough for many blocks of a reduction, and maxima in several places."""
    w = torch.randn(97, 1031, device=device) * 0.5
    w[5, 7] = w[50, 1000] = -2.6
    upstream = torch.randn_like(w)
    fn, slow = (CASES[name](module) for module in (ste_ops, reference))
    received = forward_and_gradient(fn, w, upstream)[1]
    expected = forward_and_gradient(slow, w.double(), upstream.double())[1]
    torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_many_threads_equal_one(device, name):
    w, upstream = torch.randn(300, 311, device=device), torch.randn(300, 311, device=device)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(forward_and_gradient(CASES[name](ste_ops), w, upstream))
            results[-1] += forward_and_gradient(CASES[name](ste_ops), w.t(), upstream.t())
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        for received, expected in zip(others, results[0], strict=True):
            assert_same_bits(received, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["xnor_weight", "magnitude_aware_sign", "bitnet_activation", "dorefa_weight of 1 bit"])
def test_a_second_application_changes_nothing_more(device, name, dtype):
    """The step of bitnet_activation settles at the second one, within its last place of the first."""
    fn = CASES[name](ste_ops)
    once = fn(torch.randn(200, 65, device=device).to(dtype))
    twice = fn(once)
    torch.testing.assert_close(twice, once, rtol=torch.finfo(dtype).eps, atol=0)
    assert_same_bits(fn(twice), twice)


def test_bytes_saved_for_backward(device):
    w = torch.randn(8, 8, device=device, requires_grad=True)
    for name in CASES:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            CASES[name](ste_ops)(w)
        assert sum(t.nbytes for t in saved if t.data_ptr() != w.data_ptr()) <= 4 * 8 + 8 * ("Rect" in name), (
            name
        )  # its mask
        assert (name in PASSING) == (not saved), name


# Second order, transforms, compilation.


@pytest.mark.parametrize("name", CURVED)
def test_second_order(device, name):
    fn, slow = (CASES[name](module) for module in (ste_ops, reference))
    w = (torch.randn(4, 5, dtype=torch.float64, device=device) * 1.2).requires_grad_()
    upstream = torch.randn(4, 5, dtype=torch.float64, device=device, requires_grad=True)
    found = []
    for f in (fn, slow):
        (first,) = torch.autograd.grad(f(w), w, upstream, create_graph=True)
        found.append([first, *torch.autograd.grad(first.square().sum(), (w, upstream), allow_unused=True)])
        (first,) = torch.autograd.grad((f(w) ** 2).sum(), w, create_graph=True)
        found[-1] += [first, *torch.autograd.grad(first.square().sum(), w)]
    for received, expected in zip(*found, strict=True):
        # magnitude_aware_sign does not depend on w beyond its mask.
        zero = torch.zeros_like(w)
        torch.testing.assert_close(*(zero if x is None else x for x in (received, expected)))

    def backward(g):
        return torch.autograd.grad(fn(w), w, g, create_graph=True)[0]

    assert torch.autograd.gradcheck(backward, upstream)
    assert torch.autograd.gradgradcheck(backward, upstream)


def loss_of(fn):
    return lambda w: (fn(w) * w.sin()).sum()


def tangent_of(slow, w, v):
    """J v by the transposed product of the transposed product, which is how autograd knows it."""
    w = w.clone().requires_grad_()
    u = torch.zeros_like(w, requires_grad=True)
    (product,) = torch.autograd.grad(slow(w), w, u, create_graph=True)
    return torch.autograd.grad(product, u, v)[0]


@pytest.mark.parametrize("name", CASES)
def test_transforms(device, name):
    fn, slow = (CASES[name](module) for module in (ste_ops, reference))
    w = torch.randn(4, 3, 5, dtype=torch.float64, device=device) * 1.2
    rows = [torch.autograd.functional.jacobian(loss_of(slow), sample) for sample in w]
    torch.testing.assert_close(grad(loss_of(fn))(w[0]), rows[0])
    torch.testing.assert_close(vmap(grad(loss_of(fn)))(w), torch.stack(rows))
    torch.testing.assert_close(vmap(grad(loss_of(fn)), in_dims=1)(w.movedim(0, 1)), torch.stack(rows))
    torch.testing.assert_close(vmap(fn, in_dims=2)(w.movedim(0, 2)), torch.stack([slow(sample) for sample in w]))
    # Samples of one dimension and of none.
    torch.testing.assert_close(vmap(vmap(fn))(w), torch.stack([torch.stack([slow(r) for r in s]) for s in w]))
    torch.testing.assert_close(vmap(fn)(w[0, 0]), torch.stack([slow(x) for x in w[0, 0]]))
    v = w[0].cos()
    out, tangent = jvp(fn, (w[0],), (v,))
    torch.testing.assert_close(out, slow(w[0]))
    torch.testing.assert_close(tangent, tangent_of(slow, w[0], v))
    torch.testing.assert_close(
        vmap(lambda w, v: jvp(fn, (w,), (v,))[1])(w, w.cos()),
        torch.stack([tangent_of(slow, sample, sample.cos()) for sample in w]),
    )
    z = w[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_of(slow)(z), z, create_graph=True)
    expected = torch.autograd.grad(first, z, v)[0]
    torch.testing.assert_close(grad(lambda w: (grad(loss_of(fn))(w) * v).sum())(w[0]), expected)
    torch.testing.assert_close(jvp(grad(loss_of(fn)), (w[0],), (v,))[1], expected)
    # A batch that autograd differentiates from outside goes through the kernels.
    batch = w.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(vmap(loss_of(fn))(batch).sum(), batch)[0], torch.stack(rows))
    assert vmap(fn)(torch.zeros(0, 3, device=device)).shape == (0, 3)


def test_training_compiles(device):
    torch._dynamo.reset()
    layer = torch.nn.Linear(8, 6).to(device)
    x = torch.randn(4, 8, device=device)

    def loss(x, module=ste_ops):
        y = sum(torch.nn.functional.linear(x, fn(module)(layer.weight)) for fn in CASES.values())
        return module.bitnet_activation(y, 8).square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    received, expected = (torch.autograd.grad(f(x), layer.weight)[0] for f in (compiled, loss))
    torch.testing.assert_close(received, expected)
    torch.testing.assert_close(expected, torch.autograd.grad(loss(x, reference), layer.weight)[0])


# Refusals.


@pytest.mark.parametrize("name", ["xnor_weight", "magnitude_aware_sign", "bitnet_weight", "bitnet_activation"])
def test_what_is_no_floating_tensor_is_refused(name):
    argument = "x" if name == "bitnet_activation" else "w"
    with pytest.raises(TypeError, match=f"{name}: {argument} must be a tensor, got list"):
        getattr(ste_ops, name)([1.0])
    with pytest.raises(TypeError, match=f"{name}: {argument} must be float64, .* got torch.int32"):
        getattr(ste_ops, name)(torch.ones(3, dtype=torch.int32))


@pytest.mark.parametrize(("name", "least"), [("dorefa_weight", 1), ("bitnet_activation", 2)])
def test_bits_out_of_range_are_refused(name, least):
    fn = getattr(ste_ops, name)
    for bits in (least - 1, 25, -1):
        with pytest.raises(ValueError, match=rf"{name}: bits must be in \[{least}, 24\], got {bits}"):
            fn(torch.ones(3), bits)
    for bits in (2.0, True, "2"):
        with pytest.raises(TypeError, match=f"{name}: bits must be an integer, got {bits!r}"):
            fn(torch.ones(3), bits)
    with pytest.raises(TypeError, match=r"must be float64, float32, bfloat16 or float16, got torch\.int64"):
        fn(torch.ones(3, dtype=torch.int64), 2)
    assert (
        fn(torch.tensor([0.3, -1.0]), 24).tolist() == pytest.approx([math.tanh(0.3) / math.tanh(1), -1]) or least == 2
    )


def test_raw_operators_check_what_they_index_with(device):
    w = torch.ones(4, 6, device=device)
    with pytest.raises(RuntimeError, match="xnor_weight_backward: the statistic must be 4 contiguous numbers of Float"):
        ops.xnor_weight_backward(w, w, torch.ones(3, device=device), True)
    with pytest.raises(RuntimeError, match="the statistic must be 8 contiguous numbers of Float, got 8 of Double"):
        ops.dorefa_weight_backward(w, w, torch.ones(8, device=device, dtype=torch.float64), True)
    with pytest.raises(RuntimeError, match="magnitude_aware_sign_backward: grad must have w's shape"):
        ops.magnitude_aware_sign_backward(w[1:], w, torch.ones(1, device=device), False)
    with pytest.raises(RuntimeError, match="bitnet_weight: a scale for each channel needs a dimension, got none"):
        ops.bitnet_weight(w[0, 0], True)
    with pytest.raises(RuntimeError, match=r"dorefa_weight: bits must be in \[2, 24\] here, got 1"):
        ops.dorefa_weight(w, 1, False)
    with pytest.raises(RuntimeError, match=r"bitnet_activation: bits must be in \[2, 24\], got 25"):
        ops.bitnet_activation(w, 25)
