"""multinomial without replacement: equal to the reference, and the law of one draw after the other."""

from __future__ import annotations

from itertools import permutations

import native
import numpy as np
import pytest
import torch
from support.chi_square import fits
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops._random import random_bits
from ste_ops.reference.sampling.multinomial import exponential_key

core = native.load().sampling


def without_replacement(weights: Tensor, seed: Tensor, k: int) -> Tensor:
    return ops.multinomial_without_replacement(weights, seed, k, "multinomial")


def test_keys_equal_reference() -> None:
    w = [5e-324, 1e-310, 1e-3, 1.0, 1.5, 7.0, 1.7e308]
    for seed in range(40):
        bits = [random_bits(seed, 0, i)[0] for i in range(len(w))]
        expected = [exponential_key(v, r) for v, r in zip(w, bits, strict=True)]
        assert core.exponential_key(np.array(w), np.array(bits, np.uint64)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (300,), (3, 130), (2049,)])
def test_equals_reference(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    w = (torch.rand(shape, dtype=torch.float64) ** 6).to(dtype)
    w[..., 1::3] = 0
    w[..., 2::9] = torch.finfo(dtype).smallest_normal / 4
    w[..., 5::11] = torch.finfo(dtype).max
    for k in {1, (shape[-1] + 2) // 3, int((w > 0).sum(-1).min())}:
        torch.manual_seed(2)
        ours = ste_ops.multinomial(w.to(device), k)
        if device == "cpu":
            torch.manual_seed(2)
            assert torch.equal(ours, reference.multinomial(w, k))
        assert all(len(set(row)) == k for row in ours.reshape(-1, k).tolist())
        assert (w.to(device).gather(-1, ours) > 0).all()


def sampled_places(n: int) -> Tensor:
    """Whose keys guess the threshold of a long row (csrc/cpu/sampling/race.h)."""
    stretch = n // 8192
    return torch.tensor([i * stretch + ((i * 0x9E3779B97F4A7C15 % 2**64 >> 32) * stretch >> 32) for i in range(8192)])


def long_weights(kind: str) -> Tensor:
    if kind == "equal":
        return torch.ones(70_000)
    if kind == "of 60 orders of magnitude":  # and too few for a sample
        return torch.rand(60_000, dtype=torch.float64) * 10.0 ** torch.randint(-30, 30, (60_000,))
    w = torch.rand(70_000)
    w[sampled_places(70_000)] = 1e30 if kind == "that a sample takes for heavier" else 1e-30
    return w


KINDS = ["equal", "of 60 orders of magnitude", "that a sample takes for heavier", "that a sample takes for lighter"]


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_are_drawn_in_the_order_of_their_keys(device: str, kind: str) -> None:
    w, seed = long_weights(kind), 7
    blocks = [core.philox_block(seed, 0, first)[0] for first in range(0, len(w), 64)]
    keys = torch.from_numpy(core.exponential_key(w.double().numpy(), np.concatenate(blocks)[: len(w)]))
    order = keys.sort(stable=True).indices
    for k in (1, 10, 256, 257, 20_000, len(w)) if device == "cpu" else (10, 257):
        drawn = without_replacement(w.to(device), torch.tensor([seed], device=device), k)
        assert torch.equal(drawn.cpu(), order[:k])


def sequential_law(w: list[float], k: int) -> dict[tuple[int, ...], float]:
    """The probability of every ordered sample of k, enumerated draw by draw."""
    law = {}
    for order in permutations(range(len(w)), k):
        p, left = 1.0, sum(w)
        for i in order:
            p, left = p * w[i] / left if w[i] > 0 else 0.0, left - w[i]
        law[order] = p
    return law


LAWS = [([1.0, 3.0, 0.5, 6.0], 4), ([1.0, 3.0, 0.5, 6.0], 2), ([1.0, 0.0, 2.0, 1e-3, 5.0], 3), ([2.0] * 5, 2)]


@pytest.mark.parametrize(("w", "k"), LAWS)
def test_law_of_the_ordered_sample(w: list[float], k: int) -> None:
    # On the CPU: other devices draw the same bits.
    law = sequential_law(w, k)
    number = {order: i for i, order in enumerate(law)}
    expected = torch.tensor(list(law.values()), dtype=torch.float64)

    def orders(weights: list[float]) -> Tensor:
        drawn = ste_ops.multinomial(torch.tensor(weights).expand(60_000, -1), k)
        return torch.tensor([number[tuple(row)] for row in drawn.tolist()])

    assert fits(orders(w), expected)
    # A tenth more for one weight, and the same sample in the reverse order, are noticed.
    assert not fits(orders([1.1 * w[0], *w[1:]]), expected)
    if len(set(w)) > 1:
        reverse = torch.tensor([number[order[::-1]] for order in law])
        assert not fits(reverse[orders(w)], expected)


def test_law_of_a_long_row() -> None:
    # A row in which most weights lose by their bits alone. Which of ten kinds is drawn first follows the kinds' sums.
    kinds = torch.arange(10.0, dtype=torch.float64) + 1
    w = kinds.repeat(7000)
    first = torch.stack([without_replacement(w, torch.tensor([s]), 3)[0] for s in range(1500)]) % 10
    assert fits(first, kinds)
    assert not fits(first, kinds + torch.tensor([3.0, *[0.0] * 9]))


def test_any_number_of_threads() -> None:
    before, seed = torch.get_num_threads(), torch.tensor([3])
    long, short = torch.rand(2, 140_003), torch.rand(300, 400)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        drawn = [without_replacement(long, seed, k) for k in (10, 60_000)]
        results.append([*drawn, without_replacement(short, seed, 100)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_flushed_denormals_are_no_zeros(dtype: torch.dtype) -> None:
    w, seed = torch.full((70_000,), torch.finfo(dtype).smallest_normal / 4, dtype=dtype), torch.tensor([3])
    expected = without_replacement(w, seed, 10)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes nothing")
    try:
        drawn = without_replacement(w, seed, 10)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(
    ("weights", "k", "message"),
    [
        ([1.0, 2.0], 3, "num_samples must be at most 2, the number of weights, without replacement, got 3"),
        ([1.0, 0.0], 2, "num_samples must be at most 1, the number of positive weights, without replacement, got 2"),
        ([[1.0, 0.0], [1.0, 1.0]], 2, "num_samples must be at most 1, the number of positive weights in row 0"),
        ([1.0, -0.5], 1, r"weights must be non-negative, got -0\.5 at index 1"),
        ([[1.0, 1.0], [float("nan"), 1.0]], 1, r"weights must be finite and non-negative, got nan at index \(1, 0\)"),
        ([0.0, 0.0], 1, "weights must have a positive sum, got only zeros"),
    ],
)
def test_bad_input_is_refused(weights: list, k: int, message: str) -> None:
    # On CUDA it is refused later: test_deferred_errors.py.
    with pytest.raises(RuntimeError, match="^multinomial: " + message):
        ste_ops.multinomial(torch.tensor(weights), k)


def test_the_first_bad_row_is_named() -> None:
    w = torch.ones(900, 100)
    w[[500, 123, 700], 5] = -1
    with pytest.raises(RuntimeError, match=r"at index \(123, 5\)"):
        ste_ops.multinomial(w, 3)


def test_what_cannot_be_drawn_is_minus_one(device: str) -> None:
    if device == "cpu" and ops.namespace == "ste_ops":
        pytest.skip("the CPU kernels raise")
    w = torch.tensor([[0.0, 1.0, 0.0], [1.0, -1.0, 1.0], [1.0, 2.0, 3.0]], device=device)
    drawn = ste_ops.multinomial(w, 2)
    assert drawn[:2].tolist() == [[1, -1], [-1, -1]]
    assert (drawn[2] >= 0).all()
    with pytest.raises(RuntimeError, match="the number of positive weights in row 0, without replacement, got 2"):
        ste_ops.check_deferred_errors(device)


def test_compiles_whole(device: str) -> None:
    def draw(w: Tensor) -> Tensor:
        return ste_ops.multinomial(w, 2).sort(-1).values

    compiled = torch.compile(draw, fullgraph=True, backend="inductor" if device == "cpu" else "aot_eager")
    assert compiled(torch.tensor([0.0, 1.0, 0.0, 2.0], device=device)).tolist() == [1, 3]


def test_opcheck(device: str) -> None:
    for w in (torch.rand(6, device=device), torch.rand(3, 6, device=device).t()):
        arguments = (w, torch.tensor([4], device=device), 3, "multinomial")
        torch.library.opcheck(ops.multinomial_without_replacement, arguments)
