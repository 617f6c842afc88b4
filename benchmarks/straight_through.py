"""Every straight-through operator, forward and backward: against two copies, plain torch, torch.compile and peers.

The plain torch is `ste_ops.reference`, an autograd.Function over torch operations as one writes it by hand.
`torch.compile` gets the same arithmetic, a forward graph and a backward graph, in an autograd.Function too.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ste_ops
from benchmarks.measure import Count, Row
from ste_ops import reference, surrogate

Run = Callable[..., Any]

QUANT_MIN, QUANT_MAX = -8, 7
SCALE = 0.2


@dataclass(frozen=True)
class Case:
    """An operator. `ours`, `plain` take x and what `extra` makes; `forward`, `backward` are the same arithmetic."""

    name: str
    ours: Run
    plain: Run
    forward: Run
    backward: Run
    bound: float
    extra: Callable[[str], list[Tensor]] = field(default=lambda device: [])


def _curve(s: surrogate.Surrogate) -> Case:
    return Case(
        f"sign, {s!r}",
        lambda x: ste_ops.sign(x, s),
        lambda x: reference.sign(x, s),
        lambda x: torch.where(x >= 0, 1.0, -1.0),
        lambda x, grad: grad * s.derivative(x),
        2.0,
    )


def _mask(name: str, s: surrogate.Surrogate, forward: Run, **options: float) -> Case:
    return Case(
        f"{name}, {s!r}",
        lambda x: getattr(ste_ops, name)(x, surrogate=s, **options),
        lambda x: getattr(reference, name)(x, surrogate=s, **options),
        forward,
        lambda x, grad: grad * s.derivative(x),
        1.25,
    )


def _quantized(x: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
    v = x * (1 / scale)
    return v, torch.round(v)


def _lsq_backward(x: Tensor, grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    v, q = _quantized(x, scale)
    low, high = v <= QUANT_MIN, v >= QUANT_MAX
    slope = torch.where(low, QUANT_MIN, torch.where(high, QUANT_MAX, q - v))
    return torch.where(low | high, 0.0, grad), (grad * slope).sum() / math.sqrt(x.numel() * QUANT_MAX)


def _fake_quantize_backward(x: Tensor, grad: Tensor) -> Tensor:
    _, q = _quantized(x, SCALE)
    return torch.where((q >= QUANT_MIN) & (q <= QUANT_MAX), grad, 0.0)


def _rowwise_mean(w: Tensor) -> Tensor:
    return w.abs().mean(1, keepdim=True)


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def _xnor_backward(w: Tensor, grad: Tensor) -> Tensor:
    along = (grad * _sign(w)).mean(1, keepdim=True)
    return along * w.sign() + torch.where(w.abs() > 1, 0.0, grad * _rowwise_mean(w))


def _dorefa_weight(w: Tensor) -> Tensor:
    t = torch.tanh(w)
    return torch.round((t / t.abs().max() * 0.5 + 0.5) * 3) / 3 * 2 - 1


def _dorefa_backward(w: Tensor, grad: Tensor) -> Tensor:
    t = torch.tanh(w)
    largest = t.abs().max()
    at = t.abs() == largest
    along = (grad * t).sum() / (largest * largest * at.sum())
    return (grad / largest - torch.where(at, t.sign() * along, 0.0)) * (1 - t * t)


def _bitnet_activation(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return torch.round(x / step).clamp(-128, 127) * step


def _sr_ste_keep(w: Tensor) -> Tensor:
    groups = w.abs().view(-1, 4)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(2, -1).indices, True).view(w.shape)


def _passes(x: Tensor, grad: Tensor) -> Tensor:
    return grad


CURVES = [
    surrogate.ApproxSign(),
    surrogate.Swish(),
    surrogate.Tanh(),
    surrogate.ReSTE(),
    surrogate.Sigmoid(),
    surrogate.ATan(),
    surrogate.FastSigmoid(),
    surrogate.SoftSign(),
    surrogate.PiecewiseQuadratic(),
    surrogate.PiecewiseExp(),
    surrogate.Erf(),
]

CASES = [
    _mask("heaviside", surrogate.Clip(), lambda x: (x > 0).float()),
    _mask("sign", surrogate.Clip(), _sign),
    _mask("sign", surrogate.Rect(), _sign),
    _mask("ternary", surrogate.Clip(), lambda x: torch.where(x > 0.05, 1.0, torch.where(x < -0.05, -1.0, 0.0))),
    *(_curve(s) for s in CURVES),
    Case("round", ste_ops.round, reference.round, torch.round, _passes, 1.25),
    Case(
        "clamp",
        lambda x: ste_ops.clamp(x, -1, 1),
        lambda x: reference.clamp(x, -1, 1),
        lambda x: x.clamp(-1, 1),
        _passes,
        1.25,
    ),
    Case(
        "fake_quantize, one scale",
        lambda x: ste_ops.fake_quantize(x, SCALE, 0, QUANT_MIN, QUANT_MAX),
        lambda x: reference.fake_quantize(x, SCALE, 0, QUANT_MIN, QUANT_MAX),
        lambda x: _quantized(x, SCALE)[1].clamp(QUANT_MIN, QUANT_MAX) * SCALE,
        _fake_quantize_backward,
        1.25,
    ),
    Case(
        "fake_quantize, a scale a channel",
        lambda x, s: ste_ops.fake_quantize(x, s, 0, QUANT_MIN, QUANT_MAX, axis=0),
        lambda x, s: reference.fake_quantize(x, s, 0, QUANT_MIN, QUANT_MAX, axis=0),
        lambda x, s: _quantized(x, s[:, None])[1].clamp(QUANT_MIN, QUANT_MAX) * s[:, None],
        lambda x, grad, s: torch.where(
            (_quantized(x, s[:, None])[1] - (QUANT_MIN + QUANT_MAX) / 2).abs() <= (QUANT_MAX - QUANT_MIN) / 2, grad, 0.0
        ),
        1.25,
        lambda device: [torch.full((1024,), SCALE, device=device)],
    ),
    Case(
        "lsq",
        lambda x, s: ste_ops.lsq(x, s, QUANT_MIN, QUANT_MAX),
        lambda x, s: reference.lsq(x, s, QUANT_MIN, QUANT_MAX),
        lambda x, s: _quantized(x, s)[1].clamp(QUANT_MIN, QUANT_MAX) * s,
        _lsq_backward,
        1.5,
        lambda device: [torch.tensor(SCALE, device=device, requires_grad=True)],
    ),
    Case(
        "pact",
        lambda x, a: ste_ops.pact(x, a, 4),
        lambda x, a: reference.pact(x, a, 4),
        lambda x, a: torch.round(x.clamp(min=0).minimum(a) * (15 / a)) * (a / 15),
        lambda x, grad, a: (torch.where((x >= 0) & (x < a), grad, 0.0), torch.where(x >= a, grad, 0.0).sum()),
        1.5,
        lambda device: [torch.tensor(1.5, device=device, requires_grad=True)],
    ),
    Case(
        "dorefa_activation",
        lambda x: ste_ops.dorefa_activation(x, 2),
        lambda x: reference.dorefa_activation(x, 2),
        lambda x: torch.round(x.clamp(0, 1) * 3) / 3,
        lambda x, grad: torch.where((x >= 0) & (x <= 1), grad, 0.0),
        1.25,
    ),
    # One read more of x, for the statistic.
    Case(
        "dorefa_weight",
        lambda x: ste_ops.dorefa_weight(x, 2),
        lambda x: reference.dorefa_weight(x, 2),
        _dorefa_weight,
        _dorefa_backward,
        2.5,
    ),
    Case(
        "xnor_weight",
        ste_ops.xnor_weight,
        reference.xnor_weight,
        lambda w: _sign(w) * _rowwise_mean(w),
        _xnor_backward,
        2.5,
    ),
    Case(
        "magnitude_aware_sign",
        ste_ops.magnitude_aware_sign,
        reference.magnitude_aware_sign,
        lambda w: _sign(w) * _rowwise_mean(w),
        lambda w, grad: torch.where(w.abs() > 1, 0.0, grad * _rowwise_mean(w)),
        2.0,
    ),
    Case(
        "bitnet_weight",
        ste_ops.bitnet_weight,
        reference.bitnet_weight,
        lambda w: torch.round(w / w.abs().mean().clamp(min=1e-5)).clamp(-1, 1) * w.abs().mean().clamp(min=1e-5),
        _passes,
        2.0,
    ),
    Case("bitnet_activation", ste_ops.bitnet_activation, reference.bitnet_activation, _bitnet_activation, _passes, 2.0),
    Case(
        "sr_ste, 2:4",
        lambda w: ste_ops.sr_ste(w, 2, 4),
        lambda w: reference.sr_ste(w, 2, 4),
        lambda w: torch.where(_sr_ste_keep(w), w, 0.0),
        lambda w, grad: torch.where(_sr_ste_keep(w), grad, grad + 2e-4 * w),
        2.0,
    ),
]


def _peers(device: str) -> Iterator[tuple[str, Run, str, Run]]:
    """Our operator and a peer's own implementation of it, where the peer is installed."""
    s = torch.tensor([SCALE], device=device, requires_grad=True)
    z = torch.zeros(1, device=device)
    yield (
        "fake_quantize, one scale",
        lambda x: ste_ops.fake_quantize(x, SCALE, 0, QUANT_MIN, QUANT_MAX),
        "torch.fake_quantize_per_tensor_affine",
        lambda x: torch.fake_quantize_per_tensor_affine(x, SCALE, 0, QUANT_MIN, QUANT_MAX),
    )
    factor = 1 / math.sqrt(2**22 * QUANT_MAX)
    yield (
        "lsq",
        lambda x: ste_ops.lsq(x, s, QUANT_MIN, QUANT_MAX),
        "torch._fake_quantize_learnable_per_tensor_affine",
        lambda x: torch._fake_quantize_learnable_per_tensor_affine(x, s, z, QUANT_MIN, QUANT_MAX, factor),
    )
    snntorch = _module("snntorch.surrogate")
    if snntorch:
        atan, fast = snntorch.atan(alpha=2.0), snntorch.fast_sigmoid(slope=25)
        yield "heaviside, ATan(2)", _heaviside(surrogate.ATan(2.0)), "snntorch.surrogate.atan", atan
        yield "heaviside, FastSigmoid(25)", _heaviside(surrogate.FastSigmoid(25.0)), "snntorch fast_sigmoid", fast
    spikingjelly = _module("spikingjelly.activation_based.surrogate")
    if spikingjelly:
        for name, ours in {
            "Sigmoid": surrogate.Sigmoid(4.0),
            "ATan": surrogate.ATan(2.0),
            "PiecewiseExp": surrogate.PiecewiseExp(1.0),
        }.items():
            theirs = getattr(spikingjelly, name)(alpha=ours.alpha, spiking=True)
            yield f"heaviside, {ours!r}", _heaviside(ours), f"spikingjelly {name}", theirs
    brevitas = _module("brevitas.ops.autograd_ste_ops")
    if brevitas:
        yield "round", ste_ops.round, "brevitas RoundSteFn", brevitas.RoundSteFn.apply
        identity = surrogate.Identity()
        yield "sign, Identity()", lambda x: ste_ops.sign(x, identity), "brevitas sign", brevitas.BinarySignSteFn.apply


