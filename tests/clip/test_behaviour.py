"""Clipping .grad in place as a user meets it: duplicates, versions, sparse and expanded gradients, bad input."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import pytest
import torch
from support.clip_cases import (
    MIXED,
    NORM_TYPES,
    assert_same_gradients,
    copies,
    gradients,
    parameter,
)
from torch.nn.utils import clip_grad as torch_clip

import ste_ops
from ste_ops import reference
from ste_ops._library import ops


def test_a_repeated_gradient_counts_once(device):
    grad = torch.tensor([3.0, 4.0], device=device)
    p, q = parameter(grad), parameter(torch.zeros(2, device=device))
    q.grad = grad.view(2)  # another tensor over the same memory
    norm = ste_ops.clip_grad_norm_([p, q, p, parameter(grad.new_zeros(0))], 1.0)
    torch.testing.assert_close(norm.item(), 5.0)
    torch.testing.assert_close(grad.cpu(), torch.tensor([0.6, 0.8]))
    assert torch_clip.clip_grad_norm_([p, p], 10.0).item() == pytest.approx(math.sqrt(2))
    sliced = torch.ones(4, 4, device=device)[:, :2]
    assert ste_ops.get_total_norm([sliced, sliced[:], sliced.t()]).item() == pytest.approx(math.sqrt(8))
    assert ste_ops.get_total_norm([sliced, sliced[:2]]).item() == pytest.approx(math.sqrt(12))


def test_p_0_counts_elements(device):
    grads = [torch.tensor([0.0, -0.0, 2.0, math.nan], device=device), torch.tensor([1e-45], device=device)]
    assert ste_ops.get_total_norm(grads, 0).item() == 3


def test_version_counters_move(device):
    grads = gradients(device, [torch.float32], shapes=((5,), (6,)))
    parameters = [parameter(g) for g in grads]
    for call in (
        lambda: ste_ops.clip_grad_norm_(parameters, 0.1),
        lambda: ste_ops.clip_grad_norm_(parameters, 1e9),
        lambda: ste_ops.clip_grad_norm_(parameters, 0.1, error_if_nonfinite=True),
        lambda: ste_ops.clip_grads_with_norm_(parameters, 0.1, torch.tensor(1.0)),
        lambda: ste_ops.clip_grad_value_(parameters, 0.1),
    ):
        before = [g._version for g in grads]
        call()
        assert all(g._version > v for g, v in zip(grads, before, strict=True))
    before = grads[0]._version
    ste_ops.get_total_norm(grads)
    assert grads[0]._version == before


def test_a_gradient_saved_for_backward_is_guarded(device):
    p = torch.ones(3, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    p.grad = grad
    loss = (grad**2).sum()
    norm = ste_ops.clip_grad_norm_(p, 1e-3)
    assert not norm.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


READ_ONLY = """
import mmap, sys, numpy, torch, ste_ops
memory = mmap.mmap(-1, 1 << 16, prot=mmap.PROT_READ)  # zeros; a write is a segmentation fault
array = numpy.frombuffer(memory, dtype=numpy.float32)
grad = torch.from_numpy(array)
p = torch.zeros(grad.shape, requires_grad=True)
p.grad = grad
q = torch.zeros(grad[::2].shape, requires_grad=True)
q.grad = grad[::2]
extra = torch.zeros(3, requires_grad=True)
for own in (p, q):
    extra.grad = torch.ones(3)
    assert ste_ops.clip_grad_norm_([own, extra], float(sys.argv[1])) > 1
    ste_ops.clip_grad_value_([own, extra], 0.5)
    ste_ops.clip_grad_agc_([own, extra], 1e9)
    extra.grad[0] = torch.inf
    ste_ops.clip_grad_norm_([own, extra], 1.0, nonfinite="skip")
