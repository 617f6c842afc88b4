"""Ratios of medians from interleaved rounds: on a machine that others use too, nothing else means anything."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer


@dataclass(frozen=True)
class Row:
    """One promise: `ours` and `other` do the same work, and `bound` limits the ratio of their times.

    With `at_most` the ratio is ours / other and must not exceed the bound; else it is other / ours, how many times
    faster ours is, and must reach it. `weight` multiplies the ratio, where the two move different numbers of bytes.
    """

    work: str
    against: str
    ours: Callable[[], object]
    other: Callable[[], object]
    bound: float
    at_most: bool
    weight: float = 1.0
    rounds: int = 151


@dataclass(frozen=True)
class Count:
    """A promise about a number that is not a time, such as bytes saved for backward."""

    work: str
    against: str
    value: float
    bound: float


@dataclass(frozen=True)
class Result:
    work: str
    against: str
    ours_us: float | None
    other_us: float | None
    ratio: float
    target: str
    reached: bool


def keep_memory() -> None:
    """Lets glibc keep what is freed: it returns blocks of these sizes to the kernel, and both sides of a ratio would be
    timed on page faults, several times what the kernels take."""
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_mmap_max, 0)


def _clock(function: Callable[[], object], device: str) -> Callable[[int], float]:
    """Seconds a call, of so many calls: on a GPU between two events of its own, elsewhere torch's timer."""
    if device != "cuda":
        timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
        return lambda calls: timer.timeit(calls).mean

    def between_events(calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    return between_events


def medians(
    functions: Sequence[Callable[[], object]], rounds: int, device: str = "cpu", budget: float = float("inf")
) -> list[float]:
    """Seconds a call of each, from rounds in which they take turns; from three where more exceed `budget` seconds."""
    clocks = [_clock(function, device) for function in functions]
    for clock in clocks:
        clock(1)  # loads what it runs
    single = [clock(1) for clock in clocks]
    rounds = int(max(min(rounds, 3), min(rounds, budget / max(sum(single), 1e-7))))
    # About 1 ms a sample: long against the clock, short against what else the machine does, and neither side finds all
    # its memory still in the cache.
    calls = [max(1, int(0.001 / max(seconds, 1e-7))) for seconds in single]
    samples: list[list[float]] = [[] for _ in clocks]
    for _ in range(rounds):
        for clock, n, times in zip(clocks, calls, samples, strict=True):
            times.append(clock(n))
    return [statistics.median(times) for times in samples]


def measure(row: Row | Count, device: str = "cpu") -> Result:
    if isinstance(row, Count):
        return Result(row.work, row.against, None, None, row.value, f"<= {row.bound:g}", row.value <= row.bound)
    ours, other = medians([row.ours, row.other], row.rounds, device)
    ratio = row.weight * (ours / other if row.at_most else other / ours)
    reached = ratio <= row.bound if row.at_most else ratio >= row.bound
    target = f"{'<=' if row.at_most else '>='} {row.bound:g}"
    return Result(row.work, row.against, ours * 1e6, other * 1e6, ratio, target, reached)


Group = Callable[[str, bool], Iterator[Row | Count]]
