"""Where the proof runs: the GPU, its driver, torch, the compiler; and what it is of: the commit, the sources."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# What decides how a stage ends.
SOURCES = ("csrc", "ste_ops", "tests", "benchmarks", "setup.py")

# In a process of its own: the Python that runs the stages need not be the one that runs this program.
PROBE = """
import importlib.util, json, platform, sys, torch
spec = importlib.util.spec_from_file_location("ste_ops_setup", sys.argv[1])
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)
reason, devices = "", []
try:
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif not torch.cuda.is_available():
        reason = "torch.cuda.is_available() is False"
        torch.cuda.init()
except Exception as error:
    reason += ": " + (str(error).strip() or type(error).__name__).splitlines()[0]
if not reason:
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
packages = ["hypothesis", "matplotlib", "ninja", "pybind11", "pytest", "sklearn", "tqdm", "triton", "xdist"]
print(json.dumps({
    "python": platform.python_version(),
    "torch": torch.__version__,
    "torch_cuda": torch.version.cuda,
    "no_gpu": reason,
    "devices": [d.name for d in devices],
    "archs": sorted({f"{d.major}.{d.minor}" for d in devices}),
    "memory": [d.total_memory for d in devices],
    "cuda_home": setup.cuda_home(),
    "default_archs": setup.DEFAULT_ARCHS,
    "packages": [name for name in packages if importlib.util.find_spec(name)],
}))
"""


@dataclass(frozen=True)
class Machine:
    python: str
    torch: str
    torch_cuda: str | None
    no_gpu: str  # why there is none, or ""
    devices: list[str]
    archs: list[str]
    memory: list[int]
    cuda_home: str | None
    default_archs: str
    packages: list[str]

    def about(self, commit: str, sources: str) -> dict[str, Any]:
        """What a result is worth nothing without."""
        return {
            "device": ", ".join(self.devices),
            "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
            "torch": self.torch,
            "nvcc": _nvcc(self.cuda_home),
            "python": self.python,
            "date": datetime.date.today().isoformat(),
            "commit": commit,
            "sources": sources,
        }


def probe(python: str) -> Machine:
    command = [python, "-c", PROBE, str(ROOT / "setup.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise SystemExit(f"gpu-proof: {python} must be a Python with torch, got: {said}; name another by PYTHON=")
    return Machine(**json.loads(done.stdout.splitlines()[-1]))


def commit(given: str | None) -> str:
    """From git, with a word where sources differ from it; a copy without .git has to be told."""
    named = given or os.environ.get("STE_OPS_COMMIT")
    if named:
        return named
    if not (ROOT / ".git").exists():  # a repository around the copy would answer for it
        return "unknown"
    found = _said("git", "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "status", "--porcelain", "--", *SOURCES)
    return found + ("+changes" if changed and found != "unknown" else "")


def sources(wheel: Path | None) -> str:
    """A digest of what is proved, and of the wheel. A commit says too little (a copy may have no .git) and too much (it
    may have changed words alone)."""
    digest = hashlib.sha256(wheel.read_bytes() if wheel else b"")
    paths = [path for name in SOURCES for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.is_file()]
    for path in sorted(paths):
        name = path.relative_to(ROOT)
        made = {"__pycache__", "results"}.intersection(name.parts) or path.suffix in (".so", ".pyc")
        if not made:
            digest.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _nvcc(home: str | None) -> str:
    lines = _said(str(Path(home, "bin", "nvcc")), "--version").splitlines() if home else []
    return next((line.split("release ")[1] for line in lines if "release " in line), "none")


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
