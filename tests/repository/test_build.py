"""What pip makes of the repository: the sdist holds all that a build needs, the wheel serves every Python and torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from setuptools import Distribution
from support import cuda_library
from support.compiler import compiler_without_optimization

import ste_ops

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a checkout only")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    _setup(ROOT, "egg_info", "--egg-base", str(folder), "sdist", "--dist-dir", str(folder))
    (archive,) = folder.glob("*.tar.gz")
    return archive


def _setup(cwd: Path, *command: str, **variables: str) -> str:
    environment = {**os.environ, "FORCE_CUDA": "0", "MAX_JOBS": "2", **variables}
    done = subprocess.run(
        [sys.executable, "setup.py", *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_sdist_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "ste_ops", "benchmarks/*.py", "tests"], cwd=ROOT, capture_output=True, text=True
    )
    wanted = [line for line in tracked.stdout.splitlines() if line.endswith((".py", ".h", ".cpp", ".cu", ".cuh"))]
    assert wanted, "git ls-files found nothing"
    assert [name for name in wanted if name not in names] == []
    assert "LICENSE" in names


@pytest.mark.slow
def test_wheel_of_the_sdist_is_abi3(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    summary = _setup(source, "bdist_wheel", "--dist-dir", str(tmp_path), CXX=compiler_without_optimization(tmp_path))
    assert "CUDA        no: FORCE_CUDA=0" in summary
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "ste_ops/_C.abi3.so" in names
    assert "ste_ops/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "csrc"))]

    # Python started in the checkout imports the package there: it finds the library too.
    assert (source / "ste_ops" / "_C.abi3.so").exists()

    # It runs from where it was unpacked, away from the checkout.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import ste_ops, torch; print(ste_ops.sign(torch.tensor([-2.0, 0.0])).tolist(), ste_ops.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("[-1.0, 1.0]"), done.stderr
    assert str(tmp_path) in done.stdout


def test_force_cuda_without_nvcc_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "FORCE_CUDA=1, but no nvcc was found" in done.stderr


def test_an_arch_that_nvcc_no_longer_takes_is_left_out(tmp_path: Path) -> None:
    setup = cuda_library.setup_script
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    for oldest, wanted in (("75", "7.5;8.0"), ("80", "8.0"), ("86", "9.0")):
        nvcc.write_text(f"#!/bin/sh\necho compute_103\necho compute_{oldest}\n")
        nvcc.chmod(0o755)
        said = setup.default_archs(str(tmp_path))
        assert said.startswith(f"{wanted};"), said
        assert said.endswith(";12.0+PTX")
    nvcc.write_text("#!/bin/sh\nexit 1\n")  # one that does not know the question
    assert setup.default_archs(str(tmp_path)) == setup.default_archs(None) == setup.DEFAULT_ARCHS


def test_asks_for_no_newer_glibc_than_torch() -> None:
    if not cuda_library.setup_script.old_symbols("csrc/packaging/glibc_cpu.cpp"):
        pytest.skip("x86-64 with glibc only")
    assert cuda_library.newest_glibc(Path(ste_ops.__file__).parent / "_C.abi3.so") <= (2, 28)


@pytest.mark.skipif(sys.platform != "linux", reason="the names of Python are weak in ELF alone (csrc/cpu/python.h)")
def test_needs_no_python_to_be_loaded() -> None:
    library = Path(ste_ops.__file__).parent / "_C.abi3.so"
    # Value, size, type, binding, visibility, section and name.
    symbols = [line.split()[1:] for line in cuda_library.run("readelf", "--dyn-syms", "--wide", library).splitlines()]
    undefined = {row[6]: row[3] for row in symbols if len(row) > 6 and row[5] == "UND"}
    of_python = {name: binding for name, binding in undefined.items() if re.match("_?Py", name)}
    assert "PyModule_Create2" in of_python
    strong = sorted(name for name, binding in of_python.items() if binding != "WEAK")
    assert strong == [], "csrc/cpu/python.h has no #pragma weak for them"


@pytest.mark.parametrize("lines", [500, 2000])
def test_every_source_is_compiled_once_where_files_are_joined(lines: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    script = cuda_library.setup_script
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cuda").rglob("*.cu"))
    cpp = "csrc/packaging/glibc_cuda.cpp"
    units = script.joined([cpp, *sources], tmp_path, lines)
    assert units[0] == cpp
    assert len(units) < len(sources) / 2
    included = "".join(Path(unit).read_text() for unit in units[1:])
    assert included == "".join(f'#include "{source.removeprefix("csrc/")}"\n' for source in sources)
    written = [Path(unit).stat().st_mtime_ns for unit in units[1:]]
    assert script.joined([cpp, *sources], tmp_path, lines) == units
    assert [Path(unit).stat().st_mtime_ns for unit in units[1:]] == written


def test_a_header_that_changed_makes_kernels_be_compiled_again(tmp_path: Path) -> None:
    folder = tmp_path / "csrc" / "cuda" / "clip"
    folder.mkdir(parents=True)
    old, new = folder / "old.o", folder / "new.o"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    build = cuda_library.setup_script.Build(Distribution())
    build.build_temp = str(tmp_path)
    build.forget_what_is_older_than_a_source()
    assert (old.exists(), new.exists()) == (False, True)
