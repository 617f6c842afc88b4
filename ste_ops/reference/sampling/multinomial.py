"""Reference of `multinomial`."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits
from ste_ops.reference.sampling.alias import AliasTable
from ste_ops.reference.sampling.inverse_cdf import inverse_cdf_sample


def multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Draws from each row of weights, with replacement from a table or, where they are few, by the inverse of the
    summed masses, without by the least exponential keys."""
    if num_samples < 1:
        raise RuntimeError(f"multinomial: num_samples must be >= 1, got {num_samples}")
    table = AliasTable(weights, _operator="multinomial", _error=RuntimeError)
    seed = draw_seed("multinomial", weights.device, generator)
    if replacement and num_samples <= most_from_sums(weights.shape[-1]):
        return inverse_cdf_sample(weights, seed, num_samples)
    if replacement:
        return table.sample_at(seed, 0, num_samples)
    rows = weights.detach().to(torch.float64).reshape(-1, weights.shape[-1]).tolist()
    drawn = [_least_keys(w, int(seed) & MASK64, row, num_samples) for row, w in enumerate(rows)]
    return torch.tensor(drawn, dtype=torch.int64, device=weights.device).reshape(*weights.shape[:-1], num_samples)


def most_from_sums(n: int) -> int:
    """The most draws from n weights that are made from their sums, and not from a table."""
    if n > 1024:
        return n // 8
    return n // 2 if n > 32 else 16


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
    Spirakis, 2006). Step by step as in csrc/core/sampling/exponential.h, for the same bits."""
    v = (float(random) + 0.5) * 2.0**-64
    left = (float(MASK64 - random) + 0.5) * 2.0**-64
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
