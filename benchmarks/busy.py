"""Each operator at one and two threads with two spinning processes beside it, as loader workers are, and torch's own.

On such a machine a parallel region waits for its second thread. The mean is what a user pays: a median hides the waits.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import ste_ops

# At two threads a call may take so many times what it takes at one, where that is less than LONG seconds.
BOUND, LONG = 1.5, 2e-3
SPINNING = 2
# Seconds of one round, several times what the scheduler lets a process run.
ROUND = 0.05


@dataclass(frozen=True)
class Call:
    work: str
    ours: Callable[[], object]
    other: Callable[[], object] | None = None


@dataclass(frozen=True)
class Means:
    """Seconds a call at one thread and at two."""

    one: float
    two: float

    @property
    def reached(self) -> bool:
        return self.two <= BOUND * self.one or self.one > LONG


@contextmanager
def spinning() -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(SPINNING)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def calls() -> Iterator[Call]:
    yield from _sampling()
    yield from _elementwise(torch.randn(2**14))
    yield from _elementwise(torch.randn(2**17))
    x, slope = torch.randn(2 * 10**5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    y = ste_ops.sign(x, ste_ops.surrogate.Sigmoid(slope))
    ones = torch.ones_like(y)
    yield Call("learned sigmoid, backward, 200000", lambda: torch.autograd.grad(y, (x, slope), ones, retain_graph=True))


def _sampling() -> Iterator[Call]:
    w, of_rows, logits, particles = torch.rand(1000), torch.rand(1024, 10), torch.rand(64, 50257), torch.rand(10**5)
    table, tree = ste_ops.AliasTable(w), ste_ops.SumTree(w)
    yield Call("AliasTable, n = 1000", lambda: ste_ops.AliasTable(w))
    yield Call("AliasTable.sample, k = 10000", lambda: table.sample(10**4), lambda: w.multinomial(10**4, True))
    for replacement in (True, False):
        named = f"replacement={replacement}"
        yield Call(
            f"multinomial, 1024 x 10, k = 5, {named}",
            lambda replacement=replacement: ste_ops.multinomial(of_rows, 5, replacement),  # type: ignore[misc]
            lambda replacement=replacement: torch.multinomial(of_rows, 5, replacement),  # type: ignore[misc]
        )
        yield Call(
            f"multinomial, 64 x 50257, k = 5, {named}",
            lambda replacement=replacement: ste_ops.multinomial(logits, 5, replacement),  # type: ignore[misc]
            lambda replacement=replacement: torch.multinomial(logits, 5, replacement),  # type: ignore[misc]
        )
    for resample in (ste_ops.systematic_resample, ste_ops.stratified_resample, ste_ops.residual_resample):
        yield Call(f"{resample.__name__}, n = 100000", lambda resample=resample: resample(particles, 10**5))  # type: ignore[misc]
    yield Call("SumTree, n = 100000", lambda: ste_ops.SumTree(particles))
    yield Call("SumTree.sample, k = 1000", lambda: tree.sample(1000))
    for p in (torch.rand(10**4), particles):
        yield Call(
            f"bernoulli_ste, {len(p)}",
            lambda p=p: ste_ops.bernoulli_ste(p),  # type: ignore[misc]
            lambda p=p: torch.bernoulli(p),  # type: ignore[misc]
        )
    yield Call("stochastic_round, 100000", lambda: ste_ops.stochastic_round(particles))
    yield Call("categorical_ste, 1024 x 10", lambda: ste_ops.categorical_ste(of_rows))
    yield Call("subset_ste, 1024 x 10, k = 3", lambda: ste_ops.subset_ste(of_rows, 3))


def _elementwise(x: torch.Tensor) -> Iterator[Call]:
    n, scale = x.numel(), torch.tensor(0.1)
    gradients = [torch.nn.Parameter(part) for part in x.clone().chunk(16)]
    for parameter in gradients:
        parameter.grad = torch.full_like(parameter, 1e-6)
    yield Call(f"sign, {n}", lambda: ste_ops.sign(x), lambda: torch.sign(x))
    yield Call(f"lsq, {n}", lambda: ste_ops.lsq(x, scale, -8, 7), lambda: (x / scale).clamp(-8, 7).round() * scale)
    yield Call(f"xnor_weight, 64 x {n // 64}", lambda: ste_ops.xnor_weight(x.view(64, -1)))
    yield Call(
        f"clip_grad_norm_, 16 x {n // 16}",
        lambda: ste_ops.clip_grad_norm_(gradients, 1.0),
        lambda: torch.nn.utils.clip_grad_norm_(gradients, 1.0),
    )


def means(call: Callable[[], object], seconds: float) -> Means:
    """From rounds at one thread and at two, which take turns."""
    before = torch.get_num_threads()
    spent, calls = {1: 0.0, 2: 0.0}, {1: 0, 2: 0}
    try:
        while spent[1] + spent[2] < seconds:
            for threads in spent:
                torch.set_num_threads(threads)
                call()  # the threads of a round before may still look out for work
                start = time.perf_counter()
                while (passed := time.perf_counter() - start) < ROUND:
                    call()
                    calls[threads] += 1
                spent[threads] += passed
    finally:
        torch.set_num_threads(before)
    return Means(spent[1] / calls[1], spent[2] / calls[2])


def table(seconds: float = 2.0) -> str:
    """Measures every call for about so long."""
    lines = [
        "# A busy machine",
        "",
        f"`python -m benchmarks --busy`: means at 1 and 2 threads beside {SPINNING} spinning processes. At 2 threads a",
        f"call takes at most {BOUND} times what it takes at 1, unless that is over {LONG * 1e3:g} ms.",
        "",
        "| work | ours, 1 | ours, 2 | torch, 1 | torch, 2 | reached |",
        "|---|---|---|---|---|---|",
    ]
    with spinning():
        for call in calls():
            ours = means(call.ours, seconds)
            columns = [ours.one, ours.two]
            if call.other is not None:
                torchs = means(call.other, seconds)
                columns += [torchs.one, torchs.two]
            cells = [f"{mean * 1e3:.3f} ms" for mean in columns] + [""] * (4 - len(columns))
            lines.append("| " + " | ".join([call.work, *cells, "yes" if ours.reached else "**no**"]) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"
