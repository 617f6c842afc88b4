"""Steps and bounds that were pushed to 0 or below: one Function each, with the bits of a clamp and the operator."""

import math

import pytest
import torch
from support.quantize_cases import same_bits
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import ste_ops
from ste_ops.functional.quantize.offset import learned_offset
from ste_ops.functional.quantize.uniform import LEAST_STEP, learned_bound, learned_step

SCALES = (0.3, 1e-9, 0.0, -0.5)


def clamped(scale):
    return ste_ops.clamp(scale, LEAST_STEP, math.inf)


# Of each the one Function, and the same as two operators.
PAIRS = {
    "lsq": (
        lambda x, s: learned_step(x, s, -4, 3, None, 0.5, False),
        lambda x, s: ste_ops.lsq(x, clamped(s), -4, 3, None, 0.5),
    ),
    "lsq channels": (
        lambda x, s: learned_step(x, s.expand(x.shape[-1]), -4, 3, x.dim() - 1, None, False),
        lambda x, s: ste_ops.lsq(x, clamped(s.expand(x.shape[-1])), -4, 3, x.dim() - 1),
    ),
    "lsq_plus": (
        lambda x, s: learned_offset(x, s, s * 0.5, 0, 7, None, 0.5, False),
        lambda x, s: ste_ops.lsq_plus(x, clamped(s), s * 0.5, 0, 7, None, 0.5),
    ),
    "pact": (
        lambda x, s: learned_bound(x, s, 3),
        lambda x, s: ste_ops.pact(x, clamped(s), 3),
    ),
}


def tensors(device, scale, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator).to(device, dtype)
    return x, torch.full((1,), scale, device=device, dtype=dtype)


def agree(pair, of):
    received, expected = map(of, PAIRS[pair])
    assert len(received) == len(expected)
    for got, wanted in zip(received, expected, strict=True):
        assert same_bits(got.detach(), wanted.detach()), pair


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradients_of_two_orders(device, pair, dtype):
    for scale in SCALES:
        x, s = (held.requires_grad_() for held in tensors(device, scale, dtype))
        upstream = torch.linspace(-1, 1, x.numel(), device=device, dtype=dtype).reshape(x.shape).requires_grad_()

        def both_orders(f, x=x, s=s, upstream=upstream):
            out = f(x, s)
            of = torch.autograd.grad(out, (x, s), upstream, create_graph=True)
            return out, *of, *torch.autograd.grad(of[0].sum() + of[1].sum(), upstream)

        agree(pair, both_orders)
        agree(pair, lambda f, x=x, s=s: [f(x, s.detach()), *torch.autograd.grad(f(x, s.detach()).sum(), x)])


@pytest.mark.parametrize("pair", PAIRS)
def test_transforms(device, pair):
    for scale in SCALES:
        x, s = tensors(device, scale)
        rows = torch.stack([s, s + 0.2, s - 0.3, s, s * 2, s])

        agree(pair, lambda f, x=x, s=s: grad(lambda *a: f(*a).square().sum(), (0, 1))(x, s))
        agree(pair, lambda f, x=x, s=s: jvp(f, (x, s), (torch.ones_like(x), torch.ones_like(s))))
        agree(pair, lambda f, x=x, s=s: (jacrev(f, 1)(x, s), jacfwd(f, 1)(x, s), jacfwd(jacrev(f, 1), 1)(x, s)))
        for dims, second in (((0, None), s), ((0, 0), rows), ((None, 0), rows)):
            agree(pair, lambda f, x=x, s=second, d=dims: [vmap(f, d)(x, s)])
            of = lambda f: grad(lambda *a: f(*a).square().sum(), (0, 1))  # noqa: E731
            agree(pair, lambda f, x=x, s=second, d=dims, of=of: vmap(of(f), d)(x, s))
            agree(pair, lambda f, x=x, s=second, d=dims: grad(lambda *a: vmap(f, d)(*a).square().sum(), (0, 1))(x, s))


@pytest.mark.parametrize("pair", PAIRS)
def test_forward_mode_and_no_gradient_at_all(device, pair):
    x, s = tensors(device, -0.5)

    def dual(f):
        with torch.autograd.forward_ad.dual_level():
            made = [torch.autograd.forward_ad.make_dual(held, torch.ones_like(held)) for held in (x, s)]
            return torch.autograd.forward_ad.unpack_dual(f(*made))

    agree(pair, dual)
    agree(pair, lambda f: [f(x, s)])


def test_the_parameter_may_move_before_the_backward(device):
    """As where a clamp comes first: what is kept is the step in use."""
    for pair, (function, _) in PAIRS.items():
        x, s = (held.requires_grad_() for held in tensors(device, 0.3))
        (expected,) = torch.autograd.grad(function(x, s).sum(), s)
        out = function(x, s)
        with torch.no_grad():
            s.fill_(7.0)
        assert same_bits(torch.autograd.grad(out.sum(), s)[0], expected), pair


def test_compiled_and_exported():
    for make in (ste_ops.nn.LSQ, ste_ops.nn.LSQPlus):
        module, (x, _) = make(3, scale=0.3), tensors("cpu", 0.3)
        with torch.no_grad():
            module.scale.fill_(-1.0)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        gradients = []
        for f in (module, compiled):
            x = x.detach().requires_grad_()
            f(x).square().sum().backward()
            gradients.append((x.grad, module.scale.grad))
            module.zero_grad()
        assert all(map(same_bits, *gradients))
        program = torch.export.export(module, (x.detach(),), strict=False)
        called = [str(node.target) for node in program.graph.nodes if "autograd" in str(node.target)]
        assert [name.split(".")[1] for name in called] == [
            "autograd_clamp",
            "autograd_lsq" if make is ste_ops.nn.LSQ else "autograd_lsq_plus",
        ]
        assert same_bits(program.module()(x), module(x))


def test_parameters_that_are_given_for_one_call():
    """`functional_call` with a scale of each sample's own."""
    module, (x, _) = ste_ops.nn.LSQ(3, scale=0.3), tensors("cpu", 0.3)
    scales = torch.linspace(-0.1, 0.5, len(x)).reshape(-1, 1)
    received = vmap(lambda scale, row: functional_call(module, {"scale": scale}, (row,)))(scales, x)
    expected = [ste_ops.lsq(row, clamped(scale), -4, 3) for scale, row in zip(scales, x, strict=True)]
    assert same_bits(received, torch.stack(expected))
