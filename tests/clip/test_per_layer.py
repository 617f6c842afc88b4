"""Per-sample clipping with a bound for each layer, by name, and with sums wider than the gradients."""

from __future__ import annotations

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
