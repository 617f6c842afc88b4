"""A pybind11 module over csrc/core, so that NumPy and published vectors can check the mathematics without torch.

`bind_<family>.cpp` holds what a family of csrc/core shows to Python, in a submodule of that name. A new file is found
here by its name; nothing else lists it.
"""

from __future__ import annotations

import fcntl
import functools
import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[1]
_SANITIZED = os.environ.get("STE_OPS_SANITIZE", "").split()  # make sanitize


@functools.cache
def load() -> ModuleType:
    """Builds the module into build/native/<torch> where a source or a header changed, and imports it.

    Processes take turns by a lock of ours: torch's own stays behind, for ever, when its holder is killed.
    """
    build = _ROOT / "build" / "native" / torch.__version__
    build.mkdir(parents=True, exist_ok=True)
    # cpp_extension runs ninja by its name; in a virtual environment that is not activated it lies beside Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    sources = [_FOLDER / "module.cpp", *sorted(_FOLDER.glob("bind_*.cpp"))]
    with open(build / "turn", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        (build / "lock").unlink(missing_ok=True)
        return _build(build, sources)


def _build(build: Path, sources: list[Path]) -> ModuleType:
    return cpp_extension.load(
        "ste_ops_native",
        [str(path) for path in sources],
        extra_include_paths=[str(_ROOT / "csrc")],
        # As setup.py compiles the kernels: no multiply-add that the source does not spell out. No optimization beyond
        # -O1, which halves the build.
        extra_cflags=["-O1", "-g0", "-Wall", "-ffp-contract=off", "-fvisibility=hidden", *_SANITIZED],
        extra_ldflags=_SANITIZED,
        build_directory=str(build),
    )