ste_ops.clip_per_sample_([grad.view(16, -1)], 1e-3)
print("lived")
"""


@pytest.mark.parametrize(("max_norm", "lives"), [(2.0, True), (1.0, False)])
def test_nothing_to_clip_writes_nothing(max_norm, lives):
    command = [sys.executable, "-W", "ignore", "-c", READ_ONLY, str(max_norm)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == lives, done.stderr
    assert ("lived" in done.stdout) == lives


def test_empty(device):
    assert torch.equal(ste_ops.get_total_norm([]), torch.tensor(0.0))
    assert torch.equal(ste_ops.clip_grad_norm_([], 1.0), torch.tensor(0.0))
    assert torch.equal(ste_ops.clip_grad_norm_([torch.zeros(2, requires_grad=True)], 1.0), torch.tensor(0.0))
    ste_ops.clip_grad_value_([], 1.0)
    ste_ops.clip_grads_with_norm_([], 1.0, torch.tensor(1.0))
    for norm_type in NORM_TYPES:
        empty = [torch.zeros(0, device=device, dtype=torch.float64), torch.zeros(0, 3, device=device)]
        norm = ste_ops.get_total_norm(empty, norm_type)
        assert norm.item() == 0
        assert norm.dtype == torch.float64
    ste_ops.clip_grad_norm_(parameter(torch.zeros(0, device=device)), 1.0)
    ste_ops.clip_grad_value_(parameter(torch.zeros(0, device=device)), 1.0)


def test_an_empty_generator_warns_as_in_torch():
    for utils in (ste_ops, reference, torch_clip):
        with pytest.warns(UserWarning, match="is an empty generator, no gradient clipping will occur") as caught:
            utils.clip_grad_norm_((p for p in []), 1.0)
        assert utils is torch_clip or caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ste_ops.clip_grad_norm_([], 1.0)


def sparse_gradient(device):
    weight = torch.zeros(6, 3, device=device, requires_grad=True)
    torch.nn.functional.embedding(torch.tensor([1, 4, 1], device=device), weight, sparse=True).sum().backward()
    assert not weight.grad.is_coalesced()
    return weight


def test_sparse_gradients_count_coalesced(device):
    sparse, dense = sparse_gradient(device), parameter(torch.ones(4, device=device))
    assert ste_ops.clip_grad_norm_([sparse, dense, sparse], 1.0).item() == pytest.approx(math.sqrt(12 + 3 + 4))
    coefficient = 1 / (math.sqrt(19) + 1e-6)
    assert sparse.grad.to_dense()[1].tolist() == pytest.approx([2 * coefficient] * 3)
    assert dense.grad.tolist() == pytest.approx([coefficient] * 4)

    sparse, expected = sparse_gradient(device), sparse_gradient(device)
    ste_ops.clip_grad_value_([dense, sparse], 1.5)
    reference.clip_grad_value_([expected], 1.5)
    assert torch.equal(sparse.grad.to_dense(), expected.grad.to_dense())
    assert sparse.grad.to_dense()[1].tolist() == [1.5] * 3
    assert sparse.grad.to_dense()[4].tolist() == [1.0] * 3
    ste_ops.clip_grad_value_(sparse, 0.5)  # coalesced by now
    assert sparse.grad.to_dense()[1].tolist() == [0.5] * 3


def test_gradients_of_two_devices(device, monkeypatch):
    """One call a device and the norms joined on the first; two lists stand in for the devices."""
    grads = gradients(device, [torch.float32, torch.float16], shapes=((40,), (7, 5), (3,), (2, 2)))
    sparse = sparse_gradient(device)
    monkeypatch.setattr(ste_ops.functional.clip._lists, "by_device", lambda operator, grads: [grads[::2], grads[1::2]])
    for norm_type in NORM_TYPES:
        ours, theirs = [*copies(grads), sparse], [*copies(grads), parameter(sparse.grad.to_dense())]
        norm = ste_ops.clip_grad_norm_(ours, 1e9, norm_type)
        if norm_type > -math.inf and norm_type != 0:
            torch.testing.assert_close(norm, reference.clip_grad_norm_(theirs, 1e9, norm_type))
        expected = ste_ops.get_total_norm([*grads, sparse.grad.coalesce().values()], norm_type)
        torch.testing.assert_close(norm, expected)
    ste_ops.clip_grad_norm_(ours, 0.1)
    reference.clip_grad_norm_(theirs, 0.1)
    assert_same_gradients(ours[:-1], theirs[:-1])
    torch.testing.assert_close(sparse.grad.to_dense(), theirs[-1].grad)


def expanded(device):
    p = torch.zeros(3, 4, device=device, requires_grad=True)
    p.grad = torch.ones(3, 1, device=device).expand(3, 4)
    return p


def test_expanded_gradients_have_a_norm_and_are_not_clipped(device):
    assert ste_ops.get_total_norm([expanded(device).grad]).item() == pytest.approx(math.sqrt(12))
    first = parameter(torch.full((3,), 9.0, device=device))
    for call in (
        lambda ps: ste_ops.clip_grad_norm_(ps, 1.0),
        lambda ps: ste_ops.clip_grad_norm_(ps, 1e9),
        lambda ps: ste_ops.clip_grad_value_(ps, 1.0),
        lambda ps: ste_ops.clip_grads_with_norm_(ps, 1.0, torch.tensor(2.0)),
        lambda ps: ste_ops.clip_grad_norm_([sparse_gradient(device), *ps], 1.0),
        lambda ps: ste_ops.clip_grad_value_([sparse_gradient(device), *ps], 0.1),
    ):
        with pytest.raises(RuntimeError, match=r"clip_grad\w*_: the gradient at index \d cannot be written in place"):
            call([first, expanded(device)])
        assert first.grad.tolist() == [9.0] * 3
    windows = torch.ones(9, device=device).unfold(0, 3, 2)
    with pytest.raises(RuntimeError, match="share memory"):
        ops.clip_grad_value_([windows], 0.5)


@pytest.mark.parametrize(
    ("grad", "error", "message"),
    [
        (torch.ones(2, dtype=torch.complex32), TypeError, r"complex128, got torch\.complex32 at index 1"),
        (torch.ones(2, dtype=torch.int32), TypeError, r"complex128, got torch\.int32 at index 1"),
        (torch.eye(2).to_sparse_csr(), TypeError, r"sparse_coo, got torch\.sparse_csr at index 1"),
        (3.0, TypeError, "an iterable of tensors, got float at index 1"),
    ],
)
def test_refuses_what_it_cannot_clip(device, grad, error, message):
    first = torch.full((2,), 9.0, device=device)
    with pytest.raises(error, match="get_total_norm: .*" + message):
        ste_ops.get_total_norm([first, grad])

    class Holder:
        pass

    holders = [Holder(), Holder()]
    holders[0].grad, holders[1].grad = first, grad
    for name, arguments in [("clip_grad_norm_", (1.0,)), ("clip_grad_value_", (0.1,))]:
        with pytest.raises(error, match=f"{name}: .*{message}"):
            getattr(ste_ops, name)(holders, *arguments)
    assert first.tolist() == [9.0, 9.0]


@pytest.mark.parametrize("module", [ste_ops, reference])
@pytest.mark.parametrize("bad", [-1.0, math.nan, -math.inf, -1e-30])
def test_refuses_bad_numbers(module, bad):
    p = parameter(torch.full((2,), 9.0))
    with pytest.raises(ValueError, match="max_norm must be a non-negative number"):
        module.clip_grad_norm_(p, bad)
    with pytest.raises(ValueError, match="max_norm must be a non-negative number"):
        module.clip_grads_with_norm_(p, bad, torch.tensor(1.0))
    with pytest.raises(ValueError, match="clip_value must be a non-negative number"):
        module.clip_grad_value_(p, bad)
    if bad != -math.inf:
        with pytest.raises(ValueError, match="norm_type must be a non-negative number"):
            module.clip_grad_norm_(p, 1.0, bad)
        with pytest.raises(ValueError, match="norm_type must be a non-negative number"):
            module.get_total_norm(p.grad, bad)
    assert p.grad.tolist() == [9.0, 9.0]


def test_refuses_bad_arguments():
    p = parameter(torch.ones(2))
    with pytest.raises(TypeError, match="parameters must be a tensor or an iterable of tensors, got 'int'"):
        ste_ops.clip_grad_norm_([3], 1.0)
    with pytest.raises(TypeError, match="total_norm must be a tensor, got float"):
        ste_ops.clip_grads_with_norm_(p, 1.0, 2.0)
    with pytest.raises(ValueError, match=r"total_norm must be 0-d, got the shape \(1,\)"):
        ste_ops.clip_grads_with_norm_(p, 1.0, torch.ones(1))


def test_lstm_clipped_to_norm_1(device):
    lstm = torch.nn.LSTM(8, 16, num_layers=2).to(device)
    out, _ = lstm(torch.randn(20, 4, 8, device=device) * 5)
    (out.sum() * 100).backward()
    before = ste_ops.clip_grad_norm_(lstm.parameters(), max_norm=1.0)
    after = ste_ops.get_total_norm([p.grad for p in lstm.parameters()])
    assert before > 1
    assert after.item() == pytest.approx(1.0, rel=1e-5)


def test_linear_clipped_to_a_tenth(device):
    linear = torch.nn.Linear(10, 5).to(device)
    (linear(torch.randn(32, 10, device=device)) ** 2).sum().backward()
    ste_ops.clip_grad_value_(linear.parameters(), clip_value=0.1)
    bound = torch.tensor(0.1)
    assert all((p.grad.abs().cpu() <= bound).all() and (p.grad.abs().cpu() == bound).any() for p in linear.parameters())


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_compiled(device, max_norm):
    grads = gradients(device, [torch.float32, torch.float16], shapes=((5, 4), (6,), (3,)))

    def step(parameters):
        norm = ste_ops.clip_grad_norm_(parameters, max_norm)
        ste_ops.clip_grad_value_(parameters, 0.02)
        return norm, sum(p.grad.float().sum() for p in parameters)

    eager, compiled = copies(grads), copies(grads)
    expected = step(eager)
    versions = [p.grad._version for p in compiled]
    got = torch.compile(step, fullgraph=True)(compiled)
    torch.testing.assert_close(got, expected)
    for a, b, version in zip(eager, compiled, versions, strict=True):
        assert torch.equal(a.grad, b.grad)
        assert b.grad._version > version


@pytest.mark.parametrize("dtypes", [[torch.float32], MIXED], ids=["float32", "mixed"])
def test_opcheck(device, dtypes):
    grads = gradients(device, dtypes, shapes=((5, 4), (6,), (3,)))
    norm = ste_ops.get_total_norm(grads)
    for operator, arguments in [
        (ops.total_norm, (grads, 2.0)),
        (ops.clip_grad_norm_, (grads, 0.5, 2.0)),
        (ops.clip_grads_with_norm_, (grads, norm, 0.5)),
        (ops.clip_grad_value_, (grads, 0.1)),
        (ops.clip_gradient_value_backward, (grads[0], 0.1)),
        (ops.clip_gradient_norm_backward, (grads[0], 1, 0.1, 2.0)),
    ]:
        torch.library.opcheck(operator, arguments)


def test_raw_operators_check_for_themselves(device):
    x = torch.ones(2, device=device)
    for call, message in [
        (lambda: ops.total_norm([x], -1.0), "norm_type must be"),
        (lambda: ops.total_norm([x], math.nan), "norm_type must be"),
        (lambda: ops.total_norm([x, x.int()], 2.0), "got Int at index 1"),
        (lambda: ops.clip_grads_with_norm_([x], x, 1.0), "total_norm must have one element, got 2"),
        (lambda: ops.clip_grads_with_norm_([x], x[0].half(), 1.0), "total_norm must be float32 or float64"),
        (lambda: ops.clip_gradient_norm_backward(x, 2, 1.0, 2.0), "row_dims must be in"),
        (lambda: ops.clip_gradient_norm_backward(x, 1, 1.0, -2.0), "norm_type must be"),
        (lambda: ops.clip_gradient_value_backward(x, -1.0), "clip_value must be"),
        (lambda: ops.total_norm([x.as_strided([2] * 30, [0] * 30)], 2.0), "more than 24 dimensions"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    assert x.tolist() == [1.0, 1.0]
