"""_cuda.abi3.so for the default archs and what ptxas says of it: minutes of compiling, once for all its tests.

conftest.py starts `python tests/cuda_library.py` at low priority when a run begins; the tests of the library come last
and wait for it here.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def _setup_script():
    spec = importlib.util.spec_from_file_location("ste_ops_setup", ROOT / "setup.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


setup_script = _setup_script()


def run(*command: object, **options) -> str:
    command = [str(part) for part in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}"
    return done.stdout


def _digest() -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for path in [ROOT / "setup.py", *sorted((ROOT / "csrc").rglob("*"))]:
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def log_of(library: Path) -> Path:
    return library.parents[1] / "log"


def build() -> Path:
    """The library, kept under build/ until a source changes; processes that want it take turns."""
    folder = ROOT / "build" / "cuda_checks" / _digest() / "library"
    path = folder / "ste_ops" / "_cuda.abi3.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log_of(path).exists():
            archs = setup_script.DEFAULT_ARCHS
            environment = {**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": archs, "STE_OPS_PTXAS": "1"}
            command = ["build_ext", "--build-lib", folder, "--build-temp", folder / "temp"]
            output = run(sys.executable, "setup.py", *command, cwd=ROOT, env=environment)
            # Written last and at once: it says that the library is whole.
            (folder / "log.part").write_text(output)
            (folder / "log.part").rename(log_of(path))
    return path


if __name__ == "__main__" and setup_script.cuda_home() is not None:
    build()
