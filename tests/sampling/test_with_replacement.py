"""The one call of draws with replacement gives what its parts do, whatever shares it out."""

from __future__ import annotations

import pytest
import torch

import ste_ops
from ste_ops._library import ops
from ste_ops.reference.sampling.multinomial import most_from_sums


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "k"),
    [((7,), 3), ((3, 7), 200), ((5, 640), 320), ((5, 640), 321), ((5, 1040), 130), ((5, 1040), 131)],
    ids=str,
)
def test_equals_its_parts(device: str, dtype: torch.dtype, shape: tuple[int, ...], k: int) -> None:
    w, seed = torch.rand(*shape, device=device).to(dtype), torch.tensor([11], device=device)
    few = k <= most_from_sums(shape[-1])
    expected = ops.inverse_cdf_sample(w, seed, k)[0] if few else ste_ops.AliasTable(w).sample_at(seed, 0, k)
    assert torch.equal(ops.multinomial_with_replacement(w, seed, k), expected)
    assert torch.equal(ops.multinomial_with_replacement(w.t().contiguous().t(), seed, k), expected)


# Each is shared out in its own way: a row by its parts, and rows to the threads.
@pytest.mark.parametrize(("shape", "k"), [((2**18,), 2**19), ((2**18,), 2**13), ((300, 999), 600), ((300, 999), 9)])
def test_does_not_depend_on_the_threads(shape: tuple[int, ...], k: int) -> None:
    w, seed = torch.rand(*shape), torch.tensor([11])
    few = k <= most_from_sums(shape[-1])
    expected = ops.inverse_cdf_sample(w, seed, k)[0] if few else ste_ops.AliasTable(w).sample_at(seed, 0, k)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(ops.multinomial_with_replacement(w, seed, k), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("k", [5, 50])
def test_the_first_row_at_fault_is_named(device: str, k: int) -> None:
    rows = 4000 if device == "cpu" and ops.namespace == "ste_ops" else 40
    w = torch.rand(rows, 90, device=device)
    w[30], w[17, 5], w[20, 80] = 0.0, -1.0, float("nan")
    message = r"^multinomial: weights must be non-negative, got -1\.0 at index \(17, 5\)"
    if device == "cpu" and ops.namespace == "ste_ops":
        with pytest.raises(RuntimeError, match=message):
            ste_ops.multinomial(w, k, True)
        return
    drawn = ste_ops.multinomial(w, k, True)
    assert (drawn[[17, 20, 30]] == -1).all()
    assert int((drawn >= 0).all(-1).sum()) == rows - 3
    with pytest.raises(RuntimeError, match=message):
        ste_ops.check_deferred_errors(device)


def test_the_operator_checks_its_arguments(device: str) -> None:
    w, seed = torch.ones(3, device=device), torch.tensor([1], device=device)
    for arguments, message in [
        ((w.expand(1, 1, 3), seed, 1), "weights must be 1-D or 2-D, got 3-D"),
        ((w[:0], seed, 1), "weights must not be empty"),
        ((w, seed.int(), 1), "seed must be int64"),
        ((w, seed.expand(2).contiguous(), 1), "seed must have one element, got 2"),
        ((w, seed, 0), "num_samples must be >= 1, got 0"),
    ]:
        with pytest.raises(RuntimeError, match="^multinomial_with_replacement: " + message):
            ops.multinomial_with_replacement(*arguments)
    assert ops.multinomial_with_replacement(w.expand(0, -1), seed, 2).shape == (0, 2)


@pytest.mark.parametrize("shape", [(6,), (3, 60)])
def test_opcheck(device: str, shape: tuple[int, ...]) -> None:
    arguments = torch.rand(shape, device=device), torch.tensor([4], device=device), 3
    torch.library.opcheck(ops.multinomial_with_replacement, arguments)
