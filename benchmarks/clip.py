"""Gradient clipping against one read of the bytes, torch.nn.utils, and what users write for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as torch_clip_grad_value_
from torch.nn.utils import get_total_norm as torch_get_total_norm

import ste_ops
from benchmarks import dtensors
from benchmarks.measure import Count, Row

Shape = tuple[int, ...]
NEVER = 1e9


def resnet_50() -> Iterator[Shape]:
    """The shapes of a ResNet-50's parameters, as torchvision builds it: 161 tensors, 25.6 million elements."""

    def convolution(out: int, into: int, size: int) -> Iterator[Shape]:
        yield from ((out, into, size, size), (out,), (out,))  # weight, and the normalization's two

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from ((1000, 2048), (1000,))


def transformer_12(width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Iterator[Shape]:
    """The shapes of a 12-layer transformer's parameters, those of GPT-2: 148 tensors, 124 million elements."""
    yield from ((vocabulary, width), (context, width))
    for _ in range(12):
        yield from ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
        yield from ((width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,))
    yield from ((width,), (width,))


def _parameters(shapes: Iterable[Shape], device: str) -> list[Tensor]:
    parameters = [torch.empty(shape, device=device, requires_grad=True) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, device=device)
    return parameters


def _norm_rows(name: str, parameters: list[Tensor], bounds: tuple[float, float], rounds: int) -> Iterator[Row]:
    yield Row(
        f"clip_grad_norm_, {name}, nothing to clip",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_norm_(parameters, NEVER),
        lambda: torch_clip_grad_norm_(parameters, NEVER),
        bounds[0],
        at_most=False,
        rounds=rounds,
    )
    yield Row(
        f"clip_grad_norm_, {name}, clipping",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_norm_(parameters, _shrinking(parameters)),
        lambda: torch_clip_grad_norm_(parameters, _shrinking(parameters)),
        bounds[1],
        at_most=False,
        rounds=rounds,
    )


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    for count, side in ((8, 64), (4, 256)) if quick else ((8, 1024), (4, 4096)):
        large = _parameters([(side, side)] * count, device)
        # One sum() over the same bytes: the least that a norm can cost.
        flat = torch.randn(count * side * side, device=device)
        rounds = 151 if count == 8 else 51
        yield Row(
            f"clip_grad_norm_, {count} x {side}^2, nothing to clip",
            "one sum() over the bytes",
            lambda large=large: ste_ops.clip_grad_norm_(large, NEVER),  # type: ignore[misc]
            flat.sum,
            1.1,
            at_most=True,
            rounds=rounds,
        )
        yield from _norm_rows(f"{count} x {side}^2", large, (2.2, 1.0), rounds)
        if count == 8:
            yield from _value_rows(f"{count} x {side}^2", large)
        del flat
    small = _parameters([(256,)] * 1000, device)
    yield Row(
        "clip_grad_norm_, 1000 x 256",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_norm_(small, NEVER),
        lambda: torch_clip_grad_norm_(small, NEVER),
        12,
        at_most=False,
    )
    yield from _norm_rows("a ResNet-50", _parameters(resnet_50(), device), (2.2, 1.0), 31)
    shapes = transformer_12(64, 500, 64) if quick else transformer_12()
    yield from _norm_rows("a 12-layer transformer", _parameters(shapes, device), (2.2, 1.0), 15)
    yield from _unit_rows(device)
    yield from accuracy(device, (16, 18) if quick else (24, 26))
    if device == "cpu" and torch.distributed.is_available():
        yield from dtensors.rows(quick)  # last: from here on DTensor is imported


def _value_rows(name: str, parameters: list[Tensor]) -> Iterator[Row]:
    yield Row(
        f"clip_grad_value_, {name}, nothing to clip",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_value_(parameters, NEVER),
        lambda: torch_clip_grad_value_(parameters, NEVER),
        1.0,
        at_most=False,
    )


def _unit_rows(device: str) -> Iterator[Row]:
    """Adaptive and per-sample clipping against the operations that timm and Opacus are made of."""
    model = _parameters(resnet_50(), device)
    for p in model:
        torch.nn.init.normal_(p)

    def norms(t: Tensor) -> Tensor:
        return t.norm() if t.dim() <= 1 else t.norm(2.0, dim=tuple(range(1, t.dim())), keepdim=True)

    @torch.no_grad()
    def adaptive(factor: float) -> None:
        for p in model:
            assert p.grad is not None
            bound = norms(p).clamp_(min=1e-3).mul_(factor)
            norm = norms(p.grad)
            p.grad.copy_(torch.where(norm < bound, p.grad, p.grad * (bound / norm.clamp(min=1e-6))))

    work = "clip_grad_agc_, a ResNet-50, nothing to clip"
    yield Row(
        work,
        "timm's operations",
        lambda: ste_ops.clip_grad_agc_(model, NEVER),
        lambda: adaptive(NEVER),
        2.0,
        False,
        rounds=15,
    )
    samples = [torch.randn(64, *shape, device=device) for shape in ((256, 784), (256,), (10, 256), (10,))]

    def per_sample() -> list[Tensor]:
        each = [g.view(len(g), -1).norm(2, dim=-1) for g in samples]
        factor = (1.0 / (torch.stack(each, dim=1).norm(2, dim=1) + 1e-6)).clamp(max=1.0)
        return [torch.einsum("i,i...", factor, g) for g in samples]

    work = "clip_per_sample_, 64 samples of a 784-256-10 net"
    yield Row(
        work, "Opacus' operations", lambda: ste_ops.clip_per_sample_(samples, 1.0), per_sample, 1.0, False, rounds=31
    )


def accuracy(device: str, exponents: tuple[int, ...]) -> Iterator[Count]:
    """The relative error of a norm whose exact value is known, beside torch's."""
    for exponent in exponents:
        x = torch.full((1 << exponent,), 0.1, device=device)
        exact = math.sqrt(1 << exponent) * float(x[0])
        ours, theirs = (abs(norm(x).item() / exact - 1) for norm in (ste_ops.get_total_norm, _torch_norm))
        yield Count(f"get_total_norm, 2^{exponent} elements, relative error", f"torch's {theirs:.1e}", ours, 1e-7)


def _torch_norm(x: Tensor) -> Tensor:
    return torch_get_total_norm([x])


_bounds: dict[int, float] = {}


def _shrinking(parameters: list[Tensor]) -> float:
    """A smaller bound at every call, so that every call clips; it never reaches a denormal in a run."""
    key = id(parameters)
    _bounds[key] = _bounds.get(key, 1e-3) * 0.999
    return max(_bounds[key], 1e-20)
