"""What SumTree.update takes: arrays, lists, slices, nothing, and numbers that its dtype cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ste_ops
from ste_ops import reference

TAKEN = [
    (np.array([1, 2]), np.array([0.5, 0.25])),
    (np.array([2, 1])[::-1], np.array([0.25, 0.5])[::-1]),
    (np.array([1, 2], dtype=np.uint16), [0.5, 0.25]),
    (np.array([1, 2], dtype=">i4"), np.array([0.5, 0.25], dtype=">f8")),
    ([1, 2], np.array([0.5, 0.25], dtype=np.float32)),
    (range(1, 3), (0.5, 0.25)),
    (slice(1, 3), [0.5, 0.25]),
    (slice(2, 0, -1), [0.25, 0.5]),
    (slice(-7, -5), [0.5, 0.25]),
]


@pytest.mark.parametrize(("indices", "weights"), TAKEN)
def test_arrays_lists_and_slices(device: str, indices: Any, weights: Any) -> None:
    expected = [1, 0.5, 0.25, 1, 1, 1, 1, 1]
    tree, assigned = (ste_ops.SumTree(torch.ones(8, device=device)) for _ in range(2))
    tree.update(indices, weights)
    assigned[indices] = weights
    assert tree.weights().tolist() == assigned.weights().tolist() == expected
    tree.update(indices, np.float32(3.0))
    assert tree[1:3].tolist() == [3, 3]
    tree.update(np.int64(1), np.array(2))
    assert tree[:3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("indices", [[], (), np.array([]), torch.tensor([]), range(0), slice(3, 1), slice(9, 20)])
def test_an_empty_update_changes_nothing(device: str, indices: Any) -> None:
    tree = ste_ops.SumTree(torch.ones(8, device=device))
    indices = indices.to(device) if isinstance(indices, torch.Tensor) else indices
    tree.update(indices, [])
    tree.update(indices, 3.0)
    assert tree.weights().tolist() == [1] * 8
    with pytest.raises(ValueError, match=r"weights must have the shape of indices, \(0,\), got \(2,\)"):
        tree.update(indices, [1.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_above_zero_stays_so(device: str, dtype: torch.dtype) -> None:
    """1e-50 is no float32, but a priority of 1e-50 is no promise that the item is never drawn."""
    tiny = [1e-50, 5e-324, 1e-9, 0.0, 2.0]
    trees = []
    for weights in (tiny, np.array(tiny), torch.tensor(tiny, dtype=torch.float64, device=device)):
        trees.append(ste_ops.SumTree(torch.ones(5, device=device, dtype=dtype)))
        trees[-1].update(range(5), weights)
    one_by_one, expected = (
        ste_ops.SumTree(torch.ones(5, device=device, dtype=dtype)),
        reference.SumTree(torch.ones(5, dtype=dtype)),
    )
    for i, weight in enumerate(tiny):
        one_by_one[i] = weight
        expected.update(i, weight)
    for tree in [*trees, one_by_one]:
        assert torch.equal(tree.weights().cpu(), expected.weights())
    assert (expected.weights() > 0).tolist() == [True, True, True, False, True]
    assert (trees[0].probabilities() > 0).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("indices", "weights", "message"),
    [
        ([0.5], 1.0, "indices must be integers, got torch.float"),
        (np.array([True, False]), 1.0, r"indices must be integers, got torch.bool; mask.nonzero\(\).squeeze\(1\)"),
        (["a"], 1.0, "indices must be integers, got list: "),
        (np.array(["a"]), 1.0, "indices must be integers, got ndarray: "),
        (None, 1.0, "indices must be integers, got NoneType: "),
        ([[0], [1, 2]], 1.0, "indices must be integers, got list: "),
        (0, "a", "weights must be real numbers, got str: "),
        (0, None, "weights must be real numbers, got NoneType: "),
        (0, 1j, "weights must be real numbers, got torch.complex"),
        (0, torch.tensor(1j), "weights must be real numbers, got torch.complex64"),
    ],
)
def test_what_is_no_number_is_refused(indices: Any, weights: Any, message: str) -> None:
    tree = ste_ops.SumTree(torch.ones(8))
    with pytest.raises(TypeError, match="^SumTree.update: " + message):
        tree.update(indices, weights)
