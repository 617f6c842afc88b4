"""What can be proved of the CUDA library without a GPU: it builds for every arch, spills nothing and moves 128 bits."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
CACHE = ROOT / "build" / "cuda_checks"
SASS_ARCH = "sm_90"

# Kernels that touch every element once say so by their launch bounds.
ELEMENTWISE = re.compile(r"__launch_bounds__\(kElementwiseThreads\)\s*(\w+_kernel)\(")


def _setup_script():
    spec = importlib.util.spec_from_file_location("ste_ops_setup", ROOT / "setup.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


setup_script = _setup_script()
pytestmark = pytest.mark.skipif(setup_script.cuda_home() is None, reason="no nvcc was found")


def _run(*command: object, **options) -> str:
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


def _disassembler(name: str) -> Path:
    """From the CUDA toolkit, the wheels of the test extra, or the triton wheel that a CUDA torch brings along."""
    folders = [Path(setup_script.cuda_home() or "", "bin")]
    folders += sorted(Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/bin"))
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)]))
    if not found:
        pytest.skip(f"{name} is neither on PATH nor in {' or '.join(map(str, folders))}")
    return Path(found)


@pytest.fixture(scope="module")
def library() -> Path:
    """_cuda.abi3.so for the default archs, kept under build/ until a source changes."""
    folder = CACHE / _digest() / "library"
    path = folder / "ste_ops" / "_cuda.abi3.so"
    if not path.exists():
        environment = {**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": setup_script.DEFAULT_ARCHS}
        build = ["build_ext", "--build-lib", folder, "--build-temp", folder / "temp"]
        _run(sys.executable, "setup.py", *build, cwd=ROOT, env=environment)
    return path


def _nvcc_flags() -> list[str]:
    """setup.py's own, without the marks it leaves on this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CUDA_ARCH_LIST", setup_script.DEFAULT_ARCHS)
        patch.setenv("CUDA_HOME", setup_script.cuda_home())
        patch.setattr(cpp_extension, "CUDA_HOME", None)
        flags = setup_script.cuda_library(setup_script.cuda_home()).extra_compile_args["nvcc"]
    standard = "-std=c++20" if "-std=c++20" in Path(cpp_extension.__file__).read_text() else "-std=c++17"
    return [*flags, standard, *(f"-I{path}" for path in cpp_extension.include_paths())]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.stem)
def cubin(request) -> tuple[Path, Path, str]:
    """One source, its cubin for one arch, and what ptxas says about it."""
    source = request.param
    path = CACHE / _digest() / f"{source.stem}.cubin"
    log = path.with_suffix(".log")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        nvcc = Path(setup_script.cuda_home(), "bin", "nvcc")
        log.write_text(_run(nvcc, *_nvcc_flags(), "-Xptxas=-v", "-cubin", f"-arch={SASS_ARCH}", source, "-o", path))
    return source, path, log.read_text()


@pytest.mark.slow
def test_builds_and_links(library):
    assert library.stat().st_size > 0


@pytest.mark.slow
def test_holds_every_arch(library):
    listed = _run(_disassembler("cuobjdump"), "--list-elf", "--list-ptx", library)
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
        assert len(re.findall(rf"\.{arch}\.cubin", listed)) >= len(SOURCES) - 1, listed
    assert re.search(r"\.sm_120\.ptx", listed), listed


@pytest.mark.slow
def test_depends_on_libtorch_and_its_c_shim_alone(library):
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", _run("readelf", "-dW", library)))
    assert "libtorch.so" in needed
    assert not {name for name in needed if "cuda" in name}
    undefined = re.findall(r" U (\S+)", _run("nm", "-D", "--undefined-only", library))
    assert any(name.startswith("aoti_torch_get_current_cuda_stream") for name in undefined)
    assert [name for name in undefined if re.match(r"_ZNK?(2at|3c10|5torch)", name)] == []


def _text(source: Path) -> str:
    """A source with the kernel headers that it includes."""
    text = source.read_text()
    headers = re.findall(r'#include "([^"]+\.cuh)"', text)
    return text + "".join(_text((source.parent / header).resolve()) for header in headers)


def test_no_kernel_spills(cubin):
    source, _, log = cubin
    spills = re.findall(r"Function properties for (\S+)\n.*?, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    has_kernels = "__global__" in _text(source)
    assert bool(spills) == has_kernels
    assert [name for name, stores, loads in spills if int(stores) or int(loads)] == []


def test_elementwise_kernels_move_128_bits(cubin):
    source, path, _ = cubin
    kernels = sorted(set(ELEMENTWISE.findall(_text(source))))
    if not kernels:
        pytest.skip(f"{source.name} has no element-wise kernel")
    sass = _run(_disassembler("nvdisasm"), "-c", path)
    # A section for each instance: ".text.<mangled name>:"
    instances = re.split(r"^\.text\.", sass, flags=re.MULTILINE)[1:]
    for kernel in kernels:
        bodies = {body.split(":", 1)[0]: body for body in instances if kernel in body.split(":", 1)[0]}
        assert bodies, f"{kernel} is not in the cubin"
        for name, body in bodies.items():
            assert re.search(r"\bLDG\.E\S*\.128", body), f"{name} has no 128-bit load"
            assert re.search(r"\bSTG\.E\S*\.128", body), f"{name} has no 128-bit store"
