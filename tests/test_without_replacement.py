"""multinomial without replacement: equal to the reference, and the law of one draw after the other."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from chi_square import fits
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.reference.sampling.multinomial import exponential_key
from ste_ops.reference.sampling.random import random_bits


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


def test_keys_equal_reference(device: str) -> None:
    w = torch.tensor([5e-324, 1e-310, 1e-3, 1.0, 1.5, 7.0, 1.7e308], dtype=torch.float64)
    for seed in range(40):
        keys, positive = ops.exponential_keys(w.to(device), torch.tensor([seed], device=device))
        bits = [random_bits(seed, 0, i)[0] for i in range(len(w))]
        expected = [exponential_key(v, r) for v, r in zip(w.tolist(), bits, strict=True)]
        assert keys.tolist() == expected
        assert positive == len(w)


def sequential_law(w: list[float]) -> list[float]:
    """Probability of every order, enumerated."""
    law = []
    for order in permutations(range(len(w))):
        p, left = 1.0, sum(w)
        for i in order:
            p, left = p * w[i] / left, left - w[i]
        law.append(p)
    return law


def test_statistics_of_the_order(device: str) -> None:
    w = [1.0, 3.0, 0.5, 6.0]
    drawn = ste_ops.multinomial(torch.tensor(w, device=device).expand(30_000, 4), 4).cpu()
    number = {order: i for i, order in enumerate(permutations(range(4)))}
    orders = torch.tensor([number[tuple(row)] for row in drawn.tolist()])
    assert fits(orders, torch.tensor(sequential_law(w), dtype=torch.float64))
    biased = torch.tensor(sequential_law([1.0, 3.3, 0.5, 6.0]), dtype=torch.float64)
    assert not fits(orders, biased)


def test_any_number_of_threads() -> None:
    before, w = torch.get_num_threads(), torch.rand(3, 100_003)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        results.append(ste_ops.multinomial(w, 5000))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("weights", "k", "message"),
    [
        ([1.0, 2.0], 3, "num_samples must be at most 2, the number of weights, without replacement, got 3"),
        ([1.0, 0.0], 2, "num_samples must be at most 1, the number of positive weights, without replacement, got 2"),
        ([[1.0, 0.0], [1.0, 1.0]], 2, "num_samples must be at most 1, the number of positive weights in a row"),
        ([1.0, -0.5], 1, r"weights must be non-negative, got -0\.5 at index 1"),
        ([[1.0, 1.0], [float("nan"), 1.0]], 1, r"weights must be finite and non-negative, got nan at index \(1, 0\)"),
        ([0.0, 0.0], 1, "weights must have a positive sum, got only zeros"),
    ],
)
def test_bad_input_is_refused(device: str, weights: list, k: int, message: str) -> None:
    w = torch.tensor(weights, device=device)
    if device == "cpu":
        with pytest.raises(RuntimeError, match="^multinomial: " + message):
            ste_ops.multinomial(w, k)
    elif k <= w.shape[-1]:
        assert (ste_ops.multinomial(w, k) == -1).any()


def test_compiles_whole(device: str) -> None:
    def draw(w: Tensor) -> Tensor:
        return ste_ops.multinomial(w, 2).sort(-1).values

    compiled = torch.compile(draw, fullgraph=True, backend="inductor" if device == "cpu" else "aot_eager")
    w = torch.tensor([0.0, 1.0, 0.0, 2.0], device=device)
    assert compiled(w).tolist() == [1, 3]
    assert compiled(torch.tensor([0.0, 1.0, 0.0, 0.0], device=device)).tolist() == [-1, 1]
    assert compiled(torch.tensor([0.0, 1.0, 2.0, -1.0], device=device)).tolist() == [-1, -1]


def test_opcheck(device: str) -> None:
    for w in (torch.rand(6, device=device), torch.rand(3, 6, device=device).t()):
        torch.library.opcheck(ops.exponential_keys, (w, torch.tensor([4], device=device)))
