"""What an application does to a library: many threads at once, processes of both kinds, errors by the thousand."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.operator_arguments import ARGUMENTS
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, TensorDataset

import ste_ops
from ste_ops._library import ops

# `make fuzz` sets it to 5,000 and has a hundred thousand errors.
FAILURES = 20 * int(os.environ.get("STE_OPS_FUZZ", "250"))


def _outcome(name: str, arguments: tuple[object, ...]) -> list[Tensor]:
    """What an operator returns and what it leaves in the tensors that it may write to."""
    own = tree_map_only(Tensor, lambda t: t.clone() if t.numel() else t, arguments)
    out = getattr(ops, name)(*own)
    return [leaf for leaf in tree_leaves((out, own)) if isinstance(leaf, Tensor)]


def test_every_operator_on_many_threads_at_once() -> None:
    calls = [(name, arguments) for name in sorted(ARGUMENTS) for arguments in ARGUMENTS[name]("cpu")]
    alone = [_outcome(*call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            together = list(pool.map(lambda call: _outcome(*call), calls))
            for call, received, expected in zip(calls, together, alone, strict=True):
                for ours, theirs in zip(received, expected, strict=True):
                    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), call[0]


LONG: dict[str, Callable[[Tensor], object]] = {
    "sign": lambda x: ste_ops.sign(x),
    "norm": lambda x: ste_ops.get_total_norm([x] + [x[i:] for i in range(40)]),
    "table": lambda x: ste_ops.AliasTable(x),
    "draws": lambda x: ste_ops.multinomial(x, 4),
}


@pytest.mark.parametrize("name", LONG)
def test_python_runs_while_a_kernel_does(name: str) -> None:
    x = torch.rand(2**24)
    started, finished = threading.Event(), []

    def work() -> None:
        started.set()
        LONG[name](x)
        finished.append(True)

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    steps = 0
    while not finished:
        steps += 1
    worker.join()
    assert steps > 10_000  # with the lock held there would be a few, before and after the call


class _Signs(TensorDataset):
    """A dataset whose items come from an operator: it runs in the worker."""

    def __getitem__(self, index: int) -> Tensor:
        values = ste_ops.sign(self.tensors[0][index])
        assert ste_ops.multinomial(torch.rand(100), 5).shape == (5,)
        return values


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(start: str) -> None:
    x = torch.randn(40, 3000)
    ste_ops.sign(torch.randn(200_000))  # the parent has used its threads: a forked child must not wait for them
    sampler = ste_ops.data.WeightedRandomSampler(torch.ones(40), 40, replacement=False)
    loader = DataLoader(_Signs(x), batch_size=10, sampler=sampler, num_workers=2, multiprocessing_context=start)
    batches = list(loader)
    assert torch.cat(batches).shape == (40, 3000)
    assert torch.equal(torch.cat(batches).sum(0), ste_ops.sign(x).sum(0))


def _in_a_child(queue: multiprocessing.Queue, start: str = "spawn") -> None:
    if start == "fork":
        # GNU OpenMP does not survive a fork, for any operator of torch: a forked child has one thread, as the workers
        # of a DataLoader do.
        torch.set_num_threads(1)
    table = ste_ops.AliasTable(torch.arange(1.0, 300_000.0))
    queue.put(table.sample_at(1, 0, 5).tolist())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_draws_what_its_parent_draws(start: str) -> None:
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue, start))
    mine: multiprocessing.Queue = multiprocessing.Queue()
    _in_a_child(mine)
    child.start()
    assert queue.get(timeout=120) == mine.get(timeout=10)
    child.join()
    assert child.exitcode == 0


def _refused() -> list[tuple[type[Exception], Callable[[], object]]]:
    x, integers, seed = torch.randn(300), torch.arange(300), torch.zeros(1, dtype=torch.int64)
    leaf = torch.zeros(300, requires_grad=True)
    leaf.grad = torch.full((300,), torch.nan)
    bad = torch.tensor([1.0] * 299 + [-1.0])
    return [
        (RuntimeError, lambda: ops.sign(integers, 0, 1.0, 0.0)),
        (TypeError, lambda: ste_ops.sign(integers)),
        (RuntimeError, lambda: ops.binarize_backward(x, torch.zeros(3, dtype=torch.uint8))),
        (RuntimeError, lambda: ste_ops.clip_grad_norm_([leaf], 1.0, error_if_nonfinite=True)),
        (ValueError, lambda: ste_ops.AliasTable(bad)),
        (RuntimeError, lambda: ste_ops.multinomial(bad, 2, True)),
        (RuntimeError, lambda: ste_ops.multinomial(bad, 2)),
        (RuntimeError, lambda: ste_ops.bernoulli_ste(x + 2)),
        (RuntimeError, lambda: ops.alias_sample(integers, integers, seed, 0, 1)),
    ]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
def test_errors_leak_nothing() -> None:
    calls = _refused()

    def fail(times: int) -> None:
        for _ in range(times // len(calls)):
            for kind, call in calls:
                with pytest.raises(kind):
                    call()

    fail(1000)
    gc.collect()
    before = _resident()
    fail(FAILURES)
    gc.collect()
    # A leak of one of the 300-element tensors at each error would be 1.2 KB, 6 MB over 5,000.
    assert _resident() - before < 2_000_000
