"""Pearson's test and the G-test of drawn counts, at a level that a whole run of the suite shares."""

from __future__ import annotations

import torch
from torch import Tensor

# The chance that some test of the suite fails on correct draws, and an upper bound of how many there are. The seeds are
# fixed, so a failure is no bad day: it says that the draws changed.
FAMILY_WISE_ERROR = 1e-6
TESTS = 100


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """The chance of counts at least this far from probabilities; categories of small expectation are pooled."""
    probabilities = probabilities.to(torch.float64)
    expected = probabilities / probabilities.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0, "a category of probability 0 was drawn"
    small = expected < 10
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    counts = torch.cat([counts[~small], counts[small].sum()[None]]).to(torch.float64)
    expected, counts = expected[expected > 0], counts[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    half_freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half_freedom, statistic / 2).item()


def fits(draws: Tensor, probabilities: Tensor) -> bool:
    counts = torch.bincount(draws.reshape(-1), minlength=len(probabilities))
    return p_value(counts, probabilities) > FAMILY_WISE_ERROR / TESTS


def g_p_value(counts: Tensor, probabilities: Tensor, bins: int = 1000) -> float:
    """The G-test (likelihood ratio) of counts, with Williams' correction (Biometrika 63, 1976).

    Categories are pooled in the order of their indices, so that bins of about equal expectation, at least 10, are left;
    a category that expects more than that has a bin of its own.
    """
    probabilities = probabilities.to(torch.float64)
    expected = probabilities / probabilities.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0, "a category of probability 0 was drawn"
    width = max(10.0, counts.sum().item() / bins)
    own = expected >= width
    place = torch.where(own, 0, expected).cumsum(0).div(width).long() + 1
    place[own] = place.max() + 1 + torch.arange(int(own.sum()))
    pooled = torch.zeros(2, int(place.max()) + 1, dtype=torch.float64)
    pooled.index_add_(1, place, torch.stack([counts.to(torch.float64), expected]))
    # What is left over joins the first bin, which is empty so far.
    small = pooled[1] < 10
    pooled = torch.cat([pooled[:, ~small], pooled[:, small].sum(1, keepdim=True)], 1)
    counts, expected = pooled[:, pooled[1] > 0]
    freedom = len(expected) - 1
    statistic = 2 * torch.special.xlogy(counts, counts / expected).sum()
    correction = 1 + ((counts.sum() / expected.clamp(min=10)).sum() - 1) / (6 * counts.sum() * max(freedom, 1))
    return torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / correction / 2).item()


def g_fits(draws: Tensor, probabilities: Tensor) -> bool:
    counts = torch.bincount(draws.reshape(-1), minlength=len(probabilities))
    return g_p_value(counts, probabilities) > FAMILY_WISE_ERROR / TESTS
