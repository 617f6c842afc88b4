"""The CPU kernels, the emulated CUDA kernels and the native unit tests under AddressSanitizer and UBSan.

    python tools/sanitize.py                      every test that loads compiled code in its own process
    python tools/sanitize.py tests/clip           a part; what follows goes to pytest

It builds in a copy of the checkout, build/sanitize/tree, so that the fast libraries stay as they are, and starts Python
with the sanitizers' libraries loaded first. The first fault ends the process that made it: a test fails, or its worker
crashes, and the report lies in build/sanitize/reports. Exits with 1 if a test failed or a report was written.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "sanitize"
TREE, REPORTS = FOLDER / "tree", FOLDER / "reports"

# In UBSan's list of what is undefined, floats that do not fit an integer are not; here they would be a fault.
FLAGS = "-fsanitize=address,undefined,float-cast-overflow -fno-omit-frame-pointer"
# They compile something without the sanitizers, start other programs, or look at the sources alone: what they call of
# ours the others call too.
LEFT_OUT = ["repository", "programs", "clip/test_distributed.py", "cuda/test_build.py"]
LEFT_OUT += ["operators/test_compile.py", "operators/test_peers.py"]
# What the emulator's own checker and counter find is not looked for in this build (tests/emulator/__init__.py).
LEFT_OUT += ["cuda/test_bytes.py", "emulator/test_checks.py", "emulator/test_counts.py"]
# A freed block stays with AddressSanitizer for a while, so that a process grows.
DESELECTED = ["tests/operators/test_robustness.py::test_errors_leak_nothing"]


def tracked() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def copy_tree() -> None:
    """What has changed alone, so that a second run compiles that alone."""
    files = tracked()
    for path in files:
        target = TREE / path
        if not target.exists() or not filecmp.cmp(ROOT / path, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target)
    for path in TREE.rglob("*.py"):
        if path.relative_to(TREE) not in files and "build" not in path.relative_to(TREE).parts:
            path.unlink()


def runtime(name: str) -> str:
    command = [os.environ.get("CXX", "g++").split()[-1], f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, str]:
    reports = f"log_path={REPORTS}/report"
    return {
        **os.environ,
        "STE_OPS_SANITIZE": FLAGS,
        "FORCE_CUDA": "0",
        # A test writes to read-only memory and looks for the signal; elsewhere that ends the process, without a report.
        "ASAN_OPTIONS": f"detect_leaks=0:handle_segv=0:{reports}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:{reports}",
    }


def main() -> int:
    asked = sys.argv[1:]
    copy_tree()
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(build, cwd=TREE, env=environment(), check=True)
    command = [sys.executable, "-m", "pytest", "-q"]
    if not any(argument.startswith("tests") for argument in asked):
        command += ["tests", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]
    command += [f"--deselect={name}" for name in DESELECTED]
    preloaded = os.pathsep.join(map(runtime, ("libasan.so", "libubsan.so")))
    done = subprocess.run([*command, *asked], cwd=TREE, env={**environment(), "LD_PRELOAD": preloaded})
    # A test runs the emulator on ucontext, of which AddressSanitizer warns.
    said = {path: path.read_text(errors="replace") for path in sorted(REPORTS.iterdir())}
    reports = {path: text for path, text in said.items() if "ERROR: " in text or "runtime error: " in text}
    for path, text in list(reports.items())[:3]:
        print(f"\n{path}\n{text[:4000]}")
    print(f"sanitize: {len(reports)} reports in {REPORTS.relative_to(ROOT)}, pytest ended with {done.returncode}")
    return int(bool(reports) or done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
