"""The uniform quantizers under autograd, torch.func, torch.compile and autocast, and what they refuse."""

import math

import pytest
import torch
from torch.autograd import forward_ad, gradcheck
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

import ste_ops
from ste_ops import reference
from ste_ops._functions.quantize import uniform

nan, inf = math.nan, math.inf
SHAPE = (3, 5, 7)  # no sample is a whole number of mask bytes

# name -> how it is called on x and the parameter that it learns or is given, and that parameter's shape.
CASES = {
    "fake_quantize": (lambda m, x, p: m.fake_quantize(x, 0.3, 1, -4, 3), None),
    "fake_quantize of a tensor": (lambda m, x, p: m.fake_quantize(x, p, 1, -4, 3), ()),
    "fake_quantize of channels": (lambda m, x, p: m.fake_quantize(x, p, p.round(), -4, 3, -1), (7,)),
    "lsq": (lambda m, x, p: m.lsq(x, p, -4, 3), ()),
    "lsq of channels": (lambda m, x, p: m.lsq(x, p, -4, 3, -2), (5,)),
    "lsq_plus": (lambda m, x, p: m.lsq_plus(x, p, p - 0.7, -4, 3), ()),
    "lsq_plus of an offset": (lambda m, x, p: m.lsq_plus(x, torch.full_like(p, 0.3), p - 0.7, -4, 3), (1,)),
    "lsq_plus of channels": (lambda m, x, p: m.lsq_plus(x, p, p.flip(0) - 0.7, -4, 3, -2), (5,)),
    "pact": (lambda m, x, p: m.pact(x, p, 3), (1,)),
    "dorefa_activation": (lambda m, x, p: m.dorefa_activation(x, 2), None),
}
LEARNED = [name for name in CASES if name.startswith(("lsq", "pact"))]


def inputs(name, device, batch=()):
    """A tensor of SHAPE[1:], the parameter, and a cotangent; with a batch in front."""
    shape = CASES[name][1] or ()
    x = torch.randn(*batch, *SHAPE[1:], device=device, dtype=torch.float64) * 1.5
    p = torch.rand((*batch, *shape), device=device, dtype=torch.float64) + 0.2
    return x, p, torch.randn_like(x)


def call(name, module):
    return lambda x, p: CASES[name][0](module, x, p)


def expected(name, x, p, v):
    """The reference's output and gradients: a gradient for p is zero where p is not learned."""
    x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
    out = call(name, reference)(x, p)
    return [out.detach(), *torch.autograd.grad(out, (x, p), v, allow_unused=True, materialize_grads=True)]


