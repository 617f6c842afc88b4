"""Per-sample clipping with a bound for each layer, by name, and with sums wider than the gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ste_ops
from ste_ops import reference


def test_each_layer_has_its_bound(device):
    grads = [torch.randn(6, 4, 3).to(device), torch.randn(6, 4).double().to(device)]
    sums, norms = ste_ops.clip_per_sample_(grads, [0.5, 2.0], return_norms=True)
    assert norms.shape == (6, 2)
    assert norms.dtype == torch.float64
    for i, bound in enumerate((0.5, 2.0)):
        (alone,), norm = ste_ops.clip_per_sample_([grads[i]], bound, return_norms=True)
        assert torch.equal(sums[i], alone)
        assert torch.equal(norms[:, i], norm.double())


def test_a_dict_of_torch_func():
    model = torch.nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.randn(5, 2)

    def loss(parameters, x, y):
        return (torch.func.functional_call(model, parameters, (x,)) - y).square().sum()

    parameters = dict(model.named_parameters())
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    sums = ste_ops.clip_per_sample_(grads, 0.7)
    assert list(sums) == list(parameters)
    expected = ste_ops.clip_per_sample_(grads.values(), 0.7)
    assert all(torch.equal(*pair) for pair in zip(sums.values(), expected, strict=True))
    by_name = ste_ops.clip_per_sample_(grads, {"bias": 0.1, "weight": 0.5})
    expected = ste_ops.clip_per_sample_(list(grads.values()), [0.5, 0.1])
    assert all(torch.equal(*pair) for pair in zip(by_name.values(), expected, strict=True))
    out = {"bias": torch.zeros(2), "weight": torch.zeros(2, 3)}
    again = ste_ops.clip_per_sample_(grads, 0.7, out=out)
    assert all(again[name] is out[name] and torch.equal(out[name], sums[name]) for name in out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_wide_sums(device, dtype):
    grads = [torch.randn(300, 5).to(dtype).to(device), torch.randn(300, 2).to(device)]
    sums, norms = ste_ops.clip_per_sample_(grads, 1.0, dtype=torch.float32, return_norms=True)
    expected, same = ste_ops.clip_per_sample_([g.float() for g in grads], 1.0, return_norms=True)
    assert torch.equal(norms, same)
    assert all(torch.equal(*pair) for pair in zip(sums, expected, strict=True))
    out = [torch.zeros(5, device=device), torch.zeros(2, device=device)]
    for part in ([g[:100] for g in grads], [g[100:] for g in grads]):
        ste_ops.clip_per_sample_(part, 1.0, out=out)
    torch.testing.assert_close(out, expected)


def test_equals_the_reference(device):
    grads = {"a": torch.randn(6, 4, 3), "b": torch.randn(6).to(torch.bfloat16), "c": torch.randn(6, 2) * (1 + 2j)}
    grads = {name: grad.to(device) for name, grad in grads.items()}
    for max_norm in (1.3, {"c": 2.0, "a": 0.5, "b": 0.1}):
        options = {"dtype": torch.float32, "return_norms": True}
        received, expected = (m.clip_per_sample_(grads, max_norm, **options) for m in (ste_ops, reference))
        torch.testing.assert_close(received, expected)
        ours, theirs = ([torch.ones_like(total) for total in received[0].values()] for _ in range(2))
        for module, out in ((ste_ops, ours), (reference, theirs)):
            bounds = max_norm if isinstance(max_norm, float) else [max_norm[name] for name in grads]
            module.clip_per_sample_(grads.values(), bounds, out=out)
        torch.testing.assert_close(ours, theirs)


def test_what_does_not_fit():
    grads = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    for call, message in [
        (lambda: ste_ops.clip_per_sample_(grads, [1.0]), "max_norm must be one bound or one for each of 2, got 1"),
        (
            lambda: ste_ops.clip_per_sample_(grads, {"a": 1.0}),
            "max_norm must have the names of .*, got a dict of",
        ),
        (
            lambda: ste_ops.clip_per_sample_([torch.ones(2)], {"a": 1.0}),
            "max_norm must have a list, as",
        ),
        (lambda: ste_ops.clip_per_sample_(grads, [1.0, -1.0]), r"max_norm\[1\] must be a non-negative number, got -1"),
        (lambda: ste_ops.clip_per_sample_(torch.ones(2).half(), 1.0, dtype=torch.float64), "dtype must be float32 or"),
        (lambda: ste_ops.clip_per_sample_(grads, 1.0, out={"a": torch.zeros(3)}), "out must have the names of"),
    ]:
        with pytest.raises(ValueError, match=f"clip_per_sample_: {message}"):
            call()


def expanded():
    return torch.zeros(1).expand(3)


OUTS = {
    "another device": (lambda: [torch.zeros(3), torch.zeros(3, device="meta")], "out must be on the device of grad"),
    "one tensor twice": (lambda: [torch.zeros(3)] * 2, "memory of their own, got one place for those at index 0 and 1"),
    "overlapping": (lambda: [(x := torch.zeros(5))[:3], x[2:]], "memory of their own, got one place for those at"),
    "rows and a column": (lambda: [(x := torch.zeros(3, 3))[:, 1], x[2]], "memory of their own, got one place for"),
    "expanded": (lambda: [torch.zeros(3), expanded()], "got one whose elements share memory at index 1"),
}


@pytest.mark.parametrize("bounds", [1.0, [1.0, 1.0]], ids=str)
@pytest.mark.parametrize("name", OUTS)
def test_sums_that_cannot_be_written_are_refused_before_any_is(bounds, name):
    make, message = OUTS[name]
    out = make()
    with pytest.raises((ValueError, RuntimeError), match=f"clip_per_sample_: .*{message}"):
        ste_ops.clip_per_sample_([torch.ones(2, 3)] * 2, bounds, out=out)
    assert all(total.is_meta or not total.any() for total in out)


def test_samples_on_several_devices_are_refused_before_any_is_read():
    out = [torch.zeros(3), torch.zeros(3, device="meta")]
    with pytest.raises(RuntimeError, match="one device, got cpu at index 0 and meta at index 1"):
        ste_ops.clip_per_sample_([torch.ones(2, 3), torch.ones(2, 3, device="meta")], [1.0, 1.0], out=out)
    assert not out[0].any()


@pytest.mark.parametrize("bounds", [1.0, [1.0, 1.0]], ids=str)
def test_sums_may_be_columns_of_one_buffer(bounds):
    columns = torch.zeros(3, 2)
    grads = [torch.randn(4, 3), torch.randn(4, 3)]
    ste_ops.clip_per_sample_(grads, bounds, out=[columns[:, 0], columns[:, 1]])
    torch.testing.assert_close(columns.t(), torch.stack(ste_ops.clip_per_sample_(grads, bounds)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float64, torch.float16, "float32"], ids=str)
def test_another_dtype_than_sums_can_have(dtype):
    for grads in ([torch.ones(2, 3)], [torch.ones(2, 3).bfloat16(), torch.ones(2, 3)]):
        for out in (None, [torch.zeros(3, dtype=grad.dtype) for grad in grads]):
            with pytest.raises(ValueError, match="clip_per_sample_: dtype must be float32 or that of the gradients"):
                ste_ops.clip_per_sample_(grads, 1.0, dtype=dtype, out=out)


def test_dtype_is_that_of_out_too():
    half, out = torch.ones(2, 3).half(), [torch.zeros(3).half()]
    with pytest.raises(ValueError, match=r"one sample, \(3,\) torch\.float32, got \(3,\) torch\.float16 at index 0"):
        ste_ops.clip_per_sample_([half], 1.0, dtype=torch.float32, out=out)
    with pytest.raises(ValueError, match=r"torch\.float16, got \(3,\) torch\.float32 at index 0"):
        ste_ops.clip_per_sample_([half], 1.0, dtype=torch.float16, out=[torch.zeros(3)])
    assert ste_ops.clip_per_sample_([half], 1.0, dtype=torch.float16, out=out)[0] is out[0]


def test_a_bound_may_be_an_array_without_dimensions():
    grads = [torch.randn(4, 3), torch.randn(4)]
    for bound in (np.array(0.5), np.float32(0.5), torch.tensor(0.5)):
        torch.testing.assert_close(
            ste_ops.clip_per_sample_(grads, bound), ste_ops.clip_per_sample_(grads, 0.5), rtol=0, atol=0
        )
