"""What the draws with replacement are distributed as: the table audited in integers, the draws by the G-test. Next to
every test stands a bias that it finds."""

from __future__ import annotations

import pytest
import torch
from emulator import emulated_kernels
from support.chi_square import g_fits, g_p_value
from torch import Tensor

import ste_ops
from ste_ops._library import ops
from ste_ops.reference.sampling.alias import padded_masses


def wide(n: int) -> Tensor:
    """Weights that span 30 orders of magnitude."""
    w = 10.0 ** -torch.linspace(0, 30, n, dtype=torch.float64)
    return w[torch.randperm(n)]


def tilted(w: Tensor) -> Tensor:
    """The bias that is planted: the second half a tenth too large, and of a few weights that span much, whose draws
    tell nothing of that, the second largest at a hundredth of the largest."""
    n = len(w)
    if n <= 10 and w.dtype == torch.float64:
        return w.index_fill(0, w.argsort()[-2], w.max() / 100)
    return torch.where(torch.arange(n) < n // 2, w, 1.1 * w)


def is_exact(table: Tensor, capacity: int, weights: list[float]) -> bool:
    """Whether the columns of a table hold the masses of the weights to the unit, read one by one."""
    n = len(weights)
    bits = (n - 1).bit_length()
    held = [0] * n
    for column, entry in enumerate(table.tolist()):
        threshold, alias = entry >> bits, entry & (2**bits - 1)
        if not (0 <= threshold < capacity and alias < n):
            return False
        held[column] += threshold
        held[alias] += capacity - threshold
    return (held, capacity) == padded_masses(weights)


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 9001])
def test_audit_of_the_mass(device: str, n: int) -> None:
    for w in (torch.rand(n), wide(n), torch.rand(n).round() + torch.eye(1, n)[0]):
        table, capacity = ops.alias_table(w.to(device))
        assert is_exact(table.cpu(), int(capacity), w.tolist())
        bits = (n - 1).bit_length()
        shared = (table.cpu() & (2**bits - 1)) != torch.arange(n)
        if shared.any():
            biased = table.cpu().clone()
            biased[shared.nonzero()[-1]] += 1 << bits  # one unit of about 2^60
            assert not is_exact(biased, int(capacity), w.tolist())


def test_probabilities_are_the_mass() -> None:
    w = wide(1000)
    table = ste_ops.AliasTable(w)
    masses, capacity = padded_masses(w.tolist())
    assert table.mass().tolist() == masses
    assert sum(masses) == 1000 * capacity
    # Correctly rounded would be half a unit in the last place.
    expected = torch.tensor([m / (1000 * capacity) for m in masses], dtype=torch.float64)
    torch.testing.assert_close(table.probabilities(), expected, rtol=2.0**-51, atol=0)


@pytest.mark.parametrize("kind", ["flat", "wide"])
@pytest.mark.parametrize("n", [2, 10, 1000, 10**6])
def test_draws_by_the_g_test(n: int, kind: str) -> None:
    w = torch.rand(n) ** 2 if kind == "flat" else wide(n)
    draws = 10**6 if n > 1000 else 200_000
    assert g_fits(ste_ops.AliasTable(w).sample(draws), w)
    assert not g_fits(ste_ops.AliasTable(tilted(w)).sample(draws), w)


def test_g_test_has_its_level() -> None:
    # Of tests on true draws a tenth fails at level 0.1, with bins of as few as 10 expected.
    w = torch.rand(60)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(150, 900, generator=generator, dtype=torch.float64)
    draws = torch.searchsorted(w.double().cumsum(0) / w.double().sum(), uniform).clamp(max=59)
    values = [g_p_value(torch.bincount(row, minlength=60), w) for row in draws]
    assert 0.04 < sum(value < 0.1 for value in values) / 150 < 0.17


def test_two_to_one_over_2_24_categories() -> None:
    n = 2**24
    w = torch.ones(n)
    w[: n // 2] = 2.0
    halves = torch.tensor([2.0, 1.0])
    table = ste_ops.AliasTable(w)
    upper = lambda draws: (draws >= n // 2).long()  # noqa: E731
    assert g_fits(upper(table.sample(300_000)), halves)
    assert g_fits(upper(ste_ops.multinomial(w, n // 128, True)), halves)
    mass = table.mass()
    assert mass[n // 2 :].unique().tolist() == [int(mass[-1])]
    assert int(mass[: n // 2].sum()) == 2 * int(mass[n // 2 :].sum())
    # Float32 prefix sums lose the upper half: torch.multinomial takes the largest category in its place.
    lost = torch.where(torch.arange(n) < n // 2, w, 0)
    assert not g_fits(upper(ste_ops.multinomial(lost, n // 128, True)), halves)


def test_10_8_draws_hit_no_zero() -> None:
    w = wide(1024)
    w[1::2] = 0
    table = ste_ops.AliasTable(w)
    odd = lambda table, start: table.sample_at(0, start, 10**6).bitwise_and_(1).any()  # noqa: E731
    assert not any(odd(table, start) for start in range(0, 10**8, 10**6))
    assert (table.mass() == 0).tolist() == (w == 0).tolist()
    w[1] = 1e-4
    assert odd(ste_ops.AliasTable(w), 0)


def test_threads_and_the_emulated_device_agree() -> None:
    seed = torch.tensor([7])

    def everything() -> list[Tensor]:
        results = []
        for w in (wide(40_001), torch.rand(40_000).float().sort().values, torch.rand(3, 5000).double() ** 9):
            table, capacity = ops.alias_table(w)
            results += [table, capacity, *ops.inverse_cdf_sample(w, seed, 300)]
            results += [ops.alias_sample(table, capacity, seed, 5, 1000, stride) for stride in (1, 3)]
        return results

    before, answers = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        answers.append(everything())
    torch.set_num_threads(before)
    with emulated_kernels():
        torch.manual_seed(0)
        answers.append(everything())
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))