def assert_close(received, wanted):
    for got, want in zip(received, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_grad_vjp_and_jvp(device, name):
    x, p, v = inputs(name, device)
    fn = call(name, ste_ops)
    out, of_x, of_p = expected(name, x, p, v)
    received, back = vjp(fn, x, p)
    assert_close((received, *back(v)), (out, of_x, of_p))
    assert_close(grad(lambda x, p: (fn(x, p) * v).sum(), argnums=(0, 1))(x, p), (of_x, of_p))
    # The tangent is by the same Jacobian as the gradient, grad_scale included.
    u, w = torch.randn_like(x), torch.randn_like(p)
    received, tangent = jvp(fn, (x, p), (u, w))
    torch.testing.assert_close(received, out)
    torch.testing.assert_close((tangent * v).sum(), (of_x * u).sum() + (of_p * w).sum())
    torch.testing.assert_close(jvp(lambda p: fn(x, p), (p,), (w,))[1].mul(v).sum(), (of_p * w).sum())


@pytest.mark.parametrize("name", CASES)
def test_vmap(device, name):
    """Over x, over the parameter and over both; the gradients of each sample; two batches, and the batch last."""
    fn = call(name, ste_ops)
    xs, ps, vs = inputs(name, device, (3,))
    gradients = grad(lambda x, p, v: (fn(x, p) * v).sum(), argnums=(0, 1))
    for dims in ((0, 0, 0), (0, None, 0), (None, 0, 0), (0, 0, None)):
        arguments = [a if dim == 0 else a[1] for a, dim in zip((xs, ps, vs), dims, strict=True)]
        samples = [[a[i] if dim == 0 else a for a, dim in zip(arguments, dims, strict=True)] for i in range(3)]
        wanted = [torch.stack(column) for column in zip(*(expected(name, *sample) for sample in samples), strict=True)]
        assert_close(vmap(gradients, dims)(*arguments), wanted[1:])
        if dims != (0, 0, None):
            torch.testing.assert_close(vmap(fn, dims[:2])(*arguments[:2]), wanted[0])
    wanted = [torch.stack(c) for c in zip(*(expected(name, *s) for s in zip(xs, ps, vs, strict=True)), strict=True)]
    assert_close(vmap(vmap(gradients))(xs[None], ps[None], vs[None]), [w[None] for w in wanted[1:]])
    received = vmap(fn, (-1, 0), -1)(xs.movedim(0, -1), ps)
    torch.testing.assert_close(received, wanted[0].movedim(0, -1))
    # The transform outside, and a gradient that is shared by the batch.
    total = grad(lambda xs, p: (vmap(fn, (0, None))(xs, p) * vs).sum(), argnums=(0, 1))(xs, ps[0])
    each = [expected(name, x, ps[0], v) for x, v in zip(xs, vs, strict=True)]
    assert_close(total, (torch.stack([e[1] for e in each]), sum(e[2] for e in each)))
    tangents = vmap(lambda x, u: jvp(lambda x: fn(x, ps[0]), (x,), (u,))[1])(xs, vs)
    torch.testing.assert_close(tangents, torch.stack([e[1] for e in each]))


@pytest.mark.parametrize("name", LEARNED)
def test_jacobians(device, name):
    """vmap over the backward alone."""
    x, p, _ = inputs(name, device)
    fn = call(name, ste_ops)
    of_x, of_p = jacrev(fn, argnums=(0, 1))(x, p)
    for i in ((0, 0), (2, 3)):
        unit = torch.zeros_like(x)
        unit[i] = 1
        assert_close((of_x[i], of_p[i]), expected(name, x, p, unit)[1:])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_the_backward_is_linear_in_its_incoming_gradient(device, name, layout):
    x, p, v = inputs(name, device)
    x = {"contiguous": x, "transposed": x.t().contiguous().t(), "sliced": x.repeat(2, 2)[:5, ::2][:, :7]}[layout]
    x, p, v = x.detach().requires_grad_(), p.requires_grad_(), v.requires_grad_()
    wanted = (x, p) if name in LEARNED else (x,)

    def backward(v):
        return torch.autograd.grad(call(name, ste_ops)(x, p), wanted, v, create_graph=True)

    assert gradcheck(backward, v, check_forward_ad=True)
    slow = torch.autograd.grad(call(name, reference)(x, p), wanted, v, create_graph=True)
    cotangents = [torch.randn_like(g) for g in slow]
    assert_close(backward(v), slow)
    assert_close(torch.autograd.grad(backward(v), v, cotangents), torch.autograd.grad(slow, v, cotangents))


def test_second_order_of_a_loss(device):
    """A gradient penalty, as WGAN-GP takes it."""

    def penalty(module):
        x, p, _ = inputs("lsq", device)
        torch.manual_seed(1)
        x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
        loss = (module.lsq(x.sin(), p, -4, 3) * x).sum()
        of_x, of_p = torch.autograd.grad(loss, (x, p), create_graph=True)
        return torch.autograd.grad(of_x.square().sum() + of_p.square(), (x, p), allow_unused=True)

    torch.manual_seed(0)
    received = penalty(ste_ops)
    torch.manual_seed(0)
    assert_close(received, penalty(reference))


def test_forward_mode_without_functorch(device):
    x, p, v = inputs("lsq", device)
    with forward_ad.dual_level():
        out = ste_ops.lsq(forward_ad.make_dual(x, v), p, -4, 3)
        tangent = forward_ad.unpack_dual(out).tangent
        torch.testing.assert_close(tangent, expected("lsq", x, p, v)[1])
        out = ste_ops.pact(x, forward_ad.make_dual(p, torch.ones_like(p)), 2)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, (x >= p).double())


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradients_of_some_inputs(device, needs):
    x, p, v = inputs("lsq of channels", device)
    _, of_x, of_p = expected("lsq of channels", x, p, v)
    x.requires_grad_(needs[0])
    p.requires_grad_(needs[1])
    out = call("lsq of channels", ste_ops)(x, p)
    assert out.requires_grad == any(needs)
    if any(needs):
        out.backward(v)
    for leaf, wanted, need in ((x, of_x, needs[0]), (p, of_p, needs[1])):
        assert (leaf.grad is not None) == need
        if need:
            torch.testing.assert_close(leaf.grad, wanted)


