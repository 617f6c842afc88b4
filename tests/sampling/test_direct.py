"""A few draws on the CPU go past the dispatcher, and nobody can tell by the numbers."""

import concurrent.futures

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ste_ops
from ste_ops._library import ops
from ste_ops._random import draw_seed
from ste_ops.functional.sampling import _direct
from ste_ops.reference import multinomial as reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def by_the_operator(weights, num_samples):
    return ops.multinomial_with_replacement(weights, draw_seed("multinomial", weights.device, None), num_samples)


SHAPES = [(1,), (10,), (100,), (8, 10), (3, 1), (1, 7), (4096,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_draws_what_the_operator_and_the_reference_draw(dtype, shape):
    weights = torch.rand(shape, dtype=dtype) + (torch.rand(shape) > 0.5).to(dtype)
    for count in (1, 2, 10, 50, 500):
        draws = [_direct.with_replacement, by_the_operator, lambda w, k: ste_ops.multinomial(w, k, True)]
        draws.append(lambda w, k: ste_ops.multinomial(w, k, True, generator=torch.default_generator))
        own = torch.Generator().manual_seed(count)
        expected = ops.multinomial_with_replacement(weights, draw_seed("", weights.device, own), count)
        received = ste_ops.multinomial(weights, count, True, generator=own.manual_seed(count))
        assert torch.equal(received, expected)
        if count < 50 and 0 < weights.numel() < 1000:
            draws.append(lambda w, k: reference(w, k, True))
        drawn = []
        for draw in draws:
            torch.manual_seed(count)
            drawn.append((draw(weights, count), torch.get_rng_state()))
        assert drawn[0][0].shape == (*shape[:-1], count)
        for out, state in drawn:
            assert torch.equal(out, drawn[0][0])
            assert torch.equal(state, drawn[0][1])


def test_weights_that_it_cannot_read():
    """The operator draws from them, under the seed that was drawn already."""
    negated = torch.complex(torch.rand(6), -torch.rand(6)).conj().imag
    assert negated.is_neg()
    learned = torch.rand(7, requires_grad=True)
    for weights in (torch.rand(10, 8).t(), torch.rand(20)[::2], negated, learned):
        assert _direct.with_replacement(weights, 3) is not None
        torch.manual_seed(0)
        drawn = ste_ops.multinomial(weights, 3, True), torch.get_rng_state()
        torch.manual_seed(0)
        assert torch.equal(drawn[0], by_the_operator(weights.detach().contiguous(), 3))
        assert torch.equal(drawn[1], torch.get_rng_state())


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (torch.tensor([1.0, -2.0]), r"multinomial: weights must be non-negative, got -2\.0 at index 1"),
        (torch.tensor([1.0, float("nan")]), "multinomial: weights must be finite and non-negative, got nan at index 1"),
        (torch.zeros(3), "multinomial: weights must have a positive sum, got only zeros"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "got only zeros in row 1"),
    ],
)
def test_invalid_weights_are_refused_as_before(weights, words):
    with pytest.raises(RuntimeError, match=words):
        ste_ops.multinomial(weights, 2, True)


class Watch(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("enter", [TorchDispatchMode, Watch, torch.profiler.profile])
def test_leaves_to_the_operator_what_somebody_watches(enter):
    weights = torch.rand(5)
    with enter():
        assert _direct.with_replacement(weights, 2) is None
    assert _direct.with_replacement(weights, 2) is not None


def test_leaves_to_the_operator_what_is_large_or_elsewhere():
    assert _direct.with_replacement(torch.rand(5000), 2) is None
    assert _direct.with_replacement(torch.rand(5), 5000) is None
    assert _direct.with_replacement(torch.rand(50, 5), 100) is None
    assert _direct.with_replacement(torch.nn.Parameter(torch.rand(5)), 2) is None
    assert _direct.with_replacement(torch.ones(5, dtype=torch.int64), 2) is None
    assert _direct.with_replacement(torch.rand(5, device="meta"), 2) is None
    assert _direct.with_replacement(torch.rand(0, 5), 2) is None
    assert ste_ops.multinomial(torch.rand(0, 5), 2, True).shape == (0, 2)
    with torch.device("meta"):
        assert ste_ops.multinomial(torch.rand(5, device="cpu"), np.int64(2), True).device.type == "cpu"


def test_transforms_and_compilers_see_the_operator():
    weights = torch.rand(5)
    torch.manual_seed(0)
    alone = ste_ops.multinomial(weights, 4, True)
    torch.manual_seed(0)
    same = torch.vmap(lambda w: ste_ops.multinomial(w, 4, True), randomness="same")(weights.expand(3, 5))
    assert torch.equal(same, alone.expand(3, 4))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda w: ste_ops.multinomial(w, 4, True))(weights.expand(3, 5))
    compiled = torch.compile(lambda w: ste_ops.multinomial(w, 4, True), fullgraph=True, backend="aot_eager")
    assert compiled(weights).shape == (4,)
    traced = torch.jit.trace(lambda w: ste_ops.multinomial(w, 4, True), (weights,), check_trace=False)
    assert "multinomial_with_replacement" in str(traced.graph)


def test_a_first_call_in_inference_mode_leaves_later_ones_alone():
    """The tensor that holds the seeds of a thread is made by its first call."""
    weights = torch.rand(5)

    def draw():
        with torch.inference_mode():
            ste_ops.multinomial(weights, 2, True)
        return ste_ops.multinomial(weights, 2, True)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(draw).result(60).shape == (2,)


def test_threads_have_seeds_of_their_own():
    weights = torch.rand(50)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: tuple(ste_ops.multinomial(weights, 20, True).tolist()), range(400)))
    assert len(set(drawn)) == 400