def _heaviside(s: surrogate.Surrogate) -> Run:
    return lambda x: ste_ops.heaviside(x, s)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception:  # not installed, or broken by this torch: either way there is nothing to measure
        return None


def _step(function: Run, x: Tensor, grad: Tensor, extra: list[Tensor]) -> Callable[[], Any]:
    inputs = [x, *(e for e in extra if e.requires_grad)]
    return lambda: torch.autograd.grad(function(x, *extra), inputs, grad)


def _compiled(case: Case) -> Run:
    forward, backward = torch.compile(case.forward, dynamic=False), torch.compile(case.backward, dynamic=False)

    class Compiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *extra: Tensor) -> Tensor:
            ctx.save_for_backward(x, *extra)
            return forward(x, *extra)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, *extra = ctx.saved_tensors
            gradients = backward(x, grad, *extra)
            learned = sum(e.requires_grad for e in extra)
            return gradients if learned else (gradients, *(None for _ in extra))

    return Compiled.apply


def saved_storages(function: Callable[[], Any]) -> dict[int, int]:
    """Where each storage that autograd keeps lies, and its bytes."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return storages


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    shape = (1024, 256) if quick else (1024, 4096)
    x, grad = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)
    detached = x.detach()
    rounds = 3 if quick else 41
    for case in CASES:
        extra = case.extra(device)
        ours = _step(case.ours, x, grad, extra)
        saved = sum(saved_storages(lambda case=case, extra=extra: case.ours(x, *extra)).values()) / x.nbytes
        label = f"{case.name} (saves {saved:.3g} of x)"
        copies = lambda: (detached.clone(), grad.clone())  # noqa: E731
        yield Row(label, "two copies", ours, copies, case.bound, at_most=True, rounds=rounds)
        plain = _step(case.plain, x, grad, extra)
        yield Row(label, "plain torch", ours, plain, 1.0, at_most=False, rounds=max(3, rounds // 4))
        yield Row(
            label, "torch.compile", ours, _step(_compiled(case), x, grad, extra), 1.0, at_most=False, rounds=rounds
        )
        torch._dynamo.reset()
    for name, ours, peer, theirs in _peers(device):
        step = _step(ours, x, grad, [])
        yield Row(name, peer, step, _step(theirs, x, grad, []), 1.0, at_most=False, rounds=max(3, rounds // 4))
