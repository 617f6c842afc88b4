"""_cuda.abi3.so for ARCHS and what ptxas says of it: minutes of compiling, once for all its tests.

conftest.py starts `python tests/support/cuda_library.py` at low priority when a run begins, and stops it when the whole
run ends (.ci/run starts it even earlier); the tests of the library come last and wait for it here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def _setup_script():
    spec = importlib.util.spec_from_file_location("ste_ops_setup", ROOT / "setup.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


setup_script = _setup_script()
# All that a wheel has, unless a run names fewer.
ARCHS = os.environ.get("STE_OPS_CHECKED_ARCHS") or setup_script.default_archs(setup_script.cuda_home())
NAMED = ARCHS.split(";")  # "9.0", "12.0+PTX"
MACHINES = {"sm_" + arch.removesuffix("+PTX").replace(".", "") for arch in NAMED}


def run(*command: object, **options) -> str:
    command = [str(part) for part in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}"
    return done.stdout


def newest_glibc(library: Path) -> tuple[int, ...]:
    """The newest version of glibc's symbols that a library asks for."""
    versions = re.findall(r"Name: GLIBC_([\d.]+)", run("readelf", "--version-info", "--wide", library))
    return max(tuple(map(int, version.split("."))) for version in versions)


def _digest() -> str:
    digest = hashlib.sha256(f"{torch.__version__} {ARCHS}".encode())
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
            environment = {**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ARCHS, "STE_OPS_PTXAS": "1"}
            environment["STE_OPS_ONLY"] = "_cuda"
            command = ["build_ext", "--build-lib", folder, "--build-temp", folder / "temp"]
            # What ptxas says of a file is said once: a build that goes on where another was stopped adds to the log.
            with open(folder / "log.part", "a") as log:
                command = [sys.executable, "setup.py", *map(str, command)]
                done = subprocess.run(command, stdout=log, stderr=log, cwd=ROOT, env=environment)
            assert done.returncode == 0, (folder / "log.part").read_text()[-8000:]
            # Renamed last: it says that the library is whole.
            (folder / "log.part").rename(log_of(path))
    return path


PID = ROOT / "build" / "cuda_checks" / "pid"


def start() -> None:
    """Builds in a process of its own; a test that finds nothing builds again, and shows what fails."""
    PID.parent.mkdir(parents=True, exist_ok=True)
    command = ["nice", sys.executable, str(Path(__file__).resolve())]
    # A group to be stopped, but no session: Linux shares the cores by session, and nice counts within one.
    build = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=os.setpgrp, cwd=ROOT
    )
    PID.write_text(str(build.pid))


def stop() -> None:
    """Whoever started it: a worker may end long before another one that waits for the library."""
    if PID.exists():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(int(PID.read_text()), signal.SIGTERM)
        PID.unlink(missing_ok=True)


if __name__ == "__main__" and setup_script.cuda_home() is not None:
    build()
    PID.unlink(missing_ok=True)
