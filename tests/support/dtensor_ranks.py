"""What every rank does and checks in the tests of the operators on DTensors."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import ste_ops
from ste_ops import surrogate

_TENT = surrogate.Custom(lambda x: (1 - x.abs()).clamp(min=0))

# Of one tensor, by the public name; what depends on x alone, and so comes out as in one process.
OF_X = {
    "heaviside": [ste_ops.heaviside, lambda x: ste_ops.heaviside(x, surrogate.Identity())],
    "sign": [ste_ops.sign, lambda x: ste_ops.sign(x, surrogate.ATan()), lambda x: ste_ops.sign(x, _TENT)],
    "ternary": [lambda x: ste_ops.ternary(x, surrogate.Rect(), 0.2)],
    "round": [ste_ops.round],
    "floor": [ste_ops.floor],
    "ceil": [ste_ops.ceil],
    "trunc": [ste_ops.trunc],
    "clamp": [lambda x: ste_ops.clamp(x, -0.5, 0.5)],
    "fake_quantize": [lambda x: ste_ops.fake_quantize(x, 0.25, 1, -4, 3)],
    "dorefa_activation": [lambda x: ste_ops.dorefa_activation(x, 3)],
    "dorefa_weight": [lambda w: ste_ops.dorefa_weight(w, 3), lambda w: ste_ops.dorefa_weight(w, 1)],
    "xnor_weight": [ste_ops.xnor_weight],
    "magnitude_aware_sign": [ste_ops.magnitude_aware_sign],
    "bitnet_weight": [ste_ops.bitnet_weight],
    "bitnet_activation": [ste_ops.bitnet_activation],
    "sr_ste": [lambda w: ste_ops.sr_ste(w, 2, 4)],
    "clip_gradient_value": [lambda x: ste_ops.clip_gradient_value(x, 0.3)],
    "clip_gradient_norm": [
        lambda x: ste_ops.clip_gradient_norm(x, 0.3),
        lambda x: ste_ops.clip_gradient_norm(x, 0.3, dim=1),
    ],
}
# Of a tensor and parameters, each with the placements that it may have beside x.
OF_PARAMETERS = {
    "fake_quantize": [
        (lambda x, s: ste_ops.fake_quantize(x, s, torch.ones_like(s), -4, 3), None),
        (lambda x, s: ste_ops.fake_quantize(x, s, s.round(), -4, 3, axis=0), 0),
        (lambda x, s: ste_ops.fake_quantize(x, s.detach(), 0, -4, 3, axis=-1), 1),
    ],
    "lsq": [
        (lambda x, s: ste_ops.lsq(x, s, -4, 3), None),
        (lambda x, s: ste_ops.lsq(x, s, -4, 3, axis=0), 0),
        (lambda x, s: ste_ops.lsq(x, s, -4, 3, axis=1), 1),
        (lambda x, s: ste_ops.lsq(x, s, -4, 3, axis=1, grad_scale=0.3), 1),
        (lambda x, s: ste_ops.lsq(x, s.detach(), -4, 3, axis=1), 1),
    ],
    "lsq_plus": [
        (lambda x, s: ste_ops.lsq_plus(x, s, s * 0.5, -4, 3), None),
        (lambda x, s: ste_ops.lsq_plus(x, s, s * 0.5, -4, 3, axis=1), 1),
        (lambda x, s: ste_ops.lsq_plus(x, s.detach(), s.detach() * 0.5, -4, 3, axis=1), 1),
    ],
    "pact": [(lambda x, s: ste_ops.pact(x, s, 3), None)],
}
DRAWS = {"stochastic_round", "bernoulli_ste", "categorical_ste", "subset_ste"}
REFUSED = {
    "multinomial": lambda weights: ste_ops.multinomial(weights, 1),
    "AliasTable": ste_ops.AliasTable,
    "SumTree": ste_ops.SumTree,
    "systematic_resample": lambda weights: ste_ops.systematic_resample(weights, 2),
    "stratified_resample": lambda weights: ste_ops.stratified_resample(weights, 2),
    "residual_resample": lambda weights: ste_ops.residual_resample(weights, 2),
    "pack_bits": ste_ops.pack_bits,
    "unpack_bits": lambda bits: ste_ops.unpack_bits(bits.to(torch.uint8), 32),
    "binary_linear": lambda x: ste_ops.binary_linear(x, torch.ones(2, 4)),
    "binary_conv1d": lambda weight: ste_ops.binary_conv1d(torch.ones(1, 4, 4), weight),
    "binary_conv2d": lambda weight: ste_ops.binary_conv2d(torch.ones(1, 4, 4, 4), weight),
    # Two tensors of one, with a gradient each.
    "xnor_weight": lambda w: ste_ops.xnor_weight(w, surrogate.ATan()),
    "magnitude_aware_sign": lambda w: ste_ops.magnitude_aware_sign(w, surrogate.Rect()),
}


def _gradients(y, inputs, grad, upper, distribute):
    """Of the inputs, and of those in turn: the second order, in the incoming gradient and in the inputs."""
    grad = distribute(grad).requires_grad_()
    first = torch.autograd.grad(y, inputs, grad, create_graph=True, allow_unused=True)
    second = [torch.autograd.grad(f, [grad, *inputs], distribute(u), retain_graph=True, allow_unused=True)
              for f, u in zip(first, upper, strict=True) if f is not None and f.shape == u.shape]  # fmt: skip
    return [first, *second]


def compare(f, full, mesh, placements, of_parameters=None):
    """f of DTensors against f of the same tensors in one process: values, placements and two orders of gradients."""
    of_parameters = [*([] if of_parameters is None else [of_parameters])]
    alone = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in full]
    of_all = [placements, *of_parameters]
    ours = [distribute_tensor(t, mesh, p).requires_grad_() for t, p in zip(full, of_all, strict=True)]
    expected, received = f(*alone), f(*ours)
    assert received.placements == tuple(placements)
    assert torch.equal(received.full_tensor(), expected)
    assert _steps(received) == _steps(expected)
    if not expected.requires_grad:
        return
    grad, upper = torch.randn_like(expected), [torch.randn_like(t) for t in full]
    expected = _gradients(expected, alone, grad, upper, lambda t: t.clone())
    received = _gradients(received, ours, grad, upper, lambda t: distribute_tensor(t, mesh, _like(t, full, of_all)))
    for (*of_ours,), (*of_alone,) in zip(received, expected, strict=True):
        for r, e in zip(of_ours, of_alone, strict=True):
            assert (r is None) == (e is None)
            if e is not None:
                torch.testing.assert_close(r.full_tensor(), e)
    for r, p in zip(received[0], of_all, strict=True):
        assert r is None or r.placements == tuple(p)


def _steps(t):
    return [step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _like(t, full, placements):
    return next(p for f, p in zip(full, placements, strict=True) if f.shape == t.shape)


def operators_of_x(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    # Sizes that divide evenly and not, and fewer rows than ranks.
    for full in (torch.randn(8, 6).t(), torch.randn(3, 12), torch.randn(1, 4)):
        for placement in (Shard(0), Shard(1), Replicate()):
            for f in chain(*OF_X.values()):
                compare(f, [full], mesh, [placement])


def dtypes(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        for full in (torch.randn(3, 4, 8).to(dtype), torch.randn(0, 4).to(dtype), torch.randn(4).to(dtype)):
            for f in (ste_ops.sign, ste_ops.round, ste_ops.xnor_weight, ste_ops.bitnet_weight):
                compare(f, [full], mesh, [Shard(full.dim() - 1)])
                compare(f, [full], mesh, [Shard(0)])
    compare(ste_ops.sign, [torch.randn(())], mesh, [Replicate()])


def parameters(rank, world):
    """One scale is held by every rank, and its gradient summed; scales of a sharded dimension are sharded or cut."""
    mesh = init_device_mesh("cpu", (world,))
    for shape in ((3, 12), (1, 4)):
        full = torch.randn(shape)
        for f, axis in chain(*OF_PARAMETERS.values()):
            scale = torch.rand(1 if axis is None else shape[axis]) + 0.2
            for placement in (Shard(0), Shard(1), Replicate()):
                for of_scale in (Replicate(), Shard(0)):
                    compare(f, [full, scale], mesh, [placement], [of_scale])


def partial(rank, world):
    """Summands are added up before they are quantized, and the gradient of each is that of the sum."""
    mesh = init_device_mesh("cpu", (world,))
    parts = torch.randn(world, 4, 6)
    for f in (ste_ops.sign, ste_ops.xnor_weight, ste_ops.bitnet_weight, lambda x: ste_ops.clip_gradient_value(x, 0.3)):
        own = parts[rank].clone().requires_grad_()
        alone = parts.sum(0).requires_grad_()
        out, expected = f(DTensor.from_local(own, mesh, [Partial()])), f(alone)
        assert out.placements == (Replicate(),)
        torch.testing.assert_close(out.full_tensor(), expected)
        grad = torch.randn(4, 6)
        out.backward(DTensor.from_local(grad / world, mesh, [Partial()]))  # a gradient that is still to be reduced too
        expected.backward(grad)
        torch.testing.assert_close(own.grad, alone.grad)


def draws(rank, world):
    """Copies draw the same, parts draw apart, and rows of categories are drawn whole."""
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(rank)  # the generators need not agree
    x = torch.full((world, 1000), 0.5)
    for f in (ste_ops.stochastic_round, ste_ops.bernoulli_ste, lambda x: ste_ops.subset_ste(x, 500)):
        for seed in (None, 3):  # the generators may agree as well
            if seed is not None:
                torch.manual_seed(seed)
            copies = f(distribute_tensor(x, mesh, [Replicate()])).to_local()
            assert all(torch.equal(copies, other) for other in _gathered(copies, mesh))
            d = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
            y = f(d)
            rows = y.full_tensor()
            assert all((rows[i] != rows[j]).any() for i in range(world) for j in range(i))
            assert 0.4 < rows.mean() < 0.6
            y.sum().backward()
            assert d.grad.placements == (Shard(0),)
    for placement in (Shard(0), Shard(1), Replicate()):
        logits = distribute_tensor(torch.zeros(world, 8), mesh, [placement]).requires_grad_()
        drawn = ste_ops.categorical_ste(logits)
        assert drawn.placements == (placement,)
        assert torch.equal(drawn.full_tensor().sum(1), torch.ones(world))
        (drawn * distribute_tensor(torch.randn(world, 8), mesh, [placement])).sum().backward()
        torch.testing.assert_close(logits.grad.full_tensor().sum(1), torch.zeros(world))


def _gathered(local, mesh):
    return DTensor.from_local(local.unsqueeze(0), mesh, [Shard(0)]).full_tensor()


def compiled(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    calls = [lambda x, s: ste_ops.lsq(x, s, -4, 3), lambda x, s: ste_ops.sign(ste_ops.bitnet_weight(x), _TENT) * s]
    calls += [lambda x, s: ste_ops.clip_gradient_norm(ste_ops.xnor_weight(x), 0.3) * s]
    for f in calls:
        torch._dynamo.reset()
        x = distribute_tensor(torch.randn(6, 4), mesh, [Shard(1)]).requires_grad_()
        s = distribute_tensor(torch.tensor([0.4]), mesh, [Replicate()]).requires_grad_()
        grad = distribute_tensor(torch.randn(6, 4), mesh, [Shard(1)])
        results = []
        for call in (f, torch.compile(f, backend="aot_eager", fullgraph=True)):
            y = call(x, s)
            results.append([y, *torch.autograd.grad(y, [x, s], grad)])
        for received, expected in zip(results[1], results[0], strict=True):
            assert received.placements == expected.placements
            torch.testing.assert_close(received.full_tensor(), expected.full_tensor())
    torch._dynamo.reset()
    drawn = torch.compile(ste_ops.stochastic_round, backend="aot_eager", fullgraph=True)
    copies = drawn(distribute_tensor(torch.full((100,), 0.5), mesh, [Replicate()])).to_local()
    assert all(torch.equal(copies, other) for other in _gathered(copies, mesh))


def refusals(rank, world):
    mesh, other = init_device_mesh("cpu", (world,)), init_device_mesh("cpu", (world, 1))
    x = distribute_tensor(torch.rand(4, 4), mesh, [Shard(0)])
    scale = torch.tensor([0.5])
    for name, f in REFUSED.items():
        with pytest.raises(TypeError, match=rf"{name}: .* must be a plain tensor, got a DTensor"):
            f(x)
    for name, argument, f in (
        ("lsq", "scale", lambda x, s: ste_ops.lsq(x, s, -4, 3)),
        ("fake_quantize", "scale", lambda x, s: ste_ops.fake_quantize(x, s, 0, -4, 3)),
        ("pact", "alpha", lambda x, s: ste_ops.pact(x, s, 3)),
    ):
        with pytest.raises(TypeError, match=rf"{name}: {argument} must be a DTensor as x is, got a plain tensor"):
            f(x, scale)
        with pytest.raises(TypeError, match=rf"{name}: {argument} must be a plain tensor as x is, got a DTensor"):
            f(x.to_local(), distribute_tensor(scale, mesh, [Replicate()]))
        with pytest.raises(ValueError, match=rf"{name}: {argument} must be on x's mesh"):
            f(x, distribute_tensor(scale, other, [Replicate()] * 2))
    with pytest.raises(NotImplementedError, match=r"must be plain under a transform of torch\.func, got a DTensor"):
        torch.func.grad(lambda x: ste_ops.sign(x).sum())(x)


def two_dimensions(rank, world):
    mesh = init_device_mesh("cpu", (2, world // 2))
    full = torch.randn(7, 12)
    pairs = [(Shard(0), Shard(1)), (Shard(0), Shard(0)), (Replicate(), Shard(1))]
    for placements in pairs:
        for f in chain(*OF_X.values()):
            compare(f, [full], mesh, placements)
        for f, axis in chain(*OF_PARAMETERS.values()):
            scale = torch.rand(1 if axis is None else full.shape[axis]) + 0.2
            compare(f, [full, scale], mesh, placements, [Replicate(), Shard(0)])
    copies = ste_ops.stochastic_round(distribute_tensor(torch.full((4, 50), 0.5), mesh, [Shard(0), Replicate()]))
    rows = copies.full_tensor()
    assert all(torch.equal(rows, other) for other in _gathered(rows, init_device_mesh("cpu", (world,))))


CASES = {2: [operators_of_x, dtypes, parameters, partial, draws, refusals, compiled], 4: [draws, two_dimensions]}
