"""The devices every operator test runs on: the CPU kernels, the CUDA sources emulated on the CPU, and CUDA itself."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

import pytest
import torch

import ste_ops
from ste_ops._library import ops

DEVICES = ["cpu", "emulated", "cuda"]


def _reason_without_cuda() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device is present"
    return "" if ste_ops.build_info()["cuda"] else ste_ops.build_info()["cuda_reason"]


@contextlib.contextmanager
def emulated_kernels() -> Iterator[None]:
    """Points every operator at the emulated CUDA kernels, which take CPU tensors."""
    from emulator import load

    load()
    torch._dynamo.reset()
    ops.use("ste_ops_emulated")
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # an error that nobody asked for is not the next test's
            ops.raise_deferred(torch.empty(0))
        ops.use("ste_ops")
        torch._dynamo.reset()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where to create tensors; the operators run on the backend that the parameter names."""
    if request.param == "emulated":
        with emulated_kernels():
            yield "cpu"
    elif request.param == "cuda":
        reason = _reason_without_cuda()
        if reason:
            pytest.skip(reason)
        yield "cuda"
    else:
        yield "cpu"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped: a line a reason, where pytest would print one for each test."""
    reasons = collections.Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} x {reason}")
