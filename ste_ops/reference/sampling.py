"""Reference of the sampling family: Python integers and one-by-one loops, equal to the native draws seed for seed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

_MASK32 = 2**32 - 1
_MASK64 = 2**64 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11), on 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def random_bits(seed: int, stream: int, index: int) -> tuple[int, int]:
    """Draw number `index` of `stream` under `seed`: two numbers of 64 random bits."""
    words = philox(
        (index & _MASK32, index >> 32, stream & _MASK32, stream >> 32), (seed & _MASK32, seed >> 32 & _MASK32)
    )
    return words[0] | words[1] << 32, words[2] | words[3] << 32


def _round_scaled(value: float, exponent: int) -> int:
    """round(value * 2**exponent), half to even, exactly."""
    numerator, denominator = value.as_integer_ratio()
    numerator, denominator = numerator << max(exponent, 0), denominator << max(-exponent, 0)
    down, rest = divmod(numerator, denominator)
    return down + (2 * rest > denominator or (2 * rest == denominator and down % 2 == 1))


def masses(weights: list[float]) -> list[int]:
    """Weights as integers: times a power of two, half to even, at least 1 where positive (see csrc/core/mass.h)."""
    n = len(weights)
    largest = max(weights)
    if largest == 0:
        return [0] * n
    # 2**(binary_exponent - 1) <= largest < 2**binary_exponent
    binary_exponent = math.frexp(largest)[1]
    coarse_exponent = 62 - (n - 1).bit_length() - binary_exponent
    coarse_total = sum(_round_scaled(w, coarse_exponent) for w in weights)
    exponent = coarse_exponent + 61 - (coarse_total + n).bit_length()
    return [max(_round_scaled(w, exponent), int(w > 0)) for w in weights]


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


def _check_weights(row: list[float], where: str, operator: str, error: type[Exception]) -> None:
    for i, w in enumerate(row):
        if not 0 <= w < math.inf:
            kind = "non-negative" if -math.inf < w < 0 else "finite and non-negative"
            raise error(f"{operator}: weights must be {kind}, got {w} at index {where.format(i)}")
    if not any(row):
        raise error(f"{operator}: weights must have a positive sum, got only zeros")


class AliasTable:
    """`ste_ops.AliasTable` on Python lists."""

    def __init__(self, weights: Tensor, *, _operator: str = "AliasTable", _error: type[Exception] = ValueError) -> None:
        if weights.dim() not in (1, 2):
            raise _error(f"{_operator}: weights must be 1-D or 2-D, got shape {tuple(weights.shape)}")
        if weights.shape[-1] == 0:
            raise _error(f"{_operator}: weights must not be empty, got shape {tuple(weights.shape)}")
        self.shape, self.device = weights.shape, weights.device
        self._rows: list[tuple[list[int], list[int], list[int], int]] = []
        for r, row in enumerate(weights.detach().to(torch.float64).reshape(-1, weights.shape[-1]).tolist()):
            _check_weights(row, "{}" if weights.dim() == 1 else f"({r}, {{}})", _operator, _error)
            mass, capacity = padded_masses(row)
            self._rows.append((mass, *alias_columns(mass, capacity), capacity))

    def to(self, device: torch.device | str) -> AliasTable:
        moved = object.__new__(AliasTable)
        moved.shape, moved.device, moved._rows = self.shape, torch.device(device), self._rows
        return moved

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draws under a seed from `generator`."""
        return self.sample_at(_seed(self.device, generator), 0, num_samples)

    def sample_at(self, seed: int | Tensor, start: int, num_samples: int) -> Tensor:
        """Draws start, start + 1, ...: 64 bits choose a column, 64 others a unit of its capacity."""
        draws = []
        for row, (_, thresholds, aliases, capacity) in enumerate(self._rows):
            for index in range(start, start + num_samples):
                low, high = random_bits(int(seed) & _MASK64, row, index)
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


def _seed(device: torch.device, generator: Generator | None) -> Tensor:
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Draws from each row of weights, with replacement from a table, without by the least exponential keys."""
    if num_samples < 1:
        raise RuntimeError(f"multinomial: num_samples must be >= 1, got {num_samples}")
    table = AliasTable(weights, _operator="multinomial", _error=RuntimeError)
    seed = _seed(weights.device, generator)
    if replacement:
        return table.sample_at(seed, 0, num_samples)
    rows = weights.detach().to(torch.float64).reshape(-1, weights.shape[-1]).tolist()
    drawn = [_least_keys(w, int(seed) & _MASK64, row, num_samples) for row, w in enumerate(rows)]
    return torch.tensor(drawn, dtype=torch.int64, device=weights.device).reshape(*weights.shape[:-1], num_samples)


def _least_keys(weights: list[float], seed: int, row: int, num_samples: int) -> list[int]:
    keys = [(exponential_key(w, random_bits(seed, row, i)[0]), i) for i, w in enumerate(weights) if w > 0]
    if num_samples > len(keys):
        raise RuntimeError(
            f"multinomial: num_samples must be at most {len(keys)}, the number of positive weights, without "
            f"replacement, got {num_samples}"
        )
    return [i for _, i in sorted(keys)[:num_samples]]


def exponential_key(weight: float, random: int) -> float:
    """log(E / w) with E exponentially distributed: who draws without replacement takes the least first (Efraimidis and
    Spirakis, 2006). Step by step as in csrc/core/exponential.h, for the same bits."""
    v = (float(random) + 0.5) * 2.0**-64
    left = (float(_MASK64 - random) + 0.5) * 2.0**-64
    exponential = _twice_atanh(v / (2 - v)) if v < 0.25 else -_log(*math.frexp(left))
    return _log(*math.frexp(exponential)) - _log(*math.frexp(weight))


def _twice_atanh(s: float) -> float:
    square = s * s
    total = 1 / 21
    for odd in range(19, 1, -2):
        total = total * square + 1 / odd
    return 2 * (s + s * (square * total))


def _log(mantissa: float, exponent: int) -> float:
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = 2 * mantissa, exponent - 1
    low = _twice_atanh((mantissa - 1) / (mantissa + 1)) + exponent * 1.90821492927058770002e-10
    return exponent * 6.93147180369123816490e-01 + low


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, seed: Tensor) -> Tensor:
        out = torch.empty_like(p)
        dense = torch.empty_like(out).copy_(p)
        # Draws belong to places in memory.
        memory, values = out.as_strided((out.numel(),), (1,)), dense.as_strided((out.numel(),), (1,)).tolist()
        for i, value in enumerate(values):
            if not 0 <= value <= 1:
                raise RuntimeError(f"bernoulli_ste: p must be in [0, 1], got {value} at index {i}")
            threshold = max(_round_scaled(value, 64), int(value > 0))
            memory[i] = float(random_bits(int(seed) & _MASK64, 0, i)[0] < threshold)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def bernoulli_ste(p: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with probability p, p read to 64 binary places; the gradient of p is the incoming one."""
    return _Bernoulli.apply(p, _seed(p.device, generator))
