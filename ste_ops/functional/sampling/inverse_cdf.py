"""Draws by the inverse of the cumulative distribution, where they are few beside the weights."""

from __future__ import annotations

# Weights for each draw: from here on passing over them costs less than a table does (docs/decisions/sampling.md).
WEIGHTS_PER_DRAW = 16


def few(n: int, num_samples: int) -> bool:
    """Whether num_samples draws from n weights go without a table. It asks nothing else, so that the draws are the same
    on every device and at any number of threads."""
    return num_samples * WEIGHTS_PER_DRAW <= n
