"""Each gradient's norm beside the total, gradients that are not finite, and what a ClipResult tells about them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.utils._python_dispatch
from support.clip_cases import (
    FLOATING,
    LAYOUTS,
    MIXED,
    NORM_TYPES,
    assert_same_gradients,
    copies,
    gradients,
    parameter,
)

import ste_ops
from ste_ops import reference
from ste_ops._library import ops


def assert_results(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtypes", [*([d] for d in FLOATING), MIXED], ids=lambda d: "-".join(str(x)[6:] for x in d))
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_norms_equal_the_reference(device, dtypes, norm_type):
    grads = gradients(device, dtypes)
    grads = [grads[0], LAYOUTS["sliced"](grads[4]), *grads, grads[0], grads[1][2:]]  # twice, strided, a part of another
    total_norm, norms = ste_ops.get_total_norm(grads, norm_type, return_norms=True)
    assert_results((total_norm, norms), reference.get_total_norm(grads, norm_type, return_norms=True))
    assert torch.equal(total_norm, ste_ops.get_total_norm(grads, norm_type))
    assert norms.dtype == total_norm.dtype
    ours = copies(grads)
    clipped = ste_ops.clip_grad_norm_(ours, 0.5, norm_type, return_result=True)
    torch.testing.assert_close(clipped.norms, norms, rtol=2e-7 if norms.dtype == torch.float32 else 1e-14, atol=0)
    theirs = copies(grads)
    ste_ops.clip_grad_norm_(theirs, 0.5, norm_type)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("count", [3, 200, 4100])
def test_norms_of_many(device, count):
    grads = [torch.full((1 + i % 3,), float(i), device=device) for i in range(count)]
    grads[1] = torch.ones(6, device=device)[::2]
    _, norms = ste_ops.get_total_norm(grads, math.inf, return_norms=True)
    assert norms.tolist() == [1.0 if i == 1 else float(i) for i in range(count)]


def test_norms_have_each_their_own_range(device):
    """A gradient far above or below the others does not decide how theirs are added."""
    scales = [1e200, 1.0, 1e-200, 0.0]
    values = torch.tensor([3.0, 4.0], dtype=torch.float64, device=device)
    grads = [values * s for s in scales] + [LAYOUTS["sliced"](values[None] * s) for s in scales]
    _, norms = ste_ops.get_total_norm(grads, return_norms=True)
    assert norms.tolist() == pytest.approx([5 * s for s in scales] * 2, rel=1e-14)
    _, norms = ste_ops.get_total_norm(grads[:4], 3.0, return_norms=True)
    assert norms.tolist() == pytest.approx([91 ** (1 / 3) * s for s in scales], rel=1e-14)


def test_norms_of_nothing(device):
    assert [t.tolist() for t in ste_ops.get_total_norm([], return_norms=True)] == [0.0, []]
    empty = torch.zeros(0, device=device)
    for p in NORM_TYPES:
        assert [t.tolist() for t in ste_ops.get_total_norm([empty, empty], p, return_norms=True)] == [0.0, [0.0, 0.0]]
    result = ste_ops.clip_grad_norm_([], 1.0, return_result=True)
    assert [result.clipped.item(), result.nonfinite.item(), result.first_bad.item()] == [False, False, -1]
    assert result.first_bad_name([]) is None


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "zero"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtypes", [[torch.float32], MIXED], ids=["float32", "mixed"])
def test_gradients_that_are_not_finite(device, nonfinite, bad, dtypes):
    grads = gradients(device, dtypes)
    grads[4] = LAYOUTS["sliced"](grads[4])
    grads[1][3] = bad
    grads[4][5, 6] = bad
    for max_norm in (0.25, 1e9, math.inf):
        ours, theirs = copies(grads), copies(grads)
        ours[4].grad = LAYOUTS["sliced"](grads[4])
        result = ste_ops.clip_grad_norm_(ours, max_norm, nonfinite=nonfinite, return_result=True)
        expected = reference.clip_grad_norm_(theirs, max_norm, nonfinite=nonfinite, return_result=True)
        assert_results(tuple(result[:2]), tuple(expected[:2]))
        assert_same_gradients(ours, theirs)
        assert result.nonfinite
        assert not result.clipped
        assert result.first_bad == 1
        if nonfinite == "zero":
            assert all((p.grad == 0).all() and not p.grad.signbit().any() for p in ours)
        if nonfinite == "skip":
            assert all(torch.equal(p.grad.nan_to_num(7), g.nan_to_num(7)) for p, g in zip(ours, grads, strict=True))


@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_finite_gradients_are_clipped_whatever_nonfinite_says(device, nonfinite):
    grads = gradients(device, MIXED)
    ours, theirs = copies(grads), copies(grads)
    result = ste_ops.clip_grad_norm_(ours, 0.5, nonfinite=nonfinite, return_result=True)
    ste_ops.clip_grad_norm_(theirs, 0.5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)
    assert result.clipped
    assert not result.nonfinite
    assert result.first_bad == -1
    assert not ste_ops.clip_grad_norm_(ours, 1e9, return_result=True).clipped


def test_the_first_bad_gradient_by_name(device):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).to(device)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].weight.grad = None
    model[1].bias.grad[1] = math.nan
    result = ste_ops.clip_grad_norm_(model.parameters(), 1.0, nonfinite="skip", return_result=True)
    assert result.positions == (1, 2, 3)
    assert result.first_bad_name(model.named_parameters()) == "1.bias"
    with pytest.raises(ValueError, match="must name the parameters that were clipped, in their order, got 2 names"):
        result.first_bad_name(model[0].named_parameters())
    model[1].bias.grad.zero_()
    result = ste_ops.clip_grad_norm_(iter(model.parameters()), 1.0, return_result=True)
    assert result.first_bad_name(model.named_parameters()) is None


def test_finite_gradients_with_an_infinite_norm(device):
    """Together they are more than float32 can hold: torch's norm is infinite too, and no single gradient is bad."""
    grads = [torch.full((4,), 1.5e38, device=device), torch.full((4,), 3e38, device=device)]
    result = ste_ops.clip_grad_norm_(copies(grads), 1.0, return_result=True)
    assert result.nonfinite
    assert result.first_bad == 1
    result = ste_ops.clip_grad_norm_(copies([grads[0]] * 8), 1.0, return_result=True)
    assert result.nonfinite
    assert result.first_bad == -1


