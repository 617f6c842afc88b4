"""Surrogates whose parameters require a gradient: it is that of the primitive, in every dtype, layout and transform."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from support.surrogate_table import DTYPES, LAYOUTS, all_instances, filler, first_instances, specials
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap

import ste_ops
from ste_ops import reference, surrogate
from ste_ops._library import ops
from ste_ops.surrogate import ATan, Clip, FastSigmoid, Rect, ReSTE, Sigmoid, Tanh
from ste_ops.testing import check_ste
from ste_ops.testing._elementwise import _moved


def names(kind):
    return [field.name for field in dataclasses.fields(kind)]


def learnable(instances):
    """Those with parameters, of a size that their own dtype holds."""
    return [
        s
        for s in instances
        if s.by_parameters(torch.zeros(1)) and all(1e-3 < abs(p) < 1e3 or p == 0 for p in s.parameters)
    ]


def learn(kind, device, dtype=torch.float64, shape=()):
    held = [torch.full(shape, getattr(kind, name), dtype=dtype, device=device) for name in names(kind)]
    return type(kind)(*[p.requires_grad_() for p in held]), held


def away_from_kinks(kind, x):
    for kink in (*kind.kinks(), 0.1, -0.1):
        x = x[(x - kink).abs() > 1e-3]
    return x


@pytest.mark.parametrize("step", ["heaviside", "sign", "ternary"])
@pytest.mark.parametrize("kind", learnable(all_instances()), ids=repr)
def test_the_gradient_is_that_of_the_primitive(device, kind, step):
    """Of autograd in float64, and of finite differences; x gets what it gets of the same surrogate of numbers."""
    torch.manual_seed(0)
    x = away_from_kinks(kind, torch.randn(5003, dtype=torch.float64) * 1.5).to(device).requires_grad_()
    incoming = torch.randn_like(x)
    learned, held = learn(kind, device)
    of_x, *received = torch.autograd.grad(getattr(ste_ops, step)(x, learned), (x, *held), incoming)
    assert torch.equal(of_x, torch.autograd.grad(getattr(ste_ops, step)(x, kind), x, incoming)[0])
    expected = torch.autograd.grad(learned.primitive(x), held, incoming)
    for place, (name, got, wanted) in enumerate(zip(names(kind), received, expected, strict=True)):
        scale = (incoming * kind.by_parameters(x)[place]).abs().sum().item()
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13 * scale)
        value = getattr(kind, name)
        sides = [_moved(kind, name, value + h).primitive(x) for h in (1e-6 * value, -1e-6 * value)]
        difference = (incoming * (sides[0] - sides[1])).sum() / (2e-6 * value)
        torch.testing.assert_close(got, difference, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", learnable(first_instances()), ids=repr)
def test_equals_the_reference(device, kind, dtype):
    """In every dtype, at special values too, where one that is not finite may make the sum so."""
    for values in (torch.randn(1021, dtype=torch.float64), specials(dtype, kind)):
        x = values.to(device).to(dtype).requires_grad_()
        incoming = torch.linspace(-1, 2, x.numel(), device=device).to(dtype)
        learned, held = learn(kind, device, torch.float32)
        received = torch.autograd.grad(ste_ops.sign(x, learned), (x, *held), incoming)
        expected = torch.autograd.grad(reference.sign(x, learned), (x, *held), incoming)
        assert [got.dtype for got in received] == [dtype, *[torch.float32] * len(held)]
        for got, wanted, by in zip(received[1:], expected[1:], kind.by_parameters(x.detach().float()), strict=True):
            scale = (incoming.double() * by.double()).abs().nan_to_num(0, 0, 0).sum().item()
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * scale, equal_nan=True)
        number = torch.autograd.grad(ste_ops.sign(x, kind), x, incoming)[0]
        torch.testing.assert_close(received[0], number, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", [Tanh(1.2, 0.7), Clip(0.8)], ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, kind, layout):
    x = LAYOUTS[layout](filler(torch.float32, kind, device)).nan_to_num(0.3, 2.0, -2.0)
    learned, held = learn(kind, device, shape=(1,))
    incoming = torch.randn(x.shape, device=device)
    z = x.detach().requires_grad_()
    of_x, *received = torch.autograd.grad(ste_ops.heaviside(z, learned), (z, *held), incoming)
    expected = [(incoming.double() * by.double()).sum().view(1) for by in kind.by_parameters(x)]
    torch.testing.assert_close(received, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(of_x, torch.autograd.grad(ste_ops.heaviside(z, kind), z, incoming)[0])


@pytest.mark.parametrize("kind", learnable(all_instances()), ids=repr)
def test_check_ste_checks_the_fields(device, kind):
    if isinstance(kind, ReSTE) and kind.threshold < 0.1:
        pytest.skip("finite differences do not resolve this kink")
    learned, _ = learn(kind, device)
    check_ste(lambda x: ste_ops.sign(x, learned), learned, torch.randn(300, dtype=torch.float64, device=device))
    with pytest.raises(AssertionError, match=rf"backward of <lambda> at {names(kind)[0]}: expected"):
        check_ste(lambda x: ste_ops.sign(x, kind), learned, torch.randn(3, dtype=torch.float64, device=device))


@pytest.mark.parametrize("kind", learnable(first_instances()), ids=repr)
def test_large_numbers_and_parameters_that_left_their_range(device, kind):
    """Nothing divides by a parameter: one that an optimizer pushed to 0 gets a gradient that can bring it back."""
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([1e4, 0.0, 0.3, -0.7, largest, -largest, torch.inf, -torch.inf], device=device)
    incoming = torch.linspace(0.5, 2, 8, device=device)
    fields = [getattr(kind, name) for name in names(kind)]
    for values, count in ((fields, 8), ([0.0 if name != "power" else 3.0 for name in names(kind)], 4)):
        parameters = torch.tensor([*values, 0.0][:2], dtype=torch.float64, device=device)
        results = ops.learned_surrogate_backward(incoming[:count], x[:count], kind.number, parameters)
        assert all(bool(result.isfinite().all()) for result in results), (values, results)
    assert FastSigmoid(2.0).by_parameters(torch.tensor([torch.inf, 1e38]))[0].tolist() == [-0.25, -0.25]


def test_a_field_that_gets_none_costs_no_sum(device):
    """What a net of today saves and calls is what it was: a mask of one bit an element, and no reduction."""
    x = torch.randn(800, device=device, requires_grad=True)
    saved = []
    for kind, held in ((Clip(1.0), Clip(torch.tensor(1.0, device=device))), (Rect(), Rect(torch.tensor(1.0)))):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            y, z = ste_ops.sign(x, kind), ste_ops.sign(x, held)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(z.sum(), x)[0])
    assert saved == [100, 100, 100, 100, 8]  # the last is the factor of Rect


def test_the_same_bits_at_any_number_of_threads():
    x, incoming = torch.randn(2, 300_007)
    parameters = torch.tensor([1.1, 0.9], dtype=torch.float64)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(ops.learned_surrogate_backward(incoming, x, Tanh.number, parameters)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_sums_are_precise(device):
    """float32 would lose all of them: a large part that cancels."""
    x = torch.full((100_000,), 0.3, device=device)
    incoming = torch.ones_like(x)
    incoming[::2] = -1
    incoming[0] = -1 + 2**-12
    alpha = torch.tensor(2.0, dtype=torch.float64, device=device, requires_grad=True)
    (received,) = torch.autograd.grad(ste_ops.sign(x, ATan(alpha)), alpha, incoming)
    by = ATan(2.0).by_parameters(x[:1])[0].double().item()
    assert received.item() == pytest.approx(by * 2**-12, rel=1e-6)


def test_empty_and_no_gradient_of_x(device):
    alpha = torch.tensor([2.0], device=device, requires_grad=True)
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    of_x, of_alpha = torch.autograd.grad(ste_ops.sign(empty, ATan(alpha)).sum(), (empty, alpha))
    assert of_x.shape == (0, 3)
    assert of_alpha.tolist() == [0.0]
    x = torch.tensor([0.5], device=device)
    (of_alpha,) = torch.autograd.grad(ste_ops.heaviside(x, ATan(alpha)), alpha)
    torch.testing.assert_close(of_alpha, ATan(2.0).by_parameters(x)[0])
    with torch.no_grad():
        assert not ste_ops.heaviside(x, ATan(alpha)).requires_grad


# Transforms and higher orders.


@pytest.mark.parametrize("kind", [Sigmoid(2.0), Tanh(1.2, 0.7), FastSigmoid(3.0), Clip(0.8), ReSTE(3.0, 1.2)], ids=repr)
def test_higher_orders(device, kind):
    """The backward is differentiable in all that it reads, also where the incoming gradient reads it too."""
    x = away_from_kinks(kind, torch.randn(300, dtype=torch.float64)).to(device).requires_grad_()
    incoming = torch.randn_like(x).requires_grad_()
    learned, held = learn(kind, device)
    cotangents = [torch.randn_like(x), *[torch.randn_like(p) for p in held]]

    def second(out):
        first = torch.autograd.grad(out, (x, *held), incoming, create_graph=True)
        return torch.autograd.grad(first, (incoming, x, *held), cotangents, materialize_grads=True)

    for got, wanted in zip(second(ste_ops.sign(x, learned)), second(learned.primitive(x)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_transforms(device):
    torch.manual_seed(1)
    rows = torch.randn(4, 6, dtype=torch.float64, device=device)
    slopes = torch.rand(4, dtype=torch.float64, device=device) + 1

    def loss(row, alpha):
        return (ste_ops.sign(row, ATan(alpha)) * row.cos().detach()).sum()

    each = [
        (row.detach().requires_grad_(), alpha.detach().requires_grad_())
        for row, alpha in zip(rows, slopes, strict=True)
    ]
    expected = [torch.stack(g) for g in zip(*[torch.autograd.grad(loss(*pair), pair) for pair in each], strict=True)]
    torch.testing.assert_close(vmap(grad(loss, argnums=(0, 1)))(rows, slopes), tuple(expected))
    summed = grad(lambda rows, slopes: vmap(loss)(rows, slopes).sum(), argnums=(0, 1))(rows, slopes)
    torch.testing.assert_close(summed, tuple(expected))
    shared = grad(lambda alpha: vmap(loss, in_dims=(1, None))(rows.t(), alpha).sum())(slopes[0])
    torch.testing.assert_close(shared, grad(lambda alpha: loss(rows, alpha))(slopes[0]))
    x, alpha = rows[0], slopes[0]
    tangents = torch.randn_like(x), torch.randn_like(alpha)
    _, tangent = jvp(lambda x, alpha: ste_ops.sign(x, ATan(alpha)), (x, alpha), tangents)
    _, wanted = jvp(lambda x, alpha: ATan(alpha).primitive(x), (x, alpha), tangents)
    torch.testing.assert_close(tangent, wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(alpha.clone(), tangents[1])
        moved = torch.autograd.forward_ad.unpack_dual(ste_ops.sign(x, ATan(dual))).tangent
    torch.testing.assert_close(moved, ATan(alpha).by_parameters(x)[0] * tangents[1])


@pytest.mark.parametrize("step", ["heaviside", "ternary"])
def test_compiled(device, step):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, kind: getattr(ste_ops, step)(x, kind), fullgraph=True, backend=counter)
    x = torch.randn(33, device=device, requires_grad=True)
    t = torch.tensor(1.0, device=device, requires_grad=True)
    for value in (1.0, 1.5, 3.0):
        with torch.no_grad():
            t.fill_(value)
        received = torch.autograd.grad(compiled(x, Tanh(t, 0.5)).sum(), (x, t))
        torch.testing.assert_close(received, torch.autograd.grad(getattr(ste_ops, step)(x, Tanh(t, 0.5)).sum(), (x, t)))
    assert counter.frame_count == 1
    torch._dynamo.reset()


# Modules.

MODULES = [ste_ops.nn.Heaviside, ste_ops.nn.Sign, ste_ops.nn.Ternary]


@pytest.mark.parametrize("module", MODULES)
def test_a_parameter_of_the_surrogate_is_the_module_s(module):
    torch.manual_seed(0)
    alpha = torch.nn.Parameter(torch.tensor([2.0]))
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), module(ATan(alpha)))
    assert dict(net.named_parameters())["1.surrogate_alpha"] is alpha
    assert net.state_dict()["1.surrogate_alpha"].item() == 2.0
    assert "learned: alpha" in repr(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(torch.randn(16, 4)).square().sum().backward()
    optimizer.step()
    assert alpha.item() != 2.0

    twin = copy.deepcopy(net)
    assert twin[1].surrogate_alpha is twin[1].surrogate.alpha is not alpha
    assert twin[1].surrogate_alpha.item() == alpha.item()
    twin.load_state_dict({key: value + 1 for key, value in net.state_dict().items()})
    assert twin[1].surrogate.alpha.item() == pytest.approx(alpha.item() + 1)
    wide = twin.to(torch.float64)
    assert wide[1].surrogate.alpha.dtype == torch.float64
    x = torch.randn(5, 8, requires_grad=True)
    empty = module(ATan(torch.nn.Parameter(torch.ones(1, device="meta")))).to_empty(device="cpu")
    empty.load_state_dict(net[1].state_dict())
    swapped = functional_call(module(ATan(torch.nn.Parameter(torch.ones(1)))), dict(net[1].state_dict()), (x,))
    for out in (net[1](x), empty(x), swapped):
        (received,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(received, torch.autograd.grad(net[1](x).sum(), x)[0])


def test_a_new_surrogate_brings_its_own_parameters():
    module = ste_ops.nn.Sign(Tanh(torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.tensor(0.5))))
    assert list(dict(module.named_parameters())) == ["surrogate_t", "surrogate_k"]
    module.surrogate = ReSTE(2.0, torch.nn.Parameter(torch.tensor(1.0)))
    assert list(dict(module.named_parameters())) == ["surrogate_threshold"]
    module.surrogate = Clip(0.5)
    assert not list(module.parameters())
    raw = torch.nn.Parameter(torch.tensor(0.0))
    module.surrogate = ATan(raw.exp())  # of a parameter that is another's
    module(torch.tensor([0.5])).sum().backward()
    assert raw.grad is not None


def test_what_can_not_be_learned_is_refused():
    leaf = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(TypeError, match=r"Sign: alpha of ATan must be an nn.Parameter where it requires a gradient"):
        ste_ops.nn.Sign(ATan(leaf))
    with pytest.raises(ValueError, match=r"ATan: alpha must be .* of one element, shared by all of x, got .* \(4,\)"):
        ATan(torch.nn.Parameter(torch.ones(4)))
    x = torch.randn(3)
    with pytest.raises(RuntimeError, match="learned_surrogate_backward: surrogate must have parameters, got Identity"):
        ops.learned_surrogate_backward(x, x, surrogate.Identity.number, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="parameters must be contiguous float64 on x's device, of 2 elements, got 3"):
        ops.learned_surrogate_backward(x, x, ATan.number, torch.zeros(3, dtype=torch.float64))


def test_custom_refuses_what_it_reads_and_can_not_learn(device):
    k = torch.tensor(2.0, device=device, requires_grad=True)
    x = torch.randn(4, device=device, requires_grad=True)
    kind = surrogate.Custom(lambda x: 1 / (1 + k * x.abs()))
    with pytest.raises(
        ValueError, match=r"Custom: derivative reads a tensor that requires a gradient, which it cannot get"
    ):
        ste_ops.sign(x, kind).sum().backward()
    with torch.no_grad():
        ste_ops.sign(x, kind)
    ste_ops.sign(x, surrogate.Custom(lambda x: 1 / (1 + k.detach() * x.abs()))).sum().backward()


def test_a_field_on_the_meta_device_is_refused():
    surrogate = ste_ops.surrogate.ATan(torch.tensor(2.0, device="meta"))
    with pytest.raises(ValueError, match="a surrogate is on the meta device, without a number; x is on cpu"):
        ste_ops.sign(torch.randn(3), surrogate)
