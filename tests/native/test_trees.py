"""csrc/core/sampling/sum_tree.h and resample.h against exact integers and fractions."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

import native
from ste_ops.reference.sampling.sum_tree import masses, to_53_bits

core = native.load().trees
RNG = np.random.default_rng(0)
DTYPES = {"float64": (np.float64, np.uint64), "float32": (np.float32, np.uint32), "float16": (np.float16, np.uint16)}
BIAS = 1127


def number(word: int) -> Fraction:
    return Fraction(0) if word == 0 else ((word & (2**52 - 1)) + 2**52) * Fraction(2) ** ((word >> 52) - BIAS)


@pytest.mark.parametrize("name", DTYPES)
def test_words_are_the_weights(name: str) -> None:
    dtype, bits = DTYPES[name]
    info = np.finfo(dtype)
    specials = [0, -0.0, info.smallest_subnormal, info.tiny, info.tiny * dtype(1.5), 1, 1.5, info.max]
    random = RNG.integers(1, int(np.array(info.max).view(bits)), 88, dtype=np.uint64).astype(bits).view(dtype)
    values = np.concatenate([np.array(specials, dtype), random])
    of = getattr(core, name)
    words = of.wide(values.view(bits))
    assert [number(int(w)) for w in words] == [Fraction(float(v)) for v in values]
    assert (words[np.argsort(values, kind="stable")].astype(object)[:-1] <= np.sort(words)[1:]).all()
    for node in (values[:16], values[-16:]):  # with denormals and without
        assert of.widen(node.view(bits)).tolist() == of.wide(node.view(bits)).tolist()


def children() -> list[list[float]]:
    scale = lambda low, high: 2.0 ** RNG.integers(low, high, 16)  # noqa: E731
    cases = [[0.0] * 16, [1.0] * 16, [0.0] * 15 + [5e-324], [1.7e308] * 16, [1e308, 5e-324] + [0.0] * 14]
    cases += [[float(2**58 - 2**5), 0.5 * 2**5] + [0.0] * 14]  # a carry, and half a unit
    cases += [(RNG.random(16) * scale(*span)).tolist() for span in ((0, 1), (-5, 5), (-70, 5), (-900, 900)) * 5]
    cases += [(np.round(RNG.random(16)) * scale(0, 60)).tolist() for _ in range(5)]
    return cases


def test_nodes_are_sums_of_integers() -> None:
    for case in children():
        words = core.float64.wide(np.array(case).view(np.uint64))
        prefix, word = core.node_sums(words)
        mass, unit = masses([Fraction(w) for w in case])
        assert prefix.tolist() == list(itertools.accumulate(mass))
        assert number(word) == to_53_bits(sum(mass) * unit)
        assert sum(mass) < 2**62


def test_long_division() -> None:
    for _ in range(300):
        divisor = int(RNG.integers(1, 2**63, dtype=np.uint64)) >> int(RNG.integers(0, 62)) or 1
        high, low = int(RNG.integers(0, divisor, dtype=np.uint64)), int(RNG.integers(0, 2**64, dtype=np.uint64))
        for h in (0, high):
            assert core.divide(h, low, divisor) == divmod(h << 64 | low, divisor)


@pytest.mark.parametrize("total", [2**47 + 3, 2**59, 2**61 + 2**37, 3**38])
@pytest.mark.parametrize("count", [1, 2, 3, 1000, 2**31 + 1, 2**40 - 1, 2**40])
def test_positions_are_exact(total: int, count: int) -> None:
    random = [0, 2**64 - 1, *(int(r) for r in RNG.integers(0, 2**64, 40, dtype=np.uint64))][:count]
    for first in {0, count // 2 - count // 7, count - len(random)}:
        bits = random[: count - first]
        expected = [(((first + i) << 64) + u) * total // (count << 64) for i, u in enumerate(bits)]
        assert core.position_units(total, count, first, bits) == expected


@pytest.mark.parametrize("count", [1, 7, 10**6, 2**40])
def test_copies_and_residues_are_exact(count: int) -> None:
    mass = [int(m) >> int(s) for m, s in zip(RNG.integers(0, 2**55, 60), RNG.integers(0, 50, 60), strict=True)]
    mass += [0, 2**58, 1]
    total, copied, before = sum(mass), 0, 0
    assert count < total
    for m in mass:
        copies, residue = divmod(count * m, total)
        assert core.copies(total, count, m) == (copies, residue)
        copied, before = copied + copies, before + m
        left = count * before - copied * total  # of residues so far
        bucket, units = core.bucket_after(before, copied, total, count)
        assert bucket * total + units == left
        assert 0 < units <= total