class Net(torch.nn.Module):
    """Learned steps for a weight's channels, a clipped activation, a fixed grid for the output."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.layer = torch.nn.Linear(7, 5)
        self.scale = torch.nn.Parameter(torch.full((5,), 0.1))
        self.alpha = torch.nn.Parameter(torch.ones(()))
        self.step, self.offset = torch.nn.Parameter(torch.full((1,), 0.2)), torch.nn.Parameter(torch.full((1,), -1.3))

    def forward(self, x):
        weight = self.module.lsq(self.layer.weight, self.scale, -4, 3, 0)
        x = self.module.lsq_plus(x, self.step, self.offset, 0, 15)
        hidden = self.module.pact(torch.nn.functional.linear(x, weight, self.layer.bias), self.alpha, 3)
        hidden = hidden + self.module.dorefa_activation(hidden.t(), 2).t()
        return self.module.fake_quantize(hidden, 0.2, 1, -4, 3)


def train(device, module, transform=lambda net: net):
    torch.manual_seed(0)
    net = Net(module).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    x, step, losses = torch.randn(9, 7, device=device), transform(net), []
    for _ in range(4):
        loss = (step(x) - x[:, :5]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), list(net.parameters())


def test_training_compiles_without_a_graph_break(device):
    torch._dynamo.reset()
    eager = train(device, ste_ops)
    torch.testing.assert_close(eager, train(device, reference))
    torch.testing.assert_close(
        train(device, ste_ops, lambda net: torch.compile(net, fullgraph=True, backend="aot_eager")), eager
    )


def test_gradients_of_each_sample_of_a_net(device):
    torch.manual_seed(0)
    net, slow = Net(ste_ops).to(device), Net(reference).to(device)
    slow.load_state_dict(net.state_dict())
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randn(4, 2, 7, device=device)
    loss = lambda parameters, x: functional_call(net, parameters, (x,)).square().sum()  # noqa: E731
    received = vmap(grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        slow.zero_grad()
        slow(sample).square().sum().backward()
        for name, p in slow.named_parameters():
            torch.testing.assert_close(received[name][i], p.grad, rtol=1e-4, atol=1e-5)


def test_autocast_leaves_dtypes_alone(device):
    x, scale = torch.randn(4, 4, device=device), torch.full((), 0.3, device=device, requires_grad=True)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert ste_ops.lsq(x, scale, -4, 3).dtype == torch.float32
        half = (x @ x).requires_grad_()
        out = ste_ops.lsq(half, scale, -4, 3)
    assert out.dtype == half.dtype == torch.bfloat16
    of_x, of_scale = torch.autograd.grad(out.float().sum(), (half, scale))
    assert (of_x.dtype, of_scale.dtype) == (torch.bfloat16, torch.float32)


# What is refused.

ones = torch.ones(4, 6)
one = torch.ones(())
fake_quantize, lsq, pact, dorefa = ste_ops.fake_quantize, ste_ops.lsq, ste_ops.pact, ste_ops.dorefa_activation
lsq_plus = ste_ops.lsq_plus
POSITIVE = "fake_quantize: scale must be positive and finite, and its reciprocal too, got "
REFUSED = [
    (TypeError, "fake_quantize: x must be a tensor, got int", fake_quantize, (1, 0.1, 0, 0, 1)),
    (TypeError, "fake_quantize: x must be float64, .* got torch.int64", fake_quantize, (ones.long(), 1, 0, 0, 1)),
    (ValueError, POSITIVE + "0", fake_quantize, (ones, 0, 0, 0, 1)),
    (ValueError, POSITIVE + "-0.5", fake_quantize, (ones, -0.5, 0, 0, 1)),
    (ValueError, POSITIVE + "inf", fake_quantize, (ones, inf, 0, 0, 1)),
    (ValueError, POSITIVE + "1e-39", fake_quantize, (ones, 1e-39, 0, 0, 1)),
    (ValueError, "fake_quantize: scale must not be NaN", fake_quantize, (ones, nan, 0, 0, 1)),
    (TypeError, "fake_quantize: scale must be a number, got '1'", fake_quantize, (ones, "1", 0, 0, 1)),
    (ValueError, "quant_min must be less than quant_max, got 1 and 1", fake_quantize, (ones, 1, 0, 1, 1)),
    (TypeError, "fake_quantize: quant_max must be an int, got 1.0", fake_quantize, (ones, 1, 0, 0, 1.0)),
    (TypeError, "zero_point must be of an integer or floating dtype", fake_quantize, (ones, 1, one.bool(), 0, 1)),
    (IndexError, r"fake_quantize: axis must be in \[-2, 1\], got 2", fake_quantize, (ones, 1, 0, 0, 1, 2)),
    (ValueError, r"6, as many as x along axis 1, got the shape \(4,\)", fake_quantize, (ones, ones[:, 0], 0, 0, 1, 1)),
    (IndexError, "lsq: axis must be None for a 0-d tensor, got 0", lsq, (one, one, 0, 1, 0)),
    (ValueError, r"lsq: scale must .* one element, got the shape \(6,\)", lsq, (ones, ones[0], 0, 1)),
    (ValueError, r"lsq: scale must be 0-d or 1-d .* got the shape \(4, 1\)", lsq, (ones, ones[:, :1], 0, 1, 0)),
    (TypeError, "lsq: scale must be a tensor, got float", lsq, (ones, 0.5, 0, 1)),
    (ValueError, "lsq: grad_scale must be given where .* got quant_max 0", lsq, (ones, one, -4, 0)),
    (TypeError, "lsq: grad_scale must be a number, got 'a'", lsq, (ones, one, -4, 0, None, "a")),
    (ValueError, r"lsq_plus: offset must .* one element, got the shape \(6,\)", lsq_plus, (ones, one, ones[0], 0, 1)),
    (TypeError, "lsq_plus: offset must be a tensor, got float", lsq_plus, (ones, one, 0.5, 0, 1)),
    (TypeError, "lsq_plus: offset must be float64, .* got torch.int64", lsq_plus, (ones, one, one.long(), 0, 1)),
    (ValueError, "lsq_plus: grad_scale must be given where .* got quant_max 0", lsq_plus, (ones, one, one, -4, 0)),
    (ValueError, "lsq_plus: quant_min must be less than quant_max", lsq_plus, (ones, one, one, 1, 1)),
    (ValueError, r"pact: bits must be in \[1, 24\], got 0", pact, (ones, one, 0)),
    (ValueError, r"pact: alpha must .* one element, got the shape \(6,\)", pact, (ones, ones[0], 2)),
    (TypeError, "dorefa_activation: bits must be an integer, got 2.0", dorefa, (ones, 2.0)),
    (ValueError, r"dorefa_activation: bits must be in \[1, 24\], got 25", dorefa, (ones, 25)),
]


@pytest.mark.parametrize(("error", "message", "fn", "arguments"), REFUSED)
def test_bad_input_is_refused(error, message, fn, arguments):
    with pytest.raises(error, match=message):
        fn(*arguments)


@pytest.mark.parametrize("value", [0.0, -1.0, nan, inf, -inf, 1e-39])
def test_values_of_tensors_are_checked(device, request, value):
    """On the CPU they are refused; on CUDA, where the host would wait for them, the result says so."""
    x, scale = torch.randn(3, 5, device=device), torch.ones(5, device=device)
    scale[3] = value
    scale.requires_grad_()
    upstream = torch.ones_like(x)
    if "cpu" in request.node.name:
        with pytest.raises(RuntimeError, match=r"fake_quantize: scale must be positive and finite, .* at index 3"):
            ste_ops.fake_quantize(x, scale, 0, -4, 3, 1)
        for fn in (ste_ops.lsq, lambda *a: torch.ops.ste_ops.lsq_backward(upstream, *a, 1, 1.0)[0]):
            with pytest.raises(RuntimeError, match=r"^lsq: scale must be positive and finite, .* at index 3"):
                fn(x, scale, -4, 3, *((1,) if fn is ste_ops.lsq else ()))
        with pytest.raises(RuntimeError, match="pact: alpha must be positive and finite"):
            ste_ops.pact(x, scale[3], 2)
        return
    invalid = torch.tensor([False, False, False, True, False]).expand(3, 5)
    assert torch.equal(ste_ops.fake_quantize(x, scale, 0, -4, 3, 1).isnan().cpu(), invalid)
    leaf, learned = x.clone().requires_grad_(), scale
    out = ste_ops.lsq(leaf, learned, -4, 3, 1)
    assert torch.equal(out.isnan().cpu(), invalid)
    of_x, of_scale = torch.autograd.grad(out, (leaf, learned), upstream)
    assert not of_x[:, 3].any()
    assert torch.equal(of_scale.isnan().cpu(), invalid[0])
    assert bool(ste_ops.pact(x, scale[3].detach(), 2).isnan().all())


# name -> its Function, and how many masks that keeps.
KEEP_MASKS = {
    "fake_quantize": (uniform.FakeQuantize, 1),
    "fake_quantize of a tensor": (uniform.FakeQuantize, 1),
    "fake_quantize of channels": (uniform.FakeQuantize, 1),
    "pact": (uniform.PACT, 2),
    "dorefa_activation": (uniform.DorefaActivation, 1),
}


@pytest.mark.parametrize("dims", [(0, 0), (0, None)])
@pytest.mark.parametrize("name", KEEP_MASKS)
def test_vmap_keeps_one_bit_an_element(device, monkeypatch, name, dims):
    """What the gradients of each sample save, within vmap; and around it."""
    function, count = KEEP_MASKS[name]
    kept, setup_context = [], function.setup_context

    def watched(ctx, given, output):
        kept.append(output[1:])
        setup_context(ctx, given, output)

    monkeypatch.setattr(function, "setup_context", staticmethod(watched))
    x, p, _ = inputs(name, device, (3,))
    fn = call(name, ste_ops)
    vmap(grad(lambda x, p: fn(x, p).sum()), dims)(x, p if dims[1] == 0 else p[0])
    assert kept
    whole = (x[0].numel() + 7) // 8
    for masks in kept:
        assert len(masks) == count
        for mask in masks:
            assert mask.dtype == torch.uint8
            # One sample's, or in a call for the batch that of all.
            assert mask.numel() in (whole, 3 * whole) or name.endswith("channels")
    assert kept[-1][0].numel() == whole


@pytest.mark.parametrize("name", ["fake_quantize", "fake_quantize of channels", "pact", "dorefa_activation"])
def test_the_masks_of_a_batch_are_those_of_its_samples(device, name):
    """Packed as outside vmap, and so small: what the rule gives is what a sample alone gives, byte by byte."""
    x, p, _ = inputs(name, device, (3,))
    function, arguments = {
        "fake_quantize": (uniform.FakeQuantize, (None, None, 0.3, 1.0, -4, 3, -1)),
        "fake_quantize of channels": (uniform.FakeQuantize, (p[0], None, 1.0, 1.0, -4, 3, 1)),
        "pact": (uniform.PACT, (p[0], 3)),
        "dorefa_activation": (uniform.DorefaActivation, (2,)),
    }[name]
    out, *masks = vmap(lambda x: function.apply(x, *arguments))(x)
    for i, sample in enumerate(x):
        axis_first = sample.t().contiguous().t() if name.endswith("channels") else sample
        alone, *wanted = function.apply(axis_first, *arguments)
        assert torch.equal(out[i], alone)
        for mask, want in zip(masks, wanted, strict=True):
            last = 2 ** (sample.numel() % 8) - 1  # the bits of the last byte that are elements
            assert mask.dtype == torch.uint8
            assert torch.equal(mask[i, :-1], want[:-1])
            assert torch.equal(mask[i, -1] & last, want[-1] & last)
