"""Reference of the alias table: Python integers and one-by-one loops, equal to the native draws seed for seed."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits
from ste_ops.reference.sampling.weights import checked_rows, masses


def padded_masses(weights: list[float]) -> tuple[list[int], int]:
    """Masses that sum to n times a whole number, in proportion to `masses`, and that number: a column's capacity."""
    mass = masses(weights)
    n, total = len(mass), sum(mass)
    capacity = -(-total // n)
    padding = -(-((capacity * n - total) << 64) // total)
    padded, before, prefix = [], 0, 0
    for m in mass:
        prefix += m
        after = prefix + (prefix * padding >> 64)
        padded.append(after - before)
        before = after
    return padded, capacity


def alias_columns(mass: list[int], capacity: int) -> tuple[list[int], list[int]]:
    """Threshold and alias of every column, by the sweep of Hübschle-Schneider and Sanders (ESA 2019).

    Light items take what their column lacks from the current heavy item, both in index order; a heavy item that has
    become light takes what it lacks from the next one. A full column stands as threshold 0, alias itself.
    """
    n = len(mass)
    thresholds, aliases = [0] * n, list(range(n))
    light = iter([i for i in range(n) if mass[i] < capacity])
    heavy = iter([i for i in range(n) if mass[i] > capacity])
    filler = next(heavy, None)
    left = mass[filler] if filler is not None else 0
    while filler is not None:
        if left > capacity:
            item = next(light)
            thresholds[item], aliases[item] = mass[item], filler
            left -= capacity - mass[item]
        else:
            drained, filler = filler, next(heavy, None)
            if left < capacity:
                assert filler is not None
                thresholds[drained], aliases[drained] = left, filler
            left += mass[filler] - capacity if filler is not None else 0
    return thresholds, aliases


class AliasTable:
    """`ste_ops.AliasTable` on Python lists."""

    def __init__(self, weights: Tensor, *, _operator: str = "AliasTable", _error: type[Exception] = ValueError) -> None:
        self.shape, self.device = weights.shape, weights.device
        self._rows: list[tuple[list[int], list[int], list[int], int]] = []
        for row in checked_rows(weights, _operator, _error):
            mass, capacity = padded_masses(row)
            self._rows.append((mass, *alias_columns(mass, capacity), capacity))

    def to(self, device: torch.device | str) -> AliasTable:
        moved = object.__new__(AliasTable)
        moved.shape, moved.device, moved._rows = self.shape, torch.device(device), self._rows
        return moved

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draws under a seed from `generator`."""
        return self.sample_at(draw_seed("AliasTable.sample", self.device, generator), 0, num_samples)

    def sample_at(self, seed: int | Tensor, start: int, num_samples: int, stride: int = 1) -> Tensor:
        """Draws start, start + stride, ...: 64 bits choose a column, 64 others a unit of its capacity."""
        draws = []
        for row, (_, thresholds, aliases, capacity) in enumerate(self._rows):
            for index in range(start, start + num_samples * stride, stride):
                low, high = random_bits(int(seed) & MASK64, row, index)
                column = low * self.shape[-1] >> 64
                own = high * capacity >> 64 < thresholds[column]
                draws.append(column if own else aliases[column])
        return torch.tensor(draws, dtype=torch.int64, device=self.device).reshape(*self.shape[:-1], num_samples)

    def mass(self) -> Tensor:
        """The exact integer mass of every category."""
        return torch.tensor([row[0] for row in self._rows], device=self.device).reshape(self.shape)

    def probabilities(self) -> Tensor:
        """Mass over total."""
        mass = self.mass()
        return mass.to(torch.float64) / mass.sum(-1, keepdim=True)
