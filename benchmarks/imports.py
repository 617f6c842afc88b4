"""What `import ste_ops` takes beside torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Count

_SCRIPT = """
import time, torch
start = time.process_time()
import ste_ops
print(time.process_time() - start)
"""


def rows(device: str, quick: bool) -> Iterator[Count]:
    """The least of a few processes: the first writes bytecode."""
    seconds = [_seconds() for _ in range(2 if quick else 5)]
    yield Count("import ste_ops, seconds of one core", "beside torch", min(seconds), 0.25)


def _seconds() -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command, folder = [sys.executable, "-c", _SCRIPT], Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    return float(done.stdout)
