"""The devices every operator test runs on: the CPU kernels, the CUDA sources emulated on the CPU, and CUDA itself."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: a thread of one that spins while it waits keeps the others from theirs. Read with torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import emulator
import torch

import ste_ops

DEVICES = ["cpu", "emulated", "cuda"]


if emulator.CHECK_EVERYTHING:
    emulator.check(True)  # before a test module makes a tensor


def _reason_without_cuda() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device is present"
    return "" if ste_ops.build_info()["cuda"] else ste_ops.build_info()["cuda_reason"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where to create tensors; the operators run on the backend that the parameter names."""
    if request.param == "emulated":
        with emulator.emulated_kernels():
            yield "cpu"
    elif request.param == "cuda":
        reason = _reason_without_cuda()
        if reason:
            # make gpu-proof must not take for a proof what was skipped because the library had no kernels.
            (pytest.fail if os.environ.get("STE_OPS_NEED_CUDA") == "1" else pytest.skip)(reason)
        yield "cuda"
    else:
        yield "cpu"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # As torch.manual_seed, which takes 2 ms to note where it was called from for every kind of device that is absent.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


# A test may start pytest again, whose end is not that of the run.
_nested = "PYTEST_CURRENT_TEST" in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for the CUDA library comes last, and beside other tests where there are several workers."""
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addressed:
        raise pytest.UsageError(f"an address in its name has another one in each worker: {addressed[0]}")
    items.sort(key=_waits_for_the_cuda_library)


def _waits_for_the_cuda_library(item: pytest.Item) -> bool:
    return item.path.parts[-2:] == ("cuda", "test_build.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts to compile the CUDA library where a test asks for it, at low priority beside the other tests."""
    if getattr(session.config, "workerinput", {}).get("workerid", "gw0") != "gw0" or session.config.option.collectonly:
        return
    if any(_waits_for_the_cuda_library(item) for item in session.items):
        from support import cuda_library

        cuda_library.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and not _nested:
        from support import cuda_library

        cuda_library.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped: a line a reason, where pytest would print one for each test."""
    reasons = collections.Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} x {reason}")
