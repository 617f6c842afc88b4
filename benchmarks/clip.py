"""Gradient clipping against one read of the bytes and against torch.nn.utils."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_

import ste_ops
from benchmarks.measure import Row


def _parameters(count: int, shape: tuple[int, ...], device: str) -> list[Tensor]:
    parameters = [torch.zeros(shape, device=device, requires_grad=True) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn(shape, device=device)
    return parameters


def rows(device: str, quick: bool) -> Iterator[Row]:
    side = 256 if quick else 1024
    large = _parameters(8, (side, side), device)
    # One sum() over the same bytes: the least that a norm can cost.
    flat = torch.randn(8 * side * side, device=device)
    name = f"clip_grad_norm_, 8 x {side}^2"
    never, always = 1e9, 1e-3
    yield Row(
        f"{name}, nothing to clip",
        "one sum() over the bytes",
        lambda: ste_ops.clip_grad_norm_(large, never),
        flat.sum,
        1.1,
        at_most=True,
    )
    yield Row(
        f"{name}, nothing to clip",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_norm_(large, never),
        lambda: torch_clip_grad_norm_(large, never),
        2.2,
        at_most=False,
    )
    yield Row(
        f"{name}, clipping",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_norm_(large, _shrinking(large, always)),
        lambda: torch_clip_grad_norm_(large, _shrinking(large, always)),
        1.0,
        at_most=False,
    )
    small = _parameters(1000, (256,), device)
    yield Row(
        "clip_grad_norm_, 1000 x 256",
        "torch.nn.utils",
        lambda: ste_ops.clip_grad_norm_(small, never),
        lambda: torch_clip_grad_norm_(small, never),
        12,
        at_most=False,
    )


_bounds: dict[int, float] = {}


def _shrinking(parameters: list[Tensor], start: float) -> float:
    """A smaller bound at every call, so that every call clips; it never reaches a denormal in a run."""
    key = id(parameters)
    _bounds[key] = _bounds.get(key, start) * 0.999
    return max(_bounds[key], 1e-20)
