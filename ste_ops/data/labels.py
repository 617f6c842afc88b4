"""Labels as class numbers, and the weights that balance them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_labels(operator: str, labels: Sequence[int] | Tensor) -> Tensor:
    """Class numbers as int64, or the operator's error."""
    tensor = torch.as_tensor(labels)
    if tensor.dim() != 1 or tensor.numel() == 0:
        raise ValueError(f"{operator}: labels must be 1-D and not empty, got shape {tuple(tensor.shape)}")
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{operator}: labels must be integers, got {tensor.dtype}")
    if int(tensor.min()) < 0:
        raise ValueError(f"{operator}: labels must be >= 0, got {int(tensor.min())}")
    return tensor.to(torch.int64)


def class_weights(labels: Sequence[int] | Tensor) -> Tensor:
    """One weight for each class that makes all classes equally likely: samples / (classes present * samples of it).

    Index it with the labels for the weight of every sample, which is what `WeightedRandomSampler` takes; as it is, it
    fits the ``weight`` of `torch.nn.CrossEntropyLoss`. The mean weight of a sample is 1.

    Args:
        labels: class numbers from 0, a sequence or a 1-D integer tensor.

    Returns:
        float64, shape [largest label + 1], on the labels' device; 0 for a class that has no sample.

    Raises:
        ValueError: labels are empty, not 1-D, negative or not integers.

    Source: the "balanced" heuristic of King and Zeng (2001), as in scikit-learn's `compute_class_weight`.

    Example:
        >>> import ste_ops
        >>> ste_ops.data.class_weights([0, 0, 0, 1])
        tensor([0.6667, 2.0000], dtype=torch.float64)
    """
    tensor = as_labels("class_weights", labels)
    counts = torch.bincount(tensor).to(torch.float64)
    weights = tensor.numel() / (torch.count_nonzero(counts) * counts)
    return torch.where(counts > 0, weights, 0.0)
