"""Weights that change: SumTree against torchrl's segment tree and a NumPy one, an update and draws as in prioritized
replay."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import cpp_extension

import ste_ops
from benchmarks.measure import Row


class NumPySumTree:
    """The binary tree in an array that DQN codes have, a whole batch going up or down a level at a time."""

    def __init__(self, weights: np.ndarray) -> None:
        self.random = np.random.default_rng(0)
        self.capacity = 1 << (len(weights) - 1).bit_length()
        self.node = np.zeros(2 * self.capacity, np.float32)
        self.node[self.capacity : self.capacity + len(weights)] = weights
        for level in range(self.capacity.bit_length() - 2, -1, -1):
            self._sum(np.arange(1 << level, 2 << level))

    def _sum(self, parents: np.ndarray) -> None:
        self.node[parents] = self.node[2 * parents] + self.node[2 * parents + 1]

    def update(self, indices: np.ndarray, weights: np.ndarray) -> None:
        place = indices + self.capacity
        self.node[place] = weights
        while place[0] > 1:
            place = place // 2
            self._sum(place)

    def sample(self, num_samples: int) -> np.ndarray:
        target = self.random.random(num_samples, np.float32) * self.node[1]
        place = np.ones(num_samples, np.int64)
        while place[0] < self.capacity:
            place *= 2
            left = self.node[place]
            right = target >= left
            target = np.where(right, target - left, target)
            place += right
        return place - self.capacity


def torchrl_tree() -> Any:
    """torchrl's SumSegmentTree for float32, or None where torchrl is not installed. Where its extension does not load
    with this torch, its own header is compiled anew, with torchrl's flags."""
    found = importlib.util.find_spec("torchrl")
    if found is None or found.origin is None:
        return None
    try:
        from torchrl._torchrl import SumSegmentTreeFp32  # type: ignore[import-not-found]

        return SumSegmentTreeFp32
    except Exception as error:  # a missing dependency of torchrl, or an undefined symbol of its extension
        print(f"torchrl's extension does not load ({str(error)[:120]}): compiling its csrc/segment_tree.h")
    source = """
        #include "segment_tree.h"
        PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { torchrl::DefineSumSegmentTree<float>("Fp32", m); }
    """
    include = [str(Path(found.origin).parent / "csrc")]
    build = cpp_extension.load_inline("torchrl_tree", source, extra_include_paths=include, extra_cflags=["-O3"])
    return next(getattr(build, name) for name in dir(build) if name.startswith("SumSegmentTree"))


def rows(device: str, quick: bool) -> Iterator[Row]:
    n, batch = 10**4 if quick else 10**6, 256
    weights = torch.rand(n)
    index, changed = torch.randint(0, n, (batch,)), torch.rand(batch)
    tree = ste_ops.SumTree(weights.to(device))
    ours_index, ours_changed = index.to(device), changed.to(device)
    numpy_tree = NumPySumTree(weights.numpy())
    others: list[tuple[str, Callable[[], object], Callable[[], object], Callable[[], object]]] = [
        (
            "a NumPy sum tree",
            lambda: numpy_tree.update(index.numpy(), changed.numpy()),
            lambda: torch.from_numpy(numpy_tree.sample(batch)),
            lambda: numpy_tree.sample(n),
        )
    ]
    torchrl = torchrl_tree()
    if torchrl is not None:
        peer = torchrl(n)
        peer[torch.arange(n)] = weights

        def draw(count: int) -> Tensor:
            return peer.scan_lower_bound(torch.rand(count) * peer.query(0, n))

        others.append(
            ("torchrl's SumSegmentTree", lambda: peer.update(index, changed), lambda: draw(batch), lambda: draw(n))
        )
    for name, update, draw_batch, draw_many in others:
        work = f"in a tree of {n} float32"
        yield Row(
            f"{batch} updates {work}", name, lambda: tree.update(ours_index, ours_changed), update, 1, False, rounds=51
        )
        yield Row(f"{batch} draws {work}", name, lambda: tree.sample(batch), draw_batch, 1, False, rounds=51)
        yield Row(f"{n} draws {work}", name, lambda: tree.sample(n), draw_many, 1, False, rounds=5)
