"""Few draws from many weights: by the inverse of the summed masses, equal to the reference, no table built."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from support.chi_square import fits
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._library import ops
from ste_ops.reference.sampling.inverse_cdf import inverse_cdf_sample
from ste_ops.reference.sampling.weights import masses


def weights(n: int, dtype: torch.dtype) -> Tensor:
    """Of several magnitudes, with zeros at both ends, a tile of nothing but zeros and one of nothing but denormals."""
    w = (torch.rand(n, dtype=torch.float64) ** 8).to(dtype)
    w[::5] = 0.0
    w[1::7] = -0.0
    w[-1] = 0.0
    w[512:1024] = 0.0
    w[1024:1536] = torch.finfo(dtype).smallest_normal / 4
    if n % 2 == 1:
        w[n // 3] = torch.finfo(dtype).max / 2
    return w


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 17, 300, 1023, 1025, 2049, 9000])
def test_equals_reference(device: str, dtype: torch.dtype, n: int) -> None:
    w = weights(n, dtype) if n > 2 else torch.ones(n, dtype=dtype)
    for seed in (0, 2**63 - 1):
        draws, total = ops.inverse_cdf_sample(w.to(device), torch.tensor([seed], device=device), 30)
        assert torch.equal(draws.cpu(), inverse_cdf_sample(w, seed, 30))
        assert int(total) == sum(masses(w.double().tolist()))
    assert (w[draws.cpu()] > 0).all()


def test_rows_equal_reference(device: str) -> None:
    w = torch.rand(4, 700) * torch.tensor([1.0, 1e-30, 1e30, 1e-40])[:, None]
    torch.manual_seed(1)
    drawn = ste_ops.multinomial(w.to(device), 5, True)
    if device != "cuda":
        torch.manual_seed(1)
        assert torch.equal(drawn, reference.multinomial(w, 5, True))
    draw = lambda w: ops.inverse_cdf_sample(w.to(device), torch.tensor([4], device=device), 5)[0].cpu()  # noqa: E731
    assert torch.equal(draw(w), inverse_cdf_sample(w, 4, 5))
    assert torch.equal(draw(w[:2]), draw(w)[:2])
    assert torch.equal(draw(w.t().contiguous().t()), draw(w))


def test_every_unit_finds_its_item() -> None:
    # The draws are the items at the units that the reference's prefix sums give them, first and last units included.
    w = torch.tensor([0.0, 1.0, 0.0, 2.0, 5.0, 0.0]).repeat(200)
    drawn = ops.inverse_cdf_sample(w, torch.tensor([3]), 3000)[0]
    assert set(drawn.unique().tolist()) <= set(w.nonzero().flatten().tolist())
    ends = list(accumulate(masses(w.tolist())))
    assert torch.equal(drawn[:500], inverse_cdf_sample(w, 3, 500))
    assert ends[-1] >= 2**59


def test_the_choice_depends_on_the_counts_alone(device: str) -> None:
    seed = torch.randint(2**63 - 1, (1,), generator=torch.Generator(device).manual_seed(5), device=device)
    # Of a long row a draw is a block, of which 8,192 would take long where they are emulated; the choice is the same.
    long = 2**12 if ops.namespace == "ste_ops_emulated" else 2**16
    cases = (
        ((1,), 16),
        ((32,), 16),
        ((2, 33), 16),
        ((2, 34), 17),
        ((1024,), 512),
        ((1032,), 129),
        ((long - 1,), long // 8 - 1),
    )
    for shape, most in cases:
        w = torch.rand(*shape, device=device)
        for k in (most, most + 1):
            drawn = ste_ops.multinomial(w, k, True, generator=torch.Generator(device).manual_seed(5))
            summed, table = ops.inverse_cdf_sample(w, seed, k)[0], ste_ops.AliasTable(w).sample_at(seed, 0, k)
            assert torch.equal(drawn, summed if k == most else table)
            assert shape == (1,) or not torch.equal(summed, table)


def test_statistics() -> None:
    w = torch.rand(640) ** 4
    w[3:9] = 0
    biased = torch.where(torch.arange(640) % 2 == 0, w, 1.2 * w)
    assert fits(ste_ops.multinomial(w.expand(12_000, -1), 5, True), w)
    assert not fits(ste_ops.multinomial(biased.expand(12_000, -1), 5, True), w)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.5, r"weights must be non-negative, got -0\.5 at index 321"),
        (float("nan"), "weights must be finite and non-negative, got nan at index 321"),
        (float("inf"), "weights must be finite and non-negative, got inf at index 321"),
        (0.0, "weights must have a positive sum, got only zeros"),
    ],
)
def test_bad_weights_are_refused(device: str, value: float, message: str) -> None:
    w = torch.zeros(600, device=device)
    w[321], w[400] = value, min(value, 0.0)
    draws, total = ops.inverse_cdf_sample(torch.stack([w, torch.ones_like(w)]), torch.tensor([1], device=device), 3)
    assert draws[0].tolist() == [-1, -1, -1]
    assert (draws[1] >= 0).all()
    assert total[0] == (0 if value == 0 else -1 - 321)
    if device == "cpu" and ops.namespace == "ste_ops":
        with pytest.raises(RuntimeError, match="^multinomial: " + message):
            ste_ops.multinomial(w, 2, True)
    else:
        assert ste_ops.multinomial(w, 2, True).tolist() == [-1, -1]
        with pytest.raises(RuntimeError, match="^multinomial: " + message):
            ste_ops.check_deferred_errors(device)


def test_operator_checks_its_arguments(device: str) -> None:
    w, seed = torch.ones(300, device=device), torch.tensor([1], device=device)
    for arguments, message in [
        ((w.int(), seed, 1), "weights must be"),
        ((w[:0], seed, 1), "weights must not be empty"),
        ((w, seed.int(), 1), "seed must be int64"),
        ((w, seed.expand(2).contiguous(), 1), "seed must have one element, got 2"),
        ((w, seed, -1), "num_samples must be >= 0, got -1"),
    ]:
        with pytest.raises(RuntimeError, match="inverse_cdf_sample: " + message):
            ops.inverse_cdf_sample(*arguments)
    assert ops.inverse_cdf_sample(w, seed, 0)[0].shape == (0,)
    assert ops.inverse_cdf_sample(w.expand(0, -1), seed, 2)[0].shape == (0, 2)


def test_compiles_whole(device: str) -> None:
    compiled = torch.compile(
        lambda w: ste_ops.multinomial(w * 2, 3, True) + 1,
        fullgraph=True,
        backend="inductor" if device == "cpu" else "aot_eager",
    )
    w = torch.zeros(500, device=device)
    w[77] = 1
    assert compiled(w).tolist() == [78, 78, 78]
