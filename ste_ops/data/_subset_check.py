"""Weights or labels of a whole dataset, beside a part of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from torch.utils.data import Subset

from ste_ops._torch import asking_dataset

# Whose frames lie between a sampler and the loader that draws from it. A sampler of another's may give the indices
# another meaning.
_KNOWN = frozenset({"ste_ops", "torch", "torchdata", "accelerate", "lightning", "pytorch_lightning"})


def check_subset(operator: str, argument: str, given: int, last: Callable[[], int]) -> None:
    """Refuses, where a loader over a `Subset` asks for the first index, what has an index beyond it.

    Args:
        given: the number of weights or labels.
        last: the last index that may be drawn.
    """
    subset = _subset_of_loader()
    if subset is None or given <= len(subset.indices) or last() < len(subset.indices):
        return
    raise IndexError(
        f"{operator}: {argument} must be as many as the Subset has samples, {len(subset.indices)}, got {given}; "
        f"of those of the whole dataset take {argument}[subset.indices]"
    )


def _subset_of_loader() -> Subset | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _KNOWN:
        dataset = asking_dataset(frame)
        if dataset is not None:
            return dataset if type(dataset) is Subset else None
        frame = frame.f_back
    return None
