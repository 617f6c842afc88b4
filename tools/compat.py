"""One wheel on every torch and Python that it names: installs it beside each torch, away from the sources, and runs the
tests of its commit that need no compiler. Prints the table of docs/checked.md, and writes it to benchmarks/results/
where no cell of this wheel is missing.

    python tools/compat.py dist/ste_ops-*.whl             every cell below
    python tools/compat.py dist/ste_ops-*.whl 3.13:2.15.0

It downloads about 5 GB for each torch, which stay in build/compat; no GPU is needed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Python and torch: every torch from the oldest that is served and every Python, the newest of both together.
CELLS = ["3.10:2.11.0", "3.12:2.11.0", "3.11:2.12.1", "3.12:2.13.0", "3.13:2.14.1", "3.13:2.15.0"]
TOO_OLD = "3.12:2.10.0"
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "numpy", "scikit-learn", "matplotlib", "tqdm", "setuptools"]
# They compile something, or look at the sources rather than at what is installed.
SOURCES = ["repository", "emulator", "native", "cuda/test_build.py", "cuda/test_bytes.py"]

PROBE = """
import json, torch, ste_ops
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("ste_ops::")]
info = ste_ops.build_info()

def has(name, *keys):
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)

# What takes no tensor, or stands for a Function, has one kernel for every device; that of cuda_build_info lies in the
# CUDA library.
every = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")
missing = [n for n in names if not has(n, "CPU", *every) and n != "ste_ops::cuda_build_info"]
missing += [n for n in names if info["cuda"] and not has(n, "CUDA", *every)]
print(json.dumps({"operators": len(names), "missing": missing, "cuda": info["cuda"], "cuda_reason": info["cuda_reason"],
    "torch": torch.__version__, "place": ste_ops.__file__}))
"""


def interpreter(version: str) -> str | None:
    """python3.X from PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in filter(None, candidates):
        code = "import sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return candidate
    return None


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def environment(folder: Path, cell: str) -> Path | str:
    """The Python of a virtual environment with this torch, made where there is none; or why there can be none."""
    version, torch = cell.split(":")
    python = folder / f"{version}-{torch}" / "bin" / "python"
    if not python.exists():
        base = interpreter(version)
        if base is None:
            return f"no Python {version} was found"
        run(base, "-m", "venv", python.parents[1], check=True)
    # Compiled to bytecode is what is imported, when it is: torch alone has ten thousand files.
    options = ["--disable-pip-version-check", "--no-compile"]
    done = run(python, "-m", "pip", "install", *options, f"torch=={torch}", *TOOLS)
    return python if done.returncode == 0 else f"torch {torch} cannot be installed: {done.stderr.strip()[-300:]}"


def checkout(folder: Path) -> None:
    """The files of the commit without the package, so that the tests import what is installed."""
    archive = folder / "commit.tar"
    run("git", "archive", "-o", archive, "HEAD", cwd=ROOT, check=True)
    shutil.unpack_archive(archive, folder)
    shutil.rmtree(folder / "ste_ops")


def import_error(python: Path, code: str, expected: str) -> str:
    """Empty where `code` fails with the one line that it should, else what it said."""
    said = run(python, "-c", code, cwd="/").stderr.strip().splitlines()[-1:] or ["nothing"]
    return "" if re.match(f"ImportError: ste_ops: {expected}", said[0]) else said[0]


def refused(python: Path) -> dict[str, Any]:
    wrong = import_error(python, "import ste_ops", r"torch \S+ is installed; expected torch >= ")
    return {"result": f"FAILED: said {wrong}" if wrong else "refused, as it should be", "cuda": "", "passed": 0}


def another_cuda(python: Path) -> str:
    """The real CUDA library beside a torch that says that its CUDA is another one."""
    code = "import torch; torch.version.cuda = '12.8'; import ste_ops"
    return import_error(python, code, r"_cuda\.abi3\.so was built with CUDA 13\.\d, but torch \S+ has CUDA 12\.8; ")


def tested(python: Path, folder: Path, extra: list[str]) -> dict[str, Any]:
    probe = run(python, "-c", PROBE, cwd=folder)
    if probe.returncode != 0:
        return {"result": f"FAILED: {probe.stderr.strip()[-500:]}", "cuda": "", "passed": 0}
    facts = json.loads(probe.stdout.splitlines()[-1])
    assert str(folder) not in facts["place"], facts
    ignored = [f"--ignore=tests/{name}" for name in SOURCES]
    command = [python, "-m", "pytest", "tests", "-q", "-n", "2", "--dist", "loadfile", "-k", "not emulated"]
    done = run(*command, *ignored, *extra, cwd=folder)
    closing = (done.stdout.strip().splitlines() or [done.stderr])[-1].strip("= ")
    passed = re.search(r"(\d+) passed", closing)
    wrong = another_cuda(python) if facts["cuda"] else ""
    ok = done.returncode == 0 and not facts["missing"] and not wrong
    if not ok:
        print(done.stdout[-6000:], done.stderr[-2000:], facts["missing"], wrong, sep="\n")
    return {
        "result": "passed" if ok else f"FAILED: {closing}",
        "torch": facts["torch"],
        "operators": facts["operators"],
        "cuda": "loads" if facts["cuda"] else f"not loaded: {facts['cuda_reason']}",
        "passed": int(passed[1]) if passed else 0,
        "closing": closing,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| Python | torch | CPU tests | CUDA library |", "|---|---|---|---|"]
    for row in rows:
        count = f"{row['passed']} passed" if row["result"] == "passed" else row["result"]
        lines.append(f"| {row['python']} | {row.get('torch') or row['asked']} | {count} | {row['cuda']} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("cells", nargs="*", default=[*CELLS, TOO_OLD], help="PYTHON:TORCH")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "compat", help="of the environments")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    wheel = options.wheel.resolve(strict=True)
    rows: list[dict[str, Any]] = []
    for cell in options.cells:
        version, torch = cell.split(":")
        row: dict[str, Any] = {"python": version, "asked": torch, "cuda": "", "passed": 0}
        python = environment(options.folder.resolve(), cell)
        if isinstance(python, str):
            row["result"] = python
        else:
            run(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel, check=True)
            with tempfile.TemporaryDirectory() as folder:
                checkout(Path(folder))
                old = tuple(map(int, torch.split(".")[:2])) < (2, 11)
                row |= refused(python) if old else tested(python, Path(folder), options.pytest.split())
        rows.append(row)
        print(f"{cell}: {row['result']} {row.get('closing', '')}", flush=True)
    record = {
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "commit": run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "platform": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}, no GPU looked for",
        "rows": rows,
    }
    path = options.out / f"compat-{record['date']}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier.get("sha256") == record["sha256"]:  # the same wheel: what was not asked for now stands as it was
        now = [(row["python"], row["asked"]) for row in rows]
        rows += [row for row in earlier["rows"] if (row["python"], row["asked"]) not in now]
        rows.sort(key=lambda row: [tuple(map(int, row[key].split("."))) for key in ("asked", "python")])
    # The table of docs/checked.md is read from the newest file: a few cells of another wheel are none.
    if len(rows) > len(CELLS):
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{wheel.name}, {record['bytes'] / 1e6:.1f} MB, commit {record['commit']}, {record['date']}\n")
    print(table(rows))
    return int(any(row["result"] not in ("passed", "refused, as it should be") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
