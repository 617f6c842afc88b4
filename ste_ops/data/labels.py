"""Labels as class numbers, and the weights that balance them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ste_ops._checks import is_integer

Labels = Sequence[Any] | NDArray[Any] | Tensor

# A weight for every class number: so many, or as many as there are samples, are no waste of memory.
MOST_CLASSES = 2**24


def as_labels(operator: str, labels: Labels) -> Tensor:
    """Class numbers from 0 as int64, or the operator's error."""
    values = _read(operator, labels)
    if isinstance(values, Tensor):
        return values
    along = "axis=0, " if isinstance(values[0], tuple) else ""
    raise ValueError(
        f"{operator}: labels must be class numbers from 0, got {values[0]!r} at index 0; "
        f"numpy.unique(labels, {along}return_inverse=True)[1] numbers the classes"
    )


def as_classes(operator: str, labels: Labels) -> Tensor:
    """Equal labels as equal integers, int64: their own, or where they are none, numbered as they come."""
    values = _read(operator, labels)
    if isinstance(values, Tensor):
        return values
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


def _read(operator: str, labels: Labels) -> Tensor | list[Hashable]:
    """Integers from 0 as int64; a list of what is something else and can be told apart."""
    given = _as_tensor(operator, labels)
    if isinstance(given, list):
        return given
    _check_shape(operator, tuple(given.shape))
    if given.is_floating_point() or given.is_complex():
        raise ValueError(f"{operator}: labels must be integers, got {given.dtype}")
    values = given.to(torch.int64)
    least = int(values.min())
    if least < 0 and given.dtype == torch.uint64:
        return given.tolist()
    _check_not_negative(operator, least)
    return values


def _as_tensor(operator: str, labels: Any) -> Tensor | list[Hashable]:
    if isinstance(labels, Tensor):
        return labels
    if isinstance(labels, (str, bytes, dict, set, frozenset)) or not hasattr(labels, "__iter__"):
        raise ValueError(
            f"{operator}: labels must be a sequence with the label of every sample, got {type(labels).__name__}"
        )
    if hasattr(labels, "__array__"):
        return _of_array(operator, labels)
    labels = labels if isinstance(labels, Sequence) else list(labels)
    if labels and isinstance(labels[0], tuple):
        return _of_objects(operator, list(labels))
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # no numbers, or larger ones
        return _of_objects(operator, list(labels))


def _of_array(operator: str, labels: Any) -> Tensor | list[Hashable]:
    if np.ma.isMaskedArray(labels):
        raise ValueError(
            f"{operator}: labels must be a plain array, got a masked one; compressed() leaves out the masked"
        )
    array = np.asarray(labels)
    _check_shape(operator, array.shape)
    if array.dtype.kind in "fc":
        raise ValueError(f"{operator}: labels must be integers, got {array.dtype}")
    if array.dtype.kind not in "iub":
        return _of_objects(operator, array.tolist())
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _of_objects(operator: str, labels: list[Any]) -> Tensor | list[Hashable]:
    for index, label in enumerate(labels):
        if is_integer(label):
            _check_not_negative(operator, int(label))
            continue
        if label is None or isinstance(label, (float, complex, np.inexact)) or not isinstance(label, Hashable):
            raise ValueError(
                f"{operator}: labels must be integers, strings or other objects that can be compared, got {label!r} at "
                f"index {index}"
            )
    small = all(is_integer(label) and int(label) < 2**63 for label in labels)
    return torch.tensor([int(label) for label in labels]) if small else labels


def _check_not_negative(operator: str, label: int) -> None:
    if label < 0:
        raise ValueError(
            f"{operator}: labels must be >= 0, got {label}; where that says that a sample has no class, leave it out, "
            "with torch.utils.data.Subset and the labels of those that stay"
        )


def _check_shape(operator: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 1 and shape[0] > 0:
        return
    hint = "; argmax(1) makes them of one-hot rows, flatten() of a column" if len(shape) == 2 else ""
    raise ValueError(f"{operator}: labels must be 1-D and not empty, got shape {shape}{hint}")


def class_weights(labels: Labels) -> Tensor:
    """One weight for each class that makes all classes equally likely: samples / (classes present * samples of it).

    Index it with the labels for the weight of every sample, which is what `WeightedRandomSampler` takes; as it is, it
    fits the ``weight`` of `torch.nn.CrossEntropyLoss`. The mean weight of a sample is 1.

    Args:
        labels: class numbers from 0, a sequence or a 1-D integer array or tensor. What has no numbers, as strings, is
            numbered by ``numpy.unique(labels, return_inverse=True)[1]``.

    Returns:
        float64, shape [largest label + 1], on the labels' device; 0 for a class that has no sample.

    Raises:
        ValueError: labels are empty, not 1-D, negative or not integers; or one is so large that the weights of all
            numbers up to it, more than 2^24 and more than there are samples, would fill the memory.

    Source: the "balanced" heuristic of King and Zeng (2001), as in scikit-learn's `compute_class_weight`.

    Example:
        >>> import ste_ops
        >>> ste_ops.data.class_weights([0, 0, 0, 1])
        tensor([0.6667, 2.0000], dtype=torch.float64)
    """
    tensor = as_labels("class_weights", labels)
    largest, most = int(tensor.max()), max(MOST_CLASSES, tensor.numel())
    if largest >= most:
        raise ValueError(
            f"class_weights: labels must be below {most}, as all up to the largest get a weight, got {largest}; "
            "torch.unique(labels, return_inverse=True)[1] numbers the classes from 0"
        )
    counts = torch.bincount(tensor).to(torch.float64)
    weights = tensor.numel() / (torch.count_nonzero(counts) * counts)
    return torch.where(counts > 0, weights, 0.0)
