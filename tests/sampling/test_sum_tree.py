"""SumTree: equal to the reference, a function of its weights alone, right in its statistics."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from fractions import Fraction

import emulator
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chi_square import fits
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops._functions.sampling.sum_tree import FANOUT, tree_levels
from ste_ops._library import ops

FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def weights_with_specials(n: int, dtype: torch.dtype) -> Tensor:
    """Several magnitudes, zeros of both signs, a denormal, and one weight beside which the others are small."""
    w = torch.rand(n, dtype=torch.float64) ** 8
    w[::5] = 0.0
    w[1::7] = -0.0
    w = w.to(dtype)
    w[n // 2] = torch.finfo(dtype).smallest_normal / 4
    w[n // 3] = torch.finfo(dtype).max
    return w


def same_tree(a: ste_ops.SumTree, b: ste_ops.SumTree) -> bool:
    return torch.equal(a.weights(), b.weights()) and torch.equal(a._nodes, b._nodes)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 257, 5000])
def test_equals_reference(device: str, n: int) -> None:
    for dtype in FLOATING:
        w = weights_with_specials(n, dtype)
        tree, expected = ste_ops.SumTree(w.to(device)), reference.SumTree(w)
        for _ in range(2):
            for seed, start in ((0, 0), (2**64 - 1, 17)):
                assert torch.equal(tree.sample_at(seed, start, 100).cpu(), expected.sample_at(seed, start, 100))
            assert tree.total().item() == expected.total().item()
            if n < 5000:
                expected_p = expected.probabilities()
                assert torch.allclose(tree.probabilities().cpu(), expected_p, rtol=1e-15, atol=1e-310)
            index, changed = torch.randint(0, n, (40,)), torch.rand(40).to(dtype)  # with duplicates
            changed[5:20:3] = 0
            tree.update(index.to(device), changed.to(device))
            expected.update(index, changed)
            assert torch.equal(tree.weights().cpu(), expected.weights())


def test_no_sequence_of_updates_leaves_a_trace(device: str) -> None:
    """Few and many changes at once, to and fro over all magnitudes: always the tree that is built anew."""
    n = 1000
    tree = ste_ops.SumTree(torch.zeros(n, device=device, dtype=torch.float64))
    for count in (1, 3, 40, 62, 63, 64, 700, 3000, 0, 1):
        index = torch.randint(0, n, (count,), device=device)
        scale = torch.randint(-300, 300, (count,), device=device).to(torch.float64)
        tree.update(index, torch.rand(count, device=device, dtype=torch.float64) * 10.0**scale)
        assert same_tree(tree, ste_ops.SumTree(tree.weights()))
    tree.update(torch.arange(n, device=device), 0.0)
    assert tree.total() == 0
    assert same_tree(tree, ste_ops.SumTree(torch.zeros(n, device=device, dtype=torch.float64)))


def test_of_equal_indices_the_last_one_counts(device: str) -> None:
    tree = ste_ops.SumTree(torch.ones(40, device=device))
    index = torch.randint(0, 40, (5000,), device=device)
    values = torch.rand(5000, device=device)
    tree.update(index, values)
    last = {int(i): float(v) for i, v in zip(index, values, strict=True)}
    assert tree.weights().tolist() == [last[i] for i in range(40)]


def test_large_updates_and_any_number_of_threads(restore_threads: None) -> None:
    n = 100_003
    w, index, values = torch.rand(n), torch.randint(0, n, (40_000,)), torch.rand(40_000)
    few = slice(0, 3000)
    draws = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        tree = ste_ops.SumTree(w)
        tree.update(index, values)
        tree.update(index[few], values[few] * 2)
        assert same_tree(tree, ste_ops.SumTree(tree.weights()))
        draws.append(tree.sample_at(3, 0, 20_000))
        draws.append(torch.cat([tree.sample_at(3, 0, 7777), tree.sample_at(3, 7777, 20_000 - 7777)]))
    assert all(torch.equal(drawn, draws[0]) for drawn in draws)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1e300) | st.sampled_from([0.0, 5e-324, 1e-310, 1.7e308]), min_size=1, max_size=40))
def test_no_weight_is_lost(weights: list[float]) -> None:
    """Each is drawn with its share, or with a little more where its neighbours are beyond comparison."""
    tree = ste_ops.SumTree(torch.tensor(weights, dtype=torch.float64))
    assert tree.total().item() == pytest.approx(
        float(min(sum(map(Fraction, weights)), Fraction(2) ** 1023)), rel=1e-15
    ) or (sum(map(Fraction, weights)) >= 2**1023)
    if not any(weights):
        return
    exact = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    for p, share in zip(tree.probabilities().tolist(), exact, strict=True):
        assert (p == 0) == (share == 0)
        assert abs(p - share) <= share * 2**-50 + 2.0**-56


def test_sums_beyond_the_dtype(device: str) -> None:
    tree = ste_ops.SumTree(torch.full((1000,), torch.finfo(torch.float64).max, dtype=torch.float64, device=device))
    assert tree.total() == float("inf")
    assert tree.probabilities().tolist() == pytest.approx([1e-3] * 1000, rel=1e-14)
    half = ste_ops.SumTree(torch.full((1000,), 65504.0, dtype=torch.float16, device=device))
    assert half.total() == 65504.0 * 1000


def test_statistics() -> None:
    """After updates, of weights over thirty orders of magnitude; a bias of a fifth fails."""
    n = 2000
    tree = ste_ops.SumTree(torch.rand(n, dtype=torch.float64))
    w = torch.rand(n, dtype=torch.float64) * 10.0 ** torch.randint(-30, 0, (n,))
    w[::3] = 0
    order = torch.randperm(n)
    for part in order.split(150):
        tree.update(part, w[part])
    assert torch.allclose(tree.probabilities(), w / w.sum(), rtol=1e-13, atol=2.0**-56)
    assert fits(tree.sample(200_000), w)
    biased = torch.where(torch.arange(n) % 2 == 0, w, 1.2 * w)
    tree.update(torch.arange(n), biased)
    assert not fits(tree.sample(200_000), w)


def test_zero_weights_are_never_drawn(device: str) -> None:
    w = torch.ones(999, device=device)
    w[::2] = 0
    tree = ste_ops.SumTree(w)
    tree.update(torch.arange(1, 999, 4, device=device), 0.0)
    assert (tree.sample(20_000) % 4 == 3).all()


def test_behaves_as_a_sequence(device: str) -> None:
    tree = ste_ops.SumTree(torch.arange(5, device=device))
    assert (len(tree), tree.dtype, tree.device.type) == (5, torch.float64, torch.device(device).type)
    assert repr(tree) == f"SumTree(n=5, dtype=torch.float64, device='{tree.device}')"
    tree[1] = 7
    tree[torch.tensor([[0, 2], [3, 3]], device=device)] = torch.tensor([[1.0, 2.0], [9.0, 4.0]], device=device)
    assert tree.weights().tolist() == [1, 7, 2, 4, 4]
    assert tree[1] == 7
    assert tree[torch.tensor([4, 0], device=device)].tolist() == [4, 1]
    tree[1] += 1.0
    assert tree[1:3].tolist() == [8, 2]
    given = torch.rand(9, device=device)
    tree = ste_ops.SumTree(given)
    tree.weights().fill_(3.0)
    given.fill_(2.0)
    assert not (tree.weights() == 2).any()
    assert same_tree(tree, ste_ops.SumTree(tree.weights()))


def test_copies_are_trees_of_their_own(device: str) -> None:
    w = torch.rand(300, device=device)
    tree = ste_ops.SumTree(w)
    others = [
        copy.copy(tree),
        ste_ops.SumTree(torch.ones_like(w)),
    ]
    others[-1].load_state_dict(tree.state_dict())
    if not emulator.CHECK_EVERYTHING:  # memory that torch's allocator is not asked for
        others += [copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))]
    assert tree.to(device) is tree
    tree.update(0, 100.0)
    for other in others:
        assert same_tree(other, ste_ops.SumTree(w))
        other.update(torch.tensor([5], device=device), 3.0)
        assert same_tree(other, ste_ops.SumTree(other.weights()))
    assert same_tree(tree, ste_ops.SumTree(tree.weights()))


def test_draws_follow_the_generator(device: str) -> None:
    tree = ste_ops.SumTree(torch.rand(100, device=device))
    draw = lambda seed: tree.sample(50, generator=torch.Generator(device).manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    seed = torch.tensor([11], device=device)
    assert torch.equal(tree.sample_at(seed, 0, 9), tree.sample_at(11, 0, 9))


BAD_WEIGHTS = [
    ([1.0, -0.5], r"weights must be non-negative, got -0\.5 at index 1"),
    ([float("nan"), -1.0], "weights must be finite and non-negative, got nan at index 0"),
    ([0.0, float("inf")], "weights must be finite and non-negative, got inf at index 1"),
    ([[1.0]], r"weights must be 1-D, got shape \(1, 1\)"),
    ([], r"weights must not be empty, got shape \(0,\)"),
    ([1j], "weights must be float64, float32, .*, got torch.complex64"),
]


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS)
def test_bad_weights_are_refused(device: str, weights: object, message: str) -> None:
    with pytest.raises(ValueError, match="^SumTree: " + message):
        ste_ops.SumTree(torch.tensor(weights, device=device))


BAD_UPDATES = [
    ([3, 10, -1], [1.0, 1.0, 1.0], r"indices must be in \[0, 10\), got 10 at position 1"),
    ([3, -1], [1.0, 1.0], r"indices must be in \[0, 10\), got -1 at position 1"),
    ([3, 4], [1.0, -2.0], r"weights must be non-negative, got -2\.0 at index 1"),
    ([3, 4, 10], [float("nan"), 1.0, 1.0], "weights must be finite and non-negative, got nan at index 0"),
    ([3, 4], [1.0, 1e39], "weights must be finite and non-negative, got inf at index 1"),
]


def refuses(device: str, message: str, call: Callable[[], object]) -> None:
    """At once on the CPU, in a later call elsewhere."""
    if device == "cpu" and ops.namespace == "ste_ops":
        with pytest.raises(RuntimeError, match=f"^{message}"):
            call()
        return
    call()
    with pytest.raises(RuntimeError, match=f"^{message}.*in an earlier call"):
        ste_ops.check_deferred_errors(device)


@pytest.mark.parametrize(("index", "values", "message"), BAD_UPDATES)
def test_a_bad_update_writes_nothing(device: str, index: list[int], values: list[float], message: str) -> None:
    tree = ste_ops.SumTree(torch.rand(10, device=device))
    before, nodes = tree.weights(), tree._nodes.clone()
    arguments = torch.tensor(index, device=device), torch.tensor(values, device=device, dtype=torch.float64)
    refuses(device, "SumTree.update: " + message, lambda: tree.update(*arguments))
    assert torch.equal(tree.weights(), before)
    assert torch.equal(tree._nodes, nodes)
    assert (tree.sample(9) >= 0).all()


def test_bad_arguments_are_refused(device: str) -> None:
    tree = ste_ops.SumTree(torch.ones(10, device=device))
    i = torch.tensor([1, 2], device=device)
    for arguments, error, message in [
        ((i.to(torch.float32), 1.0), TypeError, "indices must be integers, got torch.float32"),
        ((i > 1, 1.0), TypeError, "indices must be integers, got torch.bool"),
        ((i, torch.ones(3, device=device)), ValueError, r"weights must have the shape of indices, \(2,\), got \(3,\)"),
        ((i.to("meta"), 1.0), ValueError, "indices must be on the tree's device"),
    ]:
        with pytest.raises(error, match="^SumTree.update: " + message):
            tree.update(*arguments)
    tree.update(i.to(torch.int32), torch.ones(1, device=device, dtype=torch.float16))
    tree.update(i[:0], torch.ones(0, device=device))
    for call, error, message in [
        (lambda: tree.sample(0), ValueError, "SumTree.sample: num_samples must be >= 1, got 0"),
        (lambda: tree.sample_at(0, -1, 1), ValueError, "SumTree.sample_at: start must be >= 0, got -1"),
        (lambda: tree.load_state_dict({"weights": torch.ones(9)}), ValueError, "SumTree.load_state_dict: weights must"),
        (lambda: tree.load_state_dict({"position": 1}), ValueError, "SumTree.load_state_dict: expected a state with"),
        (lambda: ste_ops.SumTree([1.0]), TypeError, "SumTree: weights must be a tensor, got list"),
    ]:
        with pytest.raises(error, match="^" + message):
            call()
    tree.update(torch.arange(10, device=device), 0.0)
    refuses(device, "SumTree.sample: weights must have a positive sum, got only zeros", lambda: tree.sample(300))
    with pytest.raises(RuntimeError, match="nodes must be those that sum_tree made for 9 weights"):
        ops.sum_tree_update_(torch.ones(9, device=device), torch.zeros(9, device=device).long(), i, torch.ones(2))


def test_layouts(device: str) -> None:
    w, index = torch.rand(100, device=device), torch.arange(100, device=device)
    tree = ste_ops.SumTree(w[::3])
    assert same_tree(tree, ste_ops.SumTree(w[::3].contiguous()))
    tree.update(index[:20:2], torch.rand(10, 2, device=device)[:, 1])
    assert same_tree(tree, ste_ops.SumTree(tree.weights()))


def test_the_shape_of_the_nodes(device: str) -> None:
    # The fake kernel knows it, and probabilities() reads the nodes by it.
    for n in (1, 16, 17, 256, 257, 70_000):
        _, nodes, _ = ops.sum_tree(torch.zeros(n, device=device))
        counts = tree_levels(n)
        assert nodes.numel() == sum(FANOUT * (count + -(-count // FANOUT)) for count in counts)


def test_compiles_whole(device: str) -> None:
    def step(tree_weights: Tensor, nodes: Tensor, index: Tensor, values: Tensor, seed: Tensor) -> Tensor:
        ops.sum_tree_update_(tree_weights, nodes, index, values * 2)
        return ops.sum_tree_sample(nodes, tree_weights.shape[0], seed, 0, 50) + 1

    w = torch.rand(100, device=device)
    (_, nodes, _), expected = ops.sum_tree(w), ste_ops.SumTree(w)
    index, values = torch.tensor([3, 99, 3], device=device), torch.tensor([1.0, 5.0, 2.0], device=device)
    seed = torch.tensor([4], device=device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    drawn = compiled(w, nodes, index, values, seed)
    expected.update(index, values * 2)
    assert torch.equal(nodes, expected._nodes)
    assert torch.equal(drawn, expected.sample_at(4, 0, 50) + 1)
