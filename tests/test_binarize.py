"""heaviside and sign against the reference, on every device, for values, layouts and gradients."""

import copy
import math
import os
import pickle
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table import (
    DTYPES,
    STEPS,
    SURROGATES,
    all_instances,
    assert_gradient,
    assert_same_bits,
    filler,
    first_instances,
    layouts,
    specials,
)

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.surrogate import Clip, Identity, Surrogate

nan, inf = math.nan, math.inf


class StraightThroughStep(torch.autograd.Function):
    """The tutorial's own class."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad_input[torch.abs(x) > 1] = 0
        return grad_input


def forward_and_gradient(fn, x, grad):
    x = x.detach().requires_grad_()
    out = fn(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


# Values.


@pytest.mark.parametrize(
    ("x", "heaviside", "sign", "passes"),
    [
        (0.0, 0, 1, 1),
        (-0.0, 0, 1, 1),
        (nan, 0, -1, 1),
        (inf, 1, 1, 0),
        (-inf, 0, -1, 0),
        (1.0, 1, 1, 1),
        (-1.0, 0, -1, 1),
        (1.0078125, 1, 1, 0),
        (-1.0078125, 0, -1, 0),
        (6e-8, 1, 1, 1),
        (-6e-8, 0, -1, 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_in_the_docs(device, dtype, x, heaviside, sign, passes):
    """The reference is held to the same numbers, so that a mistake in both does not cancel."""
    x = torch.full((3,), x, dtype=dtype, device=device)
    for module in (ste_ops, reference):
        for name, level in (("heaviside", heaviside), ("sign", sign)):
            fn = getattr(module, name)
            out, gradient = forward_and_gradient(fn, x, torch.full_like(x, 0.5))
            assert_same_bits(out, torch.full_like(x, level))
            assert_same_bits(gradient, torch.full_like(x, 0.5 * passes))
            _, gradient = forward_and_gradient(lambda x, fn=fn: fn(x, Identity()), x, torch.full_like(x, 0.5))
            assert_same_bits(gradient, torch.full_like(x, 0.5))


def test_the_tutorial_case(device):
    x = torch.tensor([-0.5, 0.3, 1.2, -0.8], device=device, requires_grad=True)
    y = ste_ops.heaviside(x)
    assert y.tolist() == [0, 1, 1, 0]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_equals_the_tutorial_class_bit_for_bit(device, layout):
    values = torch.randn(40, 60, device=device) * 1.5
    values.view(-1)[:11] = torch.tensor([nan, 0.0, -0.0, 1.0, -1.0, inf, -inf, 1.0000001, -1.0000001, 1e-45, -1e-45])
    x = {"contiguous": values, "transposed": values.t(), "sliced": values[::3, ::2]}[layout]
    grad = torch.randn(x.shape, device=device)
    grad.view(-1)[-4:] = torch.tensor([nan, -0.0, inf, -inf])
    out, gradient = forward_and_gradient(ste_ops.heaviside, x, grad)
    expected_out, expected_gradient = forward_and_gradient(StraightThroughStep.apply, x, grad)
    assert_same_bits(out, expected_out)
    assert_same_bits(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", first_instances(), ids=repr)
@pytest.mark.parametrize("step", STEPS)
def test_equals_the_reference_in_every_layout(device, step, surrogate, dtype):
    for name, x in layouts(dtype, surrogate, device):
        grad = filler(dtype, surrogate, device, seed=1)(*x.shape)
        out, gradient = forward_and_gradient(lambda x: getattr(ste_ops, step)(x, surrogate), x, grad)
        expected = forward_and_gradient(lambda x: getattr(reference, step)(x, surrogate), x, grad)
        assert_same_bits(out, expected[0], name)
        assert out.stride() == torch.empty_like(x).stride(), name
        assert out.device == x.device, name
        assert_gradient(surrogate, gradient, expected[1], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", all_instances(), ids=repr)
def test_special_values(device, surrogate, dtype):
    x = specials(dtype, surrogate).to(device)
    # Every special meets every lane of a vector and every bit of a byte.
    x = torch.stack([x.roll(k) for k in range(32)]).flatten()
    for step in STEPS:
        expected = forward_and_gradient(lambda x, step=step: getattr(reference, step)(x, surrogate), x, x)
        out, gradient = forward_and_gradient(lambda x, step=step: getattr(ste_ops, step)(x, surrogate), x, x)
        assert_same_bits(out, expected[0], step)
        assert_gradient(surrogate, gradient, expected[1], step)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_65536_values(device, dtype):
    x = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    for surrogate in all_instances():
        for step in STEPS:
            expected = forward_and_gradient(lambda x: getattr(reference, step)(x, surrogate), x, torch.ones_like(x))  # noqa: B023
            received = forward_and_gradient(lambda x: getattr(ste_ops, step)(x, surrogate), x, torch.ones_like(x))  # noqa: B023
            assert_same_bits(received[0], expected[0], f"{step} {surrogate}")
            assert_gradient(surrogate, received[1], expected[1], f"{step} {surrogate}")


def test_every_surrogate_has_a_row():
    named = {name for name, value in vars(ste_ops.surrogate).items() if _is_surrogate(value)}
    assert named == set(SURROGATES)
    assert all(type(surrogate).__name__ == name for name, row in SURROGATES.items() for surrogate in row)


def _is_surrogate(value):
    return isinstance(value, type) and issubclass(value, Surrogate) and value is not Surrogate


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_and_strides(device, data):
    sizes = data.draw(st.lists(st.integers(0, 9), max_size=4), "sizes")
    surrogate, dtype = Clip(0.5), data.draw(st.sampled_from(DTYPES), "dtype")

    def tensor(seed):
        x = filler(dtype, surrogate, device, seed)(*sizes)
        x = x.permute(data.draw(st.permutations(range(len(sizes))), "order"))
        for dim in range(x.dim()):
            if x.shape[dim] == 1:
                x = x.expand([5 if d == dim else -1 for d in range(x.dim())])
            x = x[(slice(None),) * dim + (slice(data.draw(st.integers(0, 2)), None, data.draw(st.integers(1, 3))),)]
        return x

    x = tensor(0)
    grad = tensor(1)
    if grad.shape != x.shape:
        grad = filler(dtype, surrogate, device, 1)(*x.shape)
    step = data.draw(st.sampled_from(STEPS), "step")
    out, gradient = forward_and_gradient(lambda x: getattr(ste_ops, step)(x, surrogate), x, grad)
    expected = forward_and_gradient(lambda x: getattr(reference, step)(x, surrogate), x, grad)
    assert_same_bits(out, expected[0])
    assert_gradient(surrogate, gradient, expected[1])
    assert out.stride() == torch.empty_like(x).stride()


# The mask.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_the_mask_has_one_bit_an_element(device, dtype, offset):
    values = filler(dtype, Clip(1.0), device)(301 + offset)[offset:]
    grads = torch.arange(1, 303 + offset, device=device).to(dtype)[offset:]
    for length in range(301):
        x, grad = values[:length], grads[:length]
        _, mask = ops.heaviside(x, Clip.number, 1.0, 0.0)
        passes = ~(x.abs() > 1)
        assert mask.tolist() == np.packbits(passes.cpu().numpy(), bitorder="little").tolist(), length
        assert_same_bits(ops.binarize_backward(grad, mask), torch.where(passes, grad, 0), str(length))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_bytes_saved_for_backward(device, step, n):
    def saved_bytes(surrogate):
        saved = []
        x = torch.randn(n, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            getattr(ste_ops, step)(x, surrogate)
        return sum(saved)

    assert saved_bytes(Clip(1.0)) == (n + 7) // 8
    assert saved_bytes(Identity()) == 0


@pytest.mark.parametrize("surrogate", first_instances(), ids=repr)
def test_a_mask_does_not_keep_its_input_alive(device, surrogate):
    hidden = torch.randn(5, device=device, requires_grad=True) * 1
    alive = weakref.ref(hidden)
    y = ste_ops.sign(hidden, surrogate)
    del hidden
    assert (alive() is None) == (surrogate.saves in ("nothing", "mask"))
    y.sum().backward()


def test_many_threads_equal_one(device):
    # Past several grains of parallel_for, and no multiple of a tile, a byte or a vector.
    x = filler(torch.float32, Clip(1.0), device)(311_111)
    grad = torch.randn_like(x)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out, mask = ops.sign(x, Clip.number, 1.0, 0.0)
            results.append((out, mask, ops.binarize_backward(grad, mask)))
    finally:
        torch.set_num_threads(threads)
    for out, mask, gradient in results:
        assert_same_bits(out, torch.where(x >= 0, 1.0, -1.0))
        assert torch.equal(mask, results[0][1])
        assert_same_bits(gradient, torch.where(x.abs() > 1, 0, grad))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    if os.environ.get("STE_OPS_SLOW") != "1":
        pytest.skip("opt-in: STE_OPS_SLOW=1, and 14 GiB of memory")
    n = 2**31 + 9
    x = torch.zeros(n, dtype=torch.bfloat16)
    x[-9:] = torch.tensor([-2.0, 2.0, -1.0, 1.0, 0.5, 3.0, -3.0, 0.0, 1.0])
    out, mask = ops.sign(x, Clip.number, 1.0, 0.0)
    assert out[-9:].tolist() == [-1, 1, -1, 1, 1, 1, -1, 1, 1]
    assert mask[-2:].tolist() == [0b10011100, 1]
    del x
    gradient = ops.binarize_backward(out, mask)
    assert gradient[-9:].tolist() == [0, 0, -1, 1, 1, 0, 0, 1, 1]
    assert gradient[: 2**31].sum(dtype=torch.float64).item() == 2**31


# Incoming gradients.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_layout", ["contiguous", "transposed", "sliced", "channels_last"])
def test_gradients_of_any_strides(device, x_layout, dtype):
    fill = filler(dtype, Clip(1.0), device)
    x = {
        "contiguous": lambda: fill(4, 6, 10, 8),
        "transposed": lambda: fill(8, 10, 6, 4).permute(3, 2, 1, 0),
        "sliced": lambda: fill(8, 6, 20, 8)[::2, :, ::2],
        "channels_last": lambda: fill(4, 6, 10, 8).contiguous(memory_format=torch.channels_last),
    }[x_layout]()
    grads = {
        "contiguous": fill(4, 6, 10, 8),
        "transposed": fill(10, 6, 8, 4).permute(3, 1, 0, 2),
        "sliced": fill(4, 12, 10, 16)[:, ::2, :, 8:],
        "channels_last": fill(4, 6, 10, 8).contiguous(memory_format=torch.channels_last),
        "expanded": fill(6, 1, 8).expand(4, 6, 10, 8),
        "scalar": fill().expand(4, 6, 10, 8),
        "offset": fill(4 * 6 * 10 * 8 + 1)[1:].view(4, 6, 10, 8),
    }
    for name, grad in grads.items():
        _, gradient = forward_and_gradient(ste_ops.sign, x, grad)
        assert_same_bits(gradient, torch.where(x.abs() > 1, torch.zeros_like(grad), grad), name)


def test_a_closed_mask_stops_nan_and_infinity(device):
    x = torch.tensor([2.0, -2.0, inf, -inf, 0.5], device=device)
    for value in (nan, inf, -inf, -0.0):
        _, gradient = forward_and_gradient(ste_ops.heaviside, x, torch.full_like(x, value))
        expected = torch.tensor([0.0, 0.0, 0.0, 0.0, value], device=device)
        assert_same_bits(gradient, expected, str(value))


# Autograd, as the tutorial uses it.


def test_no_grad_detach_and_requires_grad(device):
    x = torch.randn(9, device=device, requires_grad=True)
    with torch.no_grad():
        assert not ste_ops.sign(x).requires_grad
    with torch.inference_mode():
        assert ste_ops.sign(x).is_inference()
    with torch.set_grad_enabled(False):
        assert ste_ops.heaviside(x).grad_fn is None
    assert not ste_ops.sign(x.detach()).requires_grad
    y = ste_ops.sign(x)
    assert y.requires_grad
    assert not y.is_leaf
    assert not y.detach().requires_grad
    assert not ste_ops.sign(torch.randn(3, device=device)).requires_grad


def test_retain_grad_zero_grad_and_accumulation(device):
    x = torch.tensor([0.5, 2.0], device=device, requires_grad=True)
    y = ste_ops.heaviside(x)
    y.retain_grad()
    (3 * y).sum().backward()
    assert y.grad.tolist() == [3, 3]
    ste_ops.sign(x).sum().backward()
    assert x.grad.tolist() == [4, 0]
    torch.optim.SGD([x], lr=1.0).zero_grad()
    assert x.grad is None
    loss = ste_ops.sign(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert x.grad.tolist() == [2, 0]


def test_backward_of_several_roots(device):
    x = torch.tensor([0.5, 2.0, -0.5], device=device, requires_grad=True)
    a, b = ste_ops.heaviside(x), ste_ops.sign(x, Identity())
    torch.autograd.backward([a, b], [torch.tensor([1.0, 2.0, 3.0], device=device), torch.ones(3, device=device)])
    assert x.grad.tolist() == [2, 1, 4]
    ste_ops.sign(x).backward(gradient=torch.tensor([1.0, 1.0, -1.0], device=device), inputs=[x])
    assert x.grad.tolist() == [3, 1, 3]


def test_the_gradient_is_not_the_incoming_tensor_written_over(device):
    x = torch.tensor([0.5, 2.0], device=device, requires_grad=True)
    grad = torch.tensor([1.0, 1.0], device=device)
    for surrogate in first_instances():
        torch.autograd.grad(ste_ops.sign(x, surrogate), x, grad)
        assert grad.tolist() == [1, 1]


def curved(module, step, surrogate):
    return lambda x: (
        getattr(module, step)(x, surrogate) * x.sin() + getattr(module, step)(x * 0.7, surrogate) ** 2
    ).sum()


@pytest.mark.parametrize("surrogate", first_instances(), ids=repr)
@pytest.mark.parametrize("step", STEPS)
def test_second_order(device, step, surrogate):
    x = torch.randn(11, dtype=torch.float64, device=device) * 1.5
    native, slow = curved(ste_ops, step, surrogate), curved(reference, step, surrogate)
    functional = torch.autograd.functional
    torch.testing.assert_close(functional.hessian(native, x), functional.hessian(slow, x))
    torch.testing.assert_close(
        functional.jacobian(lambda x: getattr(ste_ops, step)(x, surrogate), x),
        functional.jacobian(lambda x: getattr(reference, step)(x, surrogate), x),
    )
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(native(z), z, create_graph=True)
    (expected,) = torch.autograd.grad(slow(z), z, create_graph=True)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(
        torch.autograd.grad(gradient.square().sum(), z)[0], torch.autograd.grad(expected.square().sum(), z)[0]
    )


@pytest.mark.parametrize("surrogate", first_instances(), ids=repr)
def test_a_gradient_penalty_trains_through_the_step(device, surrogate):
    def gradients(sign):
        torch.manual_seed(0)
        critic = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1)).to(device).double()
        x = torch.randn(5, 6, dtype=torch.float64, device=device, requires_grad=True)
        score = critic[2](sign(critic[0](x), surrogate) * critic[1](critic[0](x)))
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        ((gradient.norm(2, dim=1) - 1) ** 2).mean().backward()
        return [p.grad for p in critic.parameters() if p.grad is not None]

    received, expected = gradients(ste_ops.sign), gradients(reference.sign)
    assert len(received) == len(expected) >= 3
    assert any(bool(g.abs().sum() > 0) for g in received)
    torch.testing.assert_close(received, expected)


@pytest.mark.parametrize("step", STEPS)
def test_autocast_keeps_the_dtype(device, step):
    layer = torch.nn.Linear(6, 5).to(device)
    x = torch.randn(3, 6, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        assert getattr(ste_ops, step)(x).dtype == torch.float32
        y = getattr(ste_ops, step)(layer(x))
        assert y.dtype == torch.bfloat16
        y.sum().backward()
    assert x.grad.dtype == torch.float32
    # sum's gradient is 1 everywhere, so the mask of what the layer gave is the gradient of it.
    with torch.autocast(device, torch.bfloat16):
        passes = (layer(x).abs() <= 1).float()
    torch.testing.assert_close(x.grad, passes @ layer.weight, rtol=1e-2, atol=1e-2)


# Surrogates as values.


@pytest.mark.parametrize("surrogate", all_instances(), ids=repr)
def test_surrogates_are_values(surrogate):
    for other in (copy.deepcopy(surrogate), copy.copy(surrogate), pickle.loads(pickle.dumps(surrogate))):
        assert other == surrogate
        assert hash(other) == hash(surrogate)
        assert other.parameters == surrogate.parameters
    assert eval(repr(surrogate), vars(ste_ops.surrogate)) == surrogate
    with pytest.raises(AttributeError):
        surrogate.threshold = 2.0


def test_equal_surrogates_differ_by_their_parameters_only():
    assert Clip(1.0) == Clip() != Clip(2.0)
    assert Identity() == Identity() != Clip()
    assert len(set(all_instances())) == len(all_instances())


# Refusals: the operator, the argument, what was expected, what came.


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_without_kernel_is_refused(device, step, dtype):
    x = torch.zeros(3, device=device).to(dtype)
    with pytest.raises(TypeError, match=rf"{step}: x must be float64, float32, bfloat16 or float16, got {dtype}"):
        getattr(ste_ops, step)(x)
    with pytest.raises(RuntimeError, match=rf"{step}: x must be float64, float32, bfloat16 or float16, got "):
        getattr(ops, step)(x, Clip.number, 1.0, 0.0)


@pytest.mark.parametrize("step", STEPS)
def test_what_is_no_tensor_or_surrogate_is_refused(step):
    with pytest.raises(TypeError, match=rf"{step}: x must be a tensor, got list"):
        getattr(ste_ops, step)([1.0])
    for wrong in (1.0, Clip, None, "Clip"):
        with pytest.raises(TypeError, match=rf"{step}: surrogate must be one of ste_ops.surrogate, got "):
            getattr(ste_ops, step)(torch.zeros(3), wrong)


@pytest.mark.parametrize("threshold", [0, -1.0, nan, inf, True, "1", None])
def test_clip_wants_a_finite_positive_threshold(threshold):
    with pytest.raises(ValueError, match=rf"Clip: threshold must be a finite number > 0, got {threshold!r}"):
        Clip(threshold)


def test_raw_operators_check_their_numbers(device):
    x = torch.zeros(20, device=device)
    with pytest.raises(RuntimeError, match=rf"sign: surrogate must be in \[0, {len(SURROGATES)}\), got 99"):
        ops.sign(x, 99, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"heaviside: surrogate must be in .*, got -1"):
        ops.heaviside(x, -1, 0.0, 0.0)
    mask = torch.zeros(2, dtype=torch.uint8, device=device)
    with pytest.raises(RuntimeError, match="mask must hold 3 contiguous bytes for 20 elements, got 2"):
        ops.binarize_backward(x, mask)
    with pytest.raises(RuntimeError, match="mask must be uint8, got Float"):
        ops.binarize_backward(x, torch.zeros(3, device=device))
    with pytest.raises(RuntimeError, match="mask must hold 3 contiguous bytes"):
        ops.binarize_backward(x, torch.zeros(6, dtype=torch.uint8, device=device)[::2])
    with pytest.raises(RuntimeError, match="binarize_backward: grad must be float64, float32, bfloat16 or float16"):
        ops.binarize_backward(x.int(), torch.zeros(3, dtype=torch.uint8, device=device))


def test_a_mix_of_devices_is_refused():
    if not torch.cuda.is_available() or not ste_ops.build_info()["cuda"]:
        pytest.skip("no CUDA device is present")
    for grad, mask in (("cuda", "cpu"), ("cpu", "cuda")):
        with pytest.raises(RuntimeError, match="binarize_backward: grad and mask must be on one device"):
            ops.binarize_backward(torch.zeros(8, device=grad), torch.zeros(1, dtype=torch.uint8, device=mask))


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)],
    ids=["coo", "csr", "quantized"],
)
@pytest.mark.parametrize("step", STEPS)
def test_tensors_that_are_not_dense_are_refused(step, convert):
    x = convert(torch.eye(3))
    with pytest.raises(
        (RuntimeError, TypeError), match=rf"{step}: (tensors must be dense \(strided\)|x must be float)"
    ):
        getattr(ste_ops, step)(x)


@pytest.mark.parametrize("step", STEPS)
def test_meta_tensors(step):
    x = torch.empty(4, 5, device="meta").t().requires_grad_()
    y = getattr(ste_ops, step)(x)
    assert y.device.type == "meta"
    assert (y.shape, y.stride()) == (x.shape, x.stride())
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.skipif(ste_ops.build_info()["cuda"], reason="the CUDA kernels are loaded")
@pytest.mark.parametrize("step", STEPS)
def test_a_cuda_tensor_without_cuda_kernels_is_refused(step):
    """A CPU tensor handed to the CUDA dispatch key gets the error that a CUDA tensor would get."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match=rf"{step}: no CUDA kernel is loaded, because .*FORCE_CUDA=1"):
        getattr(ops, step).redispatch(key, torch.zeros(3), 0, 0.0, 0.0)
