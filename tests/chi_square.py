"""Pearson's test of drawn counts, at a level that a whole run of the suite shares."""

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
