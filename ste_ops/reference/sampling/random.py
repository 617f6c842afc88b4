"""The random bits behind every draw, and what the references share."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

MASK32 = 2**32 - 1
MASK64 = 2**64 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11), on 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def random_bits(seed: int, stream: int, index: int) -> tuple[int, int]:
    """Draw number `index` of `stream` under `seed`: two numbers of 64 random bits."""
    words = philox((index & MASK32, index >> 32, stream & MASK32, stream >> 32), (seed & MASK32, seed >> 32 & MASK32))
    return words[0] | words[1] << 32, words[2] | words[3] << 32


def round_scaled(value: float, exponent: int) -> int:
    """round(value * 2**exponent), half to even, exactly."""
    numerator, denominator = value.as_integer_ratio()
    numerator, denominator = numerator << max(exponent, 0), denominator << max(-exponent, 0)
    down, rest = divmod(numerator, denominator)
    return down + (2 * rest > denominator or (2 * rest == denominator and down % 2 == 1))


def draw_seed(device: torch.device, generator: Generator | None) -> Tensor:
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def check_weights(row: list[float], where: str, operator: str, error: type[Exception]) -> None:
    for i, w in enumerate(row):
        if not 0 <= w < math.inf:
            kind = "non-negative" if -math.inf < w < 0 else "finite and non-negative"
            raise error(f"{operator}: weights must be {kind}, got {w} at index {where.format(i)}")
    if not any(row):
        raise error(f"{operator}: weights must have a positive sum, got only zeros")
