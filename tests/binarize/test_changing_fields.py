"""Fields of surrogates that change while a net trains: as numbers, as tensors, and under torch.compile."""

import pytest
import torch
from support.surrogate_table import DTYPES, assert_same_bits, slope, tent
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import ste_ops
from ste_ops import surrogate
from ste_ops.surrogate import Clip, Custom, Rect, ReSTE, Sigmoid, Tanh


def temperatures(device):
    return torch.tensor(1.0, device=device), torch.tensor(0.5, device=device)


def test_tensors_as_fields(device):
    x = torch.randn(50, device=device)
    t, k = temperatures(device)
    curve, mixed = Tanh(t, k), Tanh(t, 0.5)
    for value in (1.0, 3.0):
        t.fill_(value)
        expected = slope(Tanh(value, 0.5), x)
        assert_same_bits(slope(curve, x), expected)
        assert_same_bits(slope(mixed, x), expected)
        torch.testing.assert_close(curve.derivative(x), expected)
    z = x.clone().requires_grad_()
    y = ste_ops.sign(z, curve)
    t.fill_(7.0)  # between forward and backward
    assert_same_bits(torch.autograd.grad(y.sum(), z)[0], expected)
    second = [
        torch.autograd.grad(torch.autograd.grad(ste_ops.sign(z, c).sum(), z, create_graph=True)[0].sum(), z)[0]
        for c in (curve, Tanh(7.0, 0.5))
    ]
    assert_same_bits(*second)
    rows = x.view(5, 10)
    batched = vmap(grad(lambda row: ste_ops.sign(row, curve).sum()))(rows)
    assert_same_bits(batched.flatten(), slope(Tanh(7.0, 0.5), x))
    slopes = torch.rand(5, device=device) + 0.5
    each = vmap(grad(lambda row, t: ste_ops.sign(row, Tanh(t)).sum()))(rows, slopes)
    alone = torch.stack([slope(Tanh(t.item()), row) for row, t in zip(rows, slopes, strict=True)])
    torch.testing.assert_close(each, alone)


@pytest.mark.parametrize("how", ["rebuilt", "module", "inside", "masks", "factors"])
def test_a_number_that_changes_compiles_twice(how):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(9, requires_grad=True)
    net = torch.nn.Module()
    net.forward = lambda x: ste_ops.sign(x, net.curve)
    programs = {"rebuilt": lambda x, curve: ste_ops.sign(x, curve), "module": net}
    inside = {
        "inside": lambda x, t: ste_ops.heaviside(x, ReSTE(t, 1.0)),
        "masks": lambda x, t: ste_ops.sign(x, Clip(t)),
    }
    inside["factors"] = lambda x, t: ste_ops.heaviside(x, Rect(t))
    compiled = torch.compile((programs | inside)[how], fullgraph=True, backend=counter)
    kinds = {"inside": lambda t: ReSTE(t, 1.0), "masks": Clip, "factors": Rect}
    graphs = []
    for step in range(6):
        t = 1.0 + 0.3 * step
        curve = kinds.get(how, lambda t: Tanh(t, 1 / t))(t)
        net.curve = curve
        y = compiled(x) if how == "module" else compiled(x, t if how in inside else curve)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], slope(curve, x))
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2, 2, 2, 2]


def test_a_ternary_threshold_that_changes_compiles_twice(device):
    """As a number; as a tensor it compiles once, and eagerly too it is read on the device."""
    x, seen = torch.randn(40, device=device, requires_grad=True), {}
    for kind in (Clip(1.0), Sigmoid(), Custom(tent), surrogate.Identity()):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(lambda x, t, kind=kind: ste_ops.ternary(x, kind, t), fullgraph=True, backend=counter)
        for wrap in (float, lambda t: torch.tensor(t, device=device)):
            before = counter.frame_count
            for t in (0.3, 0.4, 0.7, 1.1):
                y, expected = compiled(x, wrap(t)), ste_ops.ternary(x, kind, t)
                assert torch.equal(y, expected)
                assert torch.equal(ste_ops.ternary(x, kind, wrap(t)), expected)
                gradients = [torch.autograd.grad(out.sum(), x)[0] for out in (y, expected)]
                torch.testing.assert_close(*gradients)
            seen[type(kind).__name__, wrap is float] = counter.frame_count - before
    assert max(count for (_, number), count in seen.items() if number) == 2
    assert {count for (_, number), count in seen.items() if not number} == {1}
    learned = torch.tensor(0.3, device=device, requires_grad=True)
    with pytest.raises(ValueError, match="ternary: threshold must require no gradient"):
        ste_ops.ternary(x, Clip(1.0), learned)


@pytest.mark.parametrize("kind", [Tanh(1.0, 0.5), Clip(0.7), Rect(0.6)], ids=repr)
def test_a_mask_or_curve_of_tensors_is_that_of_numbers(device, kind):
    """To the bit, in every dtype and under the transforms; and nothing is synchronized."""
    tensors = type(kind)(
        *[torch.tensor(getattr(kind, n), dtype=torch.float64, device=device) for n in kind.__match_args__]
    )
    for dtype in DTYPES:
        x = (torch.randn(5, 77, device=device) * 1.5).to(dtype)
        for program in (
            lambda x, kind: slope(kind, x),
            lambda x, kind: vmap(grad(lambda row: ste_ops.sign(row, kind).sum()))(x),
            lambda x, kind: jvp(lambda x: ste_ops.ternary(x, kind), (x,), (x,))[1],
        ):
            assert_same_bits(program(x, tensors), program(x, kind), f"{dtype}")


def test_a_tensor_that_changes_compiles_once(device):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(9, device=device, requires_grad=True)
    compiled = torch.compile(lambda x, curve: ste_ops.sign(x, curve), fullgraph=True, backend=counter)
    t, k = temperatures(device)
    for step in range(5):
        if step == 3:
            t = t.clone()
        t.fill_(1.0 + step)
        y = compiled(x, Tanh(t, k))
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], slope(Tanh(1.0 + step, 0.5), x))
    assert counter.frame_count == 1
