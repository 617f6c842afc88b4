"""A C++ compiler for tests that ask what a build holds, not how fast its kernels are."""

from __future__ import annotations

import os
from pathlib import Path


def compiler_without_optimization(folder: Path) -> str:
    """The value of CXX, a script in `folder`: a seventh of the time to compile."""
    compiler = folder / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    return str(compiler)
