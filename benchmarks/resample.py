"""Resampling of particles against torch.cumsum and torch.searchsorted, and what float32 sums do to ten million."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import ste_ops
from benchmarks.measure import Count, Row


def systematic(weights: Tensor, num_samples: int) -> Tensor:
    points = (torch.arange(num_samples, device=weights.device) + torch.rand((), device=weights.device)) / num_samples
    return _at(weights, points)


def stratified(weights: Tensor, num_samples: int) -> Tensor:
    device = weights.device
    points = (torch.arange(num_samples, device=device) + torch.rand(num_samples, device=device)) / num_samples
    return _at(weights, points)


def residual(weights: Tensor, num_samples: int) -> Tensor:
    expected = num_samples * weights / weights.sum()
    copies = expected.floor()
    certain = torch.repeat_interleave(copies.long())
    points = torch.rand(num_samples - len(certain), device=weights.device)
    return torch.cat([certain, _at(expected - copies, points)])


def _at(weights: Tensor, points: Tensor) -> Tensor:
    up_to = weights.cumsum(0)
    return torch.searchsorted(up_to / up_to[-1], points, right=True).clamp(max=len(weights) - 1)


def off(ancestors: Tensor, weights: Tensor) -> float:
    """The most by which a count of copies is off N p."""
    expected = len(ancestors) * weights.double() / weights.double().sum()
    return (torch.bincount(ancestors, minlength=len(weights)) - expected).abs().max().item()


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    n = 10**4 if quick else 10**6
    weights = torch.rand(n, device=device)
    for name, in_torch in (("systematic", systematic), ("stratified", stratified), ("residual", residual)):
        ours = getattr(ste_ops, f"{name}_resample")
        yield Row(
            f"{name}_resample, {n} particles, float32",
            "torch.cumsum + torch.searchsorted",
            lambda ours=ours: ours(weights, n),  # type: ignore[misc]
            lambda in_torch=in_torch: in_torch(weights, n),  # type: ignore[misc]
            1,
            at_most=False,
            rounds=5,
        )
    n = 10**5 if quick else 10**7
    many = torch.rand(n, device=device)
    yield Count(
        f"systematic_resample, {n} particles, float32: most copies more or fewer than N p",
        f"torch.cumsum + torch.searchsorted: {off(systematic(many, n), many):.3g}",
        off(ste_ops.systematic_resample(many, n), many),
        1,
    )
