"""vmap of draws without a gradient: a batch is more rows, and `randomness` means what torch's means."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import ste_ops
from ste_ops._library import ops

DRAWS = {
    "with replacement": lambda w: ste_ops.multinomial(w, 9, True),
    "few": lambda w: ste_ops.multinomial(w, 2, True),
    "without replacement": lambda w: ste_ops.multinomial(w, 9),
    "systematic": lambda w: ste_ops.systematic_resample(w, 40),
    "stratified": lambda w: ste_ops.stratified_resample(w, 40),
    "residual": lambda w: ste_ops.residual_resample(w, 40),
}


@pytest.fixture(autouse=True)
def _no_loop_with_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(params=DRAWS)
def draw(request, device):
    return DRAWS[request.param]


def seeded(call, *arguments, **options) -> Tensor:
    torch.manual_seed(3)
    return call(*arguments, **options)


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["rows", "matrices"])
def test_different(device, draw, shape):
    w = torch.rand(5, *shape, device=device)
    w[1] = w[0]
    drawn = seeded(torch.vmap(draw, randomness="different"), w)
    assert drawn.shape[:-1] == w.shape[:-1]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, seeded(torch.vmap(draw, in_dims=-1, randomness="different"), w.movedim(0, -1)))
    w[:, ..., 7:] = 0
    w[:, ..., :7] += 1
    if draw is not DRAWS["without replacement"]:
        assert int(torch.vmap(draw, randomness="different")(w).max()) < 7


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["rows", "matrices"])
def test_same(device, draw, shape):
    w = torch.rand(5, *shape, device=device)
    drawn = seeded(torch.vmap(draw, randomness="same"), w)
    assert torch.equal(drawn, torch.stack([seeded(draw, of_one) for of_one in w]))


def test_error(device, draw):
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(draw)(torch.rand(5, 40, device=device))


def test_one_weight_vector_for_all(device, draw):
    w = torch.rand(40, device=device)
    drawn = torch.vmap(lambda _: draw(w), randomness="different")(torch.zeros(6, device=device))
    assert drawn.shape == (6, *draw(w).shape)
    assert not all(torch.equal(drawn[0], of_one) for of_one in drawn)


def test_nested(device, draw):
    w = torch.rand(2, 3, 40, device=device)
    once = torch.vmap(draw, randomness="different")
    assert seeded(torch.vmap(once, randomness="different"), w).shape == (2, 3, draw(w[0, 0]).shape[-1])


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["rows", "matrices"])
def test_nested_under_one_seed(device, draw, shape):
    w = torch.rand(2, 3, *shape, device=device)
    once = torch.vmap(draw, in_dims=-1, out_dims=-1, randomness="same")
    drawn = seeded(torch.vmap(once, randomness="same"), w.movedim(1, -1)).movedim(-1, 1)
    assert torch.equal(drawn, torch.stack([torch.stack([seeded(draw, one) for one in of_one]) for of_one in w]))


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["rows", "matrices"])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_empty_batch(device, draw, shape, randomness):
    w = torch.rand(*shape, device=device)
    drawn = torch.vmap(draw, randomness=randomness)(w.new_empty(0, *shape))
    assert drawn.shape == (0, *draw(w).shape)
    assert drawn.dtype == torch.int64


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["rows", "matrices"])
@pytest.mark.parametrize("of_seed", [(), (1,)], ids=["number", "vector"])
def test_each_seed_that_is_given_names_its_stream(device, shape, of_seed):
    table = ste_ops.AliasTable(torch.rand(*shape, device=device))
    seeds = torch.tensor([7, 5, -3, 7, 2, 9], device=device)

    def at(seed):
        return table.sample_at(seed, 4, 9, stride=2)

    expected = torch.stack([at(int(seed)) for seed in seeds])
    assert torch.equal(torch.vmap(at)(seeds.view(6, *of_seed)), expected)
    nested = torch.vmap(torch.vmap(at, in_dims=-1))(seeds.view(2, 3, *of_seed).movedim(1, -1))
    assert torch.equal(nested, expected.view(2, 3, *expected.shape[1:]))
    assert torch.vmap(at)(seeds[:0].view(0, *of_seed)).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["rows", "matrices"])
def test_samples_take_turns_in_the_stream_of_one_table(device, shape):
    table = ste_ops.AliasTable(torch.rand(*shape, device=device))

    def sample(_):
        return table.sample(9)

    drawn = seeded(torch.vmap(sample, randomness="different"), torch.zeros(6, device=device))
    seed = seeded(torch.randint, 2**63 - 1, (6, 1), device=device)[0]
    of_row = table.sample_at(seed, 0, 54).view(*shape[:-1], 6, 9)
    assert torch.equal(drawn, of_row.movedim(-2, 0))
    weights = torch.rand(*shape, device=device)
    from_weights = torch.vmap(lambda _: ste_ops.multinomial(weights, 2, True), randomness="different")
    drawn = seeded(from_weights, torch.zeros(6, device=device))
    of_row = ops.inverse_cdf_sample(weights, seed, 12)[0].view(*shape[:-1], 6, 2)
    assert torch.equal(drawn, of_row.movedim(-2, 0))
    same = seeded(torch.vmap(sample, randomness="same"), torch.zeros(6, device=device))
    assert torch.equal(same, seeded(table.sample, 9).expand_as(same))
    assert torch.vmap(sample, randomness="different")(torch.zeros(0, device=device)).shape == (0, *shape[:-1], 9)


def test_compiled(device):
    def batched(w):
        return torch.vmap(DRAWS["without replacement"], randomness="different")(w)

    torch._dynamo.reset()
    w = torch.rand(4, 40, device=device)
    drawn = torch.compile(batched, backend="aot_eager", fullgraph=True)(w)
    assert drawn.shape == (4, 9)
    assert all(len(set(row.tolist())) == 9 for row in drawn)