def test_sparse_and_divided_lists(device, monkeypatch):
    grads = gradients(device, [torch.float32, torch.float64], shapes=((40,), (7, 5), (3,), (2, 2)))
    weight = torch.zeros(6, 3, device=device, requires_grad=True)
    torch.nn.functional.embedding(torch.tensor([1, 4, 1], device=device), weight, sparse=True).sum().backward()
    expected = ste_ops.get_total_norm([*grads, weight.grad.to_dense()], 2.0, return_norms=True)
    monkeypatch.setattr(ste_ops.functional.clip._lists, "by_device", lambda operator, grads: [grads[::2], grads[1::2]])
    ours = [*copies(grads), weight]
    result = ste_ops.clip_grad_norm_(ours, 1e9, return_result=True)
    torch.testing.assert_close(tuple(result[:2]), expected)
    grads[0][0] = math.nan
    ours = [*copies(grads), weight]
    result = ste_ops.clip_grad_norm_(ours, 0.1, nonfinite="skip", return_result=True)
    assert result.first_bad == 0
    assert torch.equal(ours[1].grad, grads[1])
    ste_ops.clip_grad_norm_(ours, 0.1, nonfinite="zero")
    assert all((p.grad.to_dense() == 0).all() for p in ours)


def test_refuses_bad_arguments(device):
    p = parameter(torch.full((2,), math.inf, device=device))
    with pytest.raises(ValueError, match='nonfinite must be "propagate", "skip" or "zero", got \'ignore\''):
        ste_ops.clip_grad_norm_(p, 1.0, nonfinite="ignore")
    with pytest.raises(ValueError, match="ask for one"):
        ste_ops.clip_grad_norm_(p, 1.0, error_if_nonfinite=True, nonfinite="skip")
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        ste_ops.clip_grad_norm_(p, 1.0, error_if_nonfinite=True, return_result=True)
    with pytest.raises(RuntimeError, match="nonfinite must be 0"):
        ops.clip_grad_norm_([p.grad], 1.0, 2.0, 3)
    assert p.grad.tolist() == [math.inf] * 2


class NoHostAnswers(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what would wait for a device, and so could not be captured in a CUDA graph."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "copy_", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        assert name not in self.WAITS, f"{name} would wait for the device"
        assert (kwargs or {}).get("device") is None or name != "_to_copy", "a copy to another device"
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(device):
    """Neither the calls nor a ClipResult's tensors, and the kernels' sources have nothing to wait with. Which kernels
    run does not depend on what the gradients hold: the decision is in the kernel."""
    own = copies(gradients(device, MIXED))
    with NoHostAnswers():
        for nonfinite in ("propagate", "skip", "zero"):
            ste_ops.clip_grad_norm_(own, 0.5, nonfinite=nonfinite)
            result = ste_ops.clip_grad_norm_(own, 0.5, nonfinite=nonfinite, return_result=True)
            assert [t.dim() for t in (result.clipped, result.nonfinite, result.first_bad)] == [0, 0, 0]
        ste_ops.clip_grad_value_(own, 0.1)
        ste_ops.clip_grad_agc_(own)
        ste_ops.clip_per_sample_([p.grad for p in own if p.dim() > 1 and len(p) == 40], 1.0)
        with pytest.raises(AssertionError, match="_local_scalar_dense would wait"):
            ste_ops.clip_grad_norm_(own, 0.5, error_if_nonfinite=True)
    sources = [*(Path(__file__).parents[2] / "csrc" / "cuda" / "clip").iterdir()]
    assert len(sources) > 4
    waiting = re.compile(r"cuda\w*Synchronize|cudaMemcpy|cudaMalloc|cudaFree|item<|\.item\(")
    assert [source.name for source in sources if waiting.search(source.read_text())] == []


def test_compiled():
    grads = gradients("cpu", [torch.float32], shapes=((5, 4), (6,)))

    def step(parameters):
        result = ste_ops.clip_grad_norm_(parameters, 0.1, nonfinite="zero", return_result=True)
        return result.norms, result.clipped, result.first_bad

    expected = step(copies(grads))
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(copies(grads)), expected)


def test_norms_of_parameters(device):
    """A parameter whose gradient is not here, as on another rank, has a norm of 0 in its place."""
    parameters = [torch.nn.Parameter(torch.randn(n, device=device)) for n in (3, 4, 5)]
    for held in (parameters[0], parameters[2]):
        held.grad = torch.randn_like(held)
    grads = [parameters[2].grad, parameters[0].grad]
    options = {"return_norms": True, "parameters": parameters}
    total, norms = ste_ops.get_total_norm(grads, **options)
    torch.testing.assert_close((total, norms), reference.get_total_norm(grads, **options))
    assert norms.shape == (3,)
    assert norms[1] == 0
    with pytest.raises(ValueError, match="get_total_norm: tensors must be gradients of parameters, got another one at"):
        ste_ops.get_total_norm([torch.ones(2, device=device)], parameters=parameters)
