"""Reference of the sum tree: built anew after every update, from exact fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits
from ste_ops.reference.sampling.weights import check_row

FANOUT = 16


def magnitude(x: Fraction) -> int:
    """The e with 2**e <= x < 2**(e + 1)."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if x >= Fraction(2) ** e else e - 1


def to_nearest(x: Fraction) -> int:
    """Halves up."""
    return math.floor(x + Fraction(1, 2))


def masses(children: list[Fraction]) -> tuple[list[int], Fraction]:
    """Children as integers, rounded and at least 1 where positive, and their unit: the largest has 58 bits."""
    if not any(children):
        return [0] * len(children), Fraction(0)
    unit = Fraction(2) ** (magnitude(max(children)) - 57)
    return [max(to_nearest(child / unit), int(child > 0)) for child in children], unit


def to_53_bits(x: Fraction) -> Fraction:
    if x == 0:
        return x
    unit = Fraction(2) ** (magnitude(x) - 52)
    return to_nearest(x / unit) * unit


class SumTree:
    """`ste_ops.SumTree` on Python fractions."""

    def __init__(self, weights: Tensor) -> None:
        if weights.dim() != 1 or weights.shape[0] == 0:
            raise ValueError(f"SumTree: weights must be 1-D and not empty, got shape {tuple(weights.shape)}")
        self._weights = weights.detach().clone() if weights.is_floating_point() else weights.to(torch.float64)
        self._build()

    def _build(self) -> None:
        rows = self._weights.to(torch.float64).tolist()
        check_row([*rows, 1.0], "{}", "SumTree", ValueError)
        values = [Fraction(w) for w in rows]
        self._levels: list[list[list[int]]] = []  # from the leaves to the root: the masses of each node's children
        while not self._levels or len(values) > 1:
            values += [Fraction(0)] * (-len(values) % FANOUT)
            nodes = [masses(values[i : i + FANOUT]) for i in range(0, len(values), FANOUT)]
            self._levels.append([mass for mass, _ in nodes])
            values = [to_53_bits(sum(mass) * unit) for mass, unit in nodes]
        self._total = values[0]

    def __len__(self) -> int:
        return self._weights.shape[0]

    def weights(self) -> Tensor:
        return self._weights.clone()

    def total(self) -> Tensor:
        """The sum of the weights."""
        try:
            total = float(self._total)
        except OverflowError:
            total = float("inf")
        return torch.tensor(total, dtype=torch.float64, device=self._weights.device)

    def update(self, indices: int | Tensor, weights: float | Tensor) -> None:
        """One after the other, so the last of equal indices counts."""
        index = torch.as_tensor(indices)
        wide = torch.as_tensor(weights, dtype=torch.float64, device=self._weights.device).detach()
        values = self._narrowed(wide).expand(index.shape)
        for position, (i, w) in enumerate(zip(index.reshape(-1).tolist(), values.reshape(-1).tolist(), strict=True)):
            if not 0 <= i < len(self):
                raise IndexError(f"SumTree.update: indices must be in [0, {len(self)}), got {i} at position {position}")
            check_row([w, 1.0], str(position), "SumTree.update", ValueError)
        for i, w in zip(index.reshape(-1).tolist(), values.reshape(-1), strict=True):
            self._weights[i] = w
        self._build()

    def _narrowed(self, wide: Tensor) -> Tensor:
        """In the tree's dtype, where what is above zero stays so."""
        limits = torch.finfo(self._weights.dtype)
        least = limits.smallest_normal * limits.eps
        return torch.where((wide > 0) & (wide < least), least, wide).to(self._weights.dtype)

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draws under a seed from `generator`."""
        return self.sample_at(draw_seed("SumTree.sample", self._weights.device, generator), 0, num_samples)

    def sample_at(self, seed: int | Tensor, start: int, num_samples: int) -> Tensor:
        """From the root down, 64 random bits a level; two levels share the 128 of a Philox block."""
        if self._total == 0:
            raise ValueError("SumTree.sample: weights must have a positive sum, got only zeros")
        draws = []
        for index in range(start, start + num_samples):
            node = 0
            for depth, level in enumerate(reversed(self._levels)):
                bits = random_bits(int(seed) & MASK64, depth // 2, index)[depth % 2]
                sums = list(itertools.accumulate(level[node]))
                target = bits * sums[-1] >> 64
                node = node * FANOUT + next(j for j, up_to in enumerate(sums) if target < up_to)
            draws.append(node)
        return torch.tensor(draws, dtype=torch.int64, device=self._weights.device)

    def probabilities(self) -> Tensor:
        """The product of a weight's shares on the way down."""
        shares = [Fraction(1)]
        for level in reversed(self._levels):
            shares = [share * Fraction(m, max(sum(mass), 1)) for share, mass in zip(shares, level) for m in mass]  # noqa: B905
        of_weights = [float(share) for share in shares[: len(self)]]
        return torch.tensor(of_weights, dtype=torch.float64, device=self._weights.device)
