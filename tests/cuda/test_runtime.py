"""What csrc/cuda asks of the CUDA runtime, on one that fails, keeps its last error and knows of captures
(tests/emulator/runtime.cpp). Each test is a process of its own: what is allocated is allocated once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

BEFORE = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch, emulator, ste_ops
from ste_ops._library import ops
library = emulator.load()
ops.use("ste_ops_emulated")
def calls():
    import ctypes
    library.emulator_runtime_calls.restype = ctypes.c_char_p
    return library.emulator_runtime_calls().decode().split()
p, seed = torch.rand(100), torch.tensor([1])
"""


def run(*lines: str) -> str:
    command = [sys.executable, "-c", BEFORE + "\n".join(lines)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_error_of_the_runtime_is_raised_once():
    said = run(
        "library.emulator_fail_next(b'cudaHostAlloc')",
        "for operator in ('bernoulli', 'sign', 'bernoulli', 'bernoulli'):",
        "    try:",
        "        getattr(ops, operator)(*((p, seed) if operator == 'bernoulli' else (p, 0, 0.0, 0.0)))",
        "        print(operator, 'runs')",
        "    except RuntimeError as error:",
        "        print(operator, error)",
    )
    assert said.splitlines() == ["bernoulli CUDA error: 2", "sign runs", "bernoulli runs", "bernoulli runs"]


def test_to_ask_for_errors_allocates_nothing():
    """Without a launcher it would, on the current device, where there may be no context yet."""
    said = run(
        "ops.raise_deferred(p)",
        "print(calls())",
        "ops.bernoulli(p, seed), ops.bernoulli(p, seed), ops.raise_deferred(p)",
        "print(calls())",
    )
    assert said.splitlines() == ["[]", "['cudaHostAlloc']"]


def test_the_first_operator_may_come_in_a_capture():
    said = run(
        "library.emulator_capture(1)",
        "ops.bernoulli(p, seed)",
        "print(calls(), library.emulator_capture(0))",
    )
    assert said.splitlines() == ["['cudaHostAlloc'] 1"]


def test_every_call_of_the_runtime_is_checked():
    """By what clears the error; an error that comes back is handed on."""
    sources = {path: path.read_text() for path in (ROOT / "csrc" / "cuda").rglob("*.cu*")}
    checking = {path.name for path, text in sources.items() if re.search(r"STD_CUDA_|\bcudaGetLastError\(\);", text)}
    assert checking == {"runtime.cuh"}
    calls = [line.strip() for text in sources.values() for line in re.findall(r".*\bcuda[A-Z]\w*\(.*", text)]
    alone = [line for line in calls if not line.startswith(("//", "check_runtime("))]
    assert alone == [
        "cudaGetLastError();",
        "cudaHostAlloc(&memory, kMostDevices * sizeof(DeferredRecord), cudaHostAllocPortable | cudaHostAllocMapped);",
    ]
