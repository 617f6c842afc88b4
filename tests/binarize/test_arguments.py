"""Surrogates as values, and what heaviside and sign refuse."""

import copy
import math
import pickle

import pytest
import torch
from support.surrogate_table import ALL_STEPS, all_instances

import ste_ops
from ste_ops._library import ops
from ste_ops.surrogate import Clip, Custom, Identity

nan, inf = math.nan, math.inf
# What the raw operators take after the surrogate.
EXTRA = {"heaviside": (), "sign": (), "ternary": (0.05,)}


# Surrogates as values.


@pytest.mark.parametrize("surrogate", all_instances(), ids=repr)
def test_surrogates_are_values(surrogate):
    for other in (copy.deepcopy(surrogate), copy.copy(surrogate), pickle.loads(pickle.dumps(surrogate))):
        assert other == surrogate
        assert hash(other) == hash(surrogate)
        assert other.parameters == surrogate.parameters
    if not isinstance(surrogate, Custom):
        assert eval(repr(surrogate), vars(ste_ops.surrogate)) == surrogate
    with pytest.raises(AttributeError):
        surrogate.threshold = 2.0


def test_equal_surrogates_differ_by_their_parameters_only():
    assert Clip(1.0) == Clip() != Clip(2.0)
    assert Identity() == Identity() != Clip()
    assert len(set(all_instances())) == len(all_instances())


# Refusals: the operator, the argument, what was expected, what came.


@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_without_kernel_is_refused(device, step, dtype):
    x = torch.zeros(3, device=device).to(dtype)
    with pytest.raises(TypeError, match=rf"{step}: x must be float64, float32, bfloat16 or float16, got {dtype}"):
        getattr(ste_ops, step)(x)
    with pytest.raises(RuntimeError, match=rf"{step}: x must be float64, float32, bfloat16 or float16, got "):
        getattr(ops, step)(x, Clip.number, 1.0, 0.0, *EXTRA[step])


@pytest.mark.parametrize("step", ALL_STEPS)
def test_what_is_no_tensor_or_surrogate_is_refused(step):
    with pytest.raises(TypeError, match=rf"{step}: x must be a tensor, got list"):
        getattr(ste_ops, step)([1.0])
    for wrong in (1.0, Clip, None, "Clip"):
        with pytest.raises(TypeError, match=rf"{step}: surrogate must be one of ste_ops.surrogate, got "):
            getattr(ste_ops, step)(torch.zeros(3), surrogate=wrong)


@pytest.mark.parametrize("threshold", [0, -1.0, nan, inf, True, "1", None])
def test_clip_wants_a_finite_positive_threshold(threshold):
    with pytest.raises(
        ValueError, match=rf"Clip: threshold must be a finite number > 0 or a tensor of one element, got {threshold!r}"
    ):
        Clip(threshold)


def test_raw_operators_check_their_numbers(device):
    x, count = torch.zeros(20, device=device), len(ops.surrogates().split())
    with pytest.raises(RuntimeError, match=rf"sign: surrogate must be in \[0, {count}\), got 99"):
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


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_mix_of_devices_is_refused(device):
    for grad, mask in ((device, "cpu"), ("cpu", device)):
        with pytest.raises(RuntimeError, match="binarize_backward: grad and mask must be on one device"):
            ops.binarize_backward(torch.zeros(8, device=grad), torch.zeros(1, dtype=torch.uint8, device=mask))


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)],
    ids=["coo", "csr", "quantized"],
)
@pytest.mark.parametrize("step", ALL_STEPS)
def test_tensors_that_are_not_dense_are_refused(step, convert):
    x = convert(torch.eye(3))
    with pytest.raises(
        (RuntimeError, TypeError), match=rf"{step}: (tensors must be dense \(strided\)|x must be float)"
    ):
        getattr(ste_ops, step)(x)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_meta_tensors(step):
    x = torch.empty(4, 5, device="meta").t().requires_grad_()
    y = getattr(ste_ops, step)(x)
    assert y.device.type == "meta"
    assert (y.shape, y.stride()) == (x.shape, x.stride())
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.skipif(ste_ops.build_info()["cuda"], reason="the CUDA kernels are loaded")
@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_cuda_tensor_without_cuda_kernels_is_refused(step):
    """A CPU tensor handed to the CUDA dispatch key gets the error that a CUDA tensor would get."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match=rf"{step}: no CUDA kernel is loaded, because .*FORCE_CUDA=1"):
        getattr(ops, step).redispatch(key, torch.zeros(3), 0, 0.0, 0.0, *EXTRA[step])
