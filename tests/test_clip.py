"""Clipping .grad in place: against the reference, against torch.nn.utils, and where the two differ on purpose."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn.utils import clip_grad as torch_clip

import ste_ops
from ste_ops import reference
from ste_ops._library import ops

FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MIXED = [torch.bfloat16, torch.float32, torch.float64, torch.float16]
NORM_TYPES = [2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5, 2.5]
LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.mT.contiguous().mT,
    "sliced": lambda t: torch.empty(t.shape[0], 2 * t.shape[1], dtype=t.dtype, device=t.device)[:, ::2].copy_(t),
    "narrowed": lambda t: torch.empty(t.shape[0], t.shape[1] + 3, dtype=t.dtype, device=t.device)[:, :-3].copy_(t),
    "unaligned": lambda t: torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t),
    "offset rows": lambda t: torch.empty(3, *t.shape, dtype=t.dtype, device=t.device)[1].copy_(t),
}


def rounding(dtype):
    """Half a unit in the last place of a product, and the coefficient's own rounding to float32."""
    return {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def parameter(grad):
    p = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
    p.grad = grad
    return p


def copies(grads):
    return [parameter(g.clone()) for g in grads]


def gradients(device, dtypes, shapes=((40, 33), (7,), (), (0, 3), (300, 70), (2, 3, 4, 5))):
    return [torch.randn(s, device=device).to(dtypes[i % len(dtypes)]) for i, s in enumerate(shapes)]


def assert_same_gradients(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=rounding(a.dtype), atol=0, equal_nan=True)


@pytest.mark.parametrize("dtypes", [*([d] for d in FLOATING), MIXED], ids=lambda d: "-".join(str(x)[6:] for x in d))
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_equals_the_reference(device, dtypes, norm_type):
    grads = gradients(device, dtypes)
    for max_norm in (0.25, 1e9):
        ours, theirs = copies(grads), copies(grads)
        norm = ste_ops.clip_grad_norm_(ours, max_norm, norm_type)
        expected = reference.clip_grad_norm_(theirs, max_norm, norm_type)
        torch.testing.assert_close(norm, expected, rtol=1e-7, atol=0)
        assert_same_gradients(ours, theirs)
        assert norm.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
        assert norm.shape == ()
        assert norm.device == grads[0].device
        assert torch.equal(norm, ste_ops.get_total_norm(grads, norm_type))


@pytest.mark.parametrize("norm_type", [2, 1, math.inf, -math.inf, 3.0, "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["list", "generator", "single", "with None"])
def test_equals_torch(device, norm_type, dtype, shape):
    grads = gradients(device, [dtype], shapes=((40, 33), (7,), (2, 3, 4)))
    arguments = []
    for own in (copies(grads), copies(grads)):
        if shape == "with None":
            own.insert(1, torch.zeros(3, requires_grad=True))
        given = {"generator": (p for p in own), "single": own[0]}.get(shape, own)
        arguments.append((own, given))
    norm = ste_ops.clip_grad_norm_(arguments[0][1], 0.1, norm_type)
    expected = torch_clip.clip_grad_norm_(arguments[1][1], 0.1, norm_type)
    torch.testing.assert_close(norm, expected)
    for ours, theirs in zip(arguments[0][0], arguments[1][0], strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_halves_of_the_call_are_the_call(device):
    grads = gradients(device, MIXED)
    whole, halves = copies(grads), copies(grads)
    norm = ste_ops.clip_grad_norm_(whole, 0.3)
    ste_ops.clip_grads_with_norm_(iter(halves), 0.3, ste_ops.get_total_norm(grads))
    for a, b in zip(whole, halves, strict=True):
        assert torch.equal(a.grad, b.grad)
    assert norm > 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_a_norm_of_any_dtype(device, dtype):
    p = parameter(torch.tensor([3.0, 4.0], device=device))
    ste_ops.clip_grads_with_norm_(p, 1.0, torch.tensor(5.0, dtype=dtype))
    torch.testing.assert_close(p.grad.cpu(), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_strides(device, layout, dtype):
    values = [torch.randn(37, 130, device=device).to(dtype), torch.randn(5, 3, device=device).to(dtype)]
    for norm_type in (2.0, math.inf, 3.0):
        ours = [parameter(LAYOUTS[layout](v)) for v in values]
        theirs = copies(values)
        norm = ste_ops.clip_grad_norm_(ours, 0.5, norm_type)
        torch.testing.assert_close(norm, reference.clip_grad_norm_(theirs, 0.5, norm_type), rtol=1e-7, atol=0)
        assert_same_gradients(ours, theirs)
    ours, theirs = [parameter(LAYOUTS[layout](v)) for v in values], copies(values)
    ste_ops.clip_grad_value_(ours, 0.1)
    reference.clip_grad_value_(theirs, 0.1)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_what_lies_between_a_slices_elements_stays(device):
    memory = torch.full((6, 8), 7.0, device=device)
    p = torch.zeros(6, 4, device=device, requires_grad=True)
    p.grad = memory[:, 1::2]
    ste_ops.clip_grad_norm_(p, 1.0)
    ste_ops.clip_grad_value_(p, 0.01)
    assert (memory[:, ::2] == 7).all()
    assert (memory[:, 1::2] == 0.01).all()


@pytest.mark.parametrize("count", [3, 129, 400])
def test_many_gradients(device, count):
    grads = [torch.randn(1 + i % 5, device=device) for i in range(count)]
    grads[2] = torch.randn(8, device=device)[::2]
    ours, theirs = copies(grads), copies(grads)
    ours[2].grad = torch.zeros(8, device=device)[::2].copy_(grads[2])
    norm = ste_ops.clip_grad_norm_(ours, 1.0)
    torch.testing.assert_close(norm, reference.clip_grad_norm_(theirs, 1.0), rtol=1e-7, atol=0)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("clip_value", [0.1, 0.3, 0.0, math.inf, 1e30])
def test_value_equals_the_reference_and_torch(device, dtype, clip_value):
    specials = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, -0.1, 0.30078125, 5.0, -5.0]).to(device)
    grads = [*gradients(device, [dtype]), specials.to(dtype)]
    ours, theirs, torchs = copies(grads), copies(grads), copies(grads)
    assert ste_ops.clip_grad_value_(ours, clip_value) is None
    reference.clip_grad_value_(theirs, clip_value)
    if clip_value == 1e30 and dtype == torch.float16:
        ops.clip_grad_value_([p.grad for p in torchs], math.inf)  # torch refuses a bound that overflows
    else:
        torch_clip.clip_grad_value_(torchs, clip_value)
    for a, b, c in zip(ours, theirs, torchs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(a.grad, c.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_non_finite_norms_do_what_torch_does(device, bad, norm_type, dtype):
    grads = [torch.randn(50, device=device).to(dtype), torch.randn(3, 3, device=device).to(dtype)]
    grads[0][17] = bad
    ours, torchs = copies(grads), copies(grads)
    norm = ste_ops.clip_grad_norm_(ours, 1.0, norm_type)
    expected = torch_clip.clip_grad_norm_(torchs, 1.0, norm_type)
    torch.testing.assert_close(norm, expected.to(norm.dtype), equal_nan=True)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)


@pytest.mark.parametrize("function", ["get_total_norm", "clip_grad_norm_"])
def test_error_if_nonfinite_writes_nothing(device, function):
    grads = [torch.full((3,), 9.0, device=device), torch.tensor([math.inf], device=device)]
    arguments = [grads] if function == "get_total_norm" else [[parameter(g) for g in grads], 1.0]
    for utils in (ste_ops, reference, torch_clip):
        call = getattr(utils, function, None) or torch_clip._get_total_norm
        with pytest.raises(RuntimeError, match=r"total norm of order 2\.0 .* is non-finite"):
            call(*arguments, error_if_nonfinite=True)
    assert grads[0].tolist() == [9.0] * 3


@pytest.mark.parametrize(
    ("dtype", "scale", "norm_type"),
    [
        (torch.float16, 1.5e4, 2.0),
        (torch.float32, 1e20, 2.0),
        (torch.float32, 1e-30, 2.0),
        (torch.float32, 1e-44, 2.0),
        (torch.float32, 3e37, 9.0),
        (torch.float32, 1e-30, 20.0),
        (torch.float64, 1e200, 2.0),
        (torch.float64, 1e-200, 2.0),
        (torch.float64, 1e-310, 2.0),
        (torch.float64, 1e200, 3.0),
    ],
)
def test_no_overflow_in_between(device, dtype, scale, norm_type):
    values = (torch.tensor([3.0, 4.0], dtype=torch.float64) * scale).to(dtype)
    exact = [v / scale for v in values.double().tolist()]
    expected = sum(v**norm_type for v in exact) ** (1 / norm_type) * scale
    for grads in ([values], [values[:1], values[1:]], [torch.stack([values, values])[:, :1], values[:1] * 0]):
        if len(grads[-1]) == 1 and grads[-1] == 0:
            want = exact[0] * 2 ** (1 / norm_type) * scale
        else:
            want = expected
        norm = ste_ops.get_total_norm([g.to(device) for g in grads], norm_type).double().item()
        assert math.isclose(
            norm, want, rel_tol=2e-7 if dtype != torch.float64 else 1e-14, abs_tol=1.5e-45 if scale == 1e-44 else 0
        )


def test_a_large_first_gradient_does_not_spoil_a_second_look(device):
    grads = [torch.tensor([1e200, 1e-200, math.inf], dtype=torch.float64, device=device)]
    assert ste_ops.get_total_norm(grads).item() == math.inf
    grads[0][2] = math.nan
    assert math.isnan(ste_ops.get_total_norm(grads).item())
    assert ste_ops.get_total_norm([torch.zeros(5, dtype=torch.float64, device=device)]).item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [24, 26])
def test_accuracy(exponent):
    x = torch.full((1 << exponent,), 0.1)
    expected = math.sqrt((1 << exponent) * float(x[0]) ** 2)
    assert abs(ste_ops.get_total_norm(x).item() / expected - 1) < 1e-7


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_the_same_bits_at_any_number_of_threads(norm_type):
    grads = gradients("cpu", [torch.float64, torch.float32], shapes=((700, 900), (5,), (300_001,), (64, 64)))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            own = copies(grads)
            norm = ste_ops.clip_grad_norm_(own, 0.5, norm_type)
            row = ste_ops._functions.clip._clip_rows(grads[0].view(2, -1), 0.5, norm_type, (1,))
            found.append([norm, row, *(p.grad for p in own)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


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
    monkeypatch.setattr(ste_ops.clip, "_by_device", lambda operator, grads: [grads[::2], grads[1::2]])
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
        (torch.ones(2, dtype=torch.complex64), TypeError, r"float16, got torch\.complex64 at index 1"),
        (torch.ones(2, dtype=torch.int32), TypeError, r"float16, got torch\.int32 at index 1"),
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
