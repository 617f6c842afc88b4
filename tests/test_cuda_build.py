"""What can be proved of the CUDA library without a GPU: it builds for every arch, spills nothing and moves 128 bits."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from pathlib import Path

import cuda_library
import pytest
from cuda_library import ROOT, run, setup_script

SOURCES = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
SASS_ARCH = "sm_90"

# Kernels that touch every element once say so by their launch bounds.
ELEMENTWISE = re.compile(r"__launch_bounds__\(kElementwiseThreads(?:, \d)?\)\s*(\w+_kernel)\(")

pytestmark = pytest.mark.skipif(setup_script.cuda_home() is None, reason="no nvcc was found")


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
    return cuda_library.build()


@pytest.fixture(scope="module")
def kernels(library) -> dict[tuple[str, str], tuple[int, int]]:
    """(arch, mangled name) of every kernel, and its bytes of spill stores and loads."""
    report = re.compile(
        r"Compiling entry function '(\S+)' for '(\w+)'\n.*\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    found = report.findall(cuda_library.log_of(library).read_text())
    return {(arch, name): (int(stores), int(loads)) for name, arch, stores, loads in found}


@pytest.fixture(scope="module")
def sass(library) -> dict[str, str]:
    """The machine code of every kernel for one arch, by mangled name."""
    cuobjdump, nvdisasm = _disassembler("cuobjdump"), _disassembler("nvdisasm")
    environment = {**os.environ, "PATH": os.pathsep.join([str(nvdisasm.parent), os.environ.get("PATH", "")])}
    text = run(cuobjdump, "-sass", "-arch", SASS_ARCH, library, env=environment)
    return {body.split("\n", 1)[0]: body for body in text.split("Function : ")[1:]}


@pytest.mark.slow
def test_builds_and_links(library):
    assert library.stat().st_size > 0


@pytest.mark.slow
def test_holds_every_arch(library):
    listed = run(_disassembler("cuobjdump"), "--list-elf", "--list-ptx", library)
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
        assert len(re.findall(rf"\.{arch}\.cubin", listed)) >= len(SOURCES) - 1, listed
    assert re.search(r"\.sm_120\.ptx", listed), listed


@pytest.mark.slow
def test_the_build_refuses_a_library_without_an_arch_that_it_names(library):
    archs = setup_script.DEFAULT_ARCHS
    assert setup_script.device_code(library.read_bytes()), "no bundle was found"
    for bundle in setup_script.device_code(library.read_bytes()):
        assert bundle == {"8.0", "9.0", "10.0", "12.0", "12.0+PTX"}
    setup_script.refuse_missing_archs(library, archs)
    setup_script.refuse_missing_archs(library, "9.0a")
    with pytest.raises(SystemExit, match=r"has no device code for 7\.5, 9\.0\+PTX of 7\.5;9\.0\+PTX"):
        setup_script.refuse_missing_archs(library, "7.5;9.0+PTX")


@pytest.mark.slow
def test_depends_on_libtorch_and_its_c_shim_alone(library):
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-dW", library)))
    assert "libtorch.so" in needed
    assert not {name for name in needed if "cuda" in name}
    undefined = re.findall(r" U (\S+)", run("nm", "-D", "--undefined-only", library))
    assert any(name.startswith("aoti_torch_get_current_cuda_stream") for name in undefined)
    assert [name for name in undefined if re.match(r"_ZNK?(2at|3c10|5torch)", name)] == []


def test_no_kernel_spills(kernels):
    assert {arch for arch, _ in kernels} == {"sm_80", "sm_90", "sm_100", "sm_120"}
    spilled = {place: bytes_ for place, bytes_ in kernels.items() if any(bytes_)}
    assert {place for place in spilled if place[0] == SASS_ARCH} == set()
    # The other archs keep a value or two around the call that a 64-bit division is.
    assert {place: bytes_ for place, bytes_ in spilled.items() if max(bytes_) > 16} == {}


def test_elementwise_kernels_move_128_bits(kernels, sass):
    headers_and_sources = [*SOURCES, *(ROOT / "csrc" / "cuda").rglob("*.cuh")]
    elementwise = {name for path in headers_and_sources for name in ELEMENTWISE.findall(path.read_text())}
    assert elementwise
    assert {name for arch, name in kernels if arch == SASS_ARCH} == set(sass)
    for kernel in elementwise:
        # A mangled name holds the length of each name before it, so that no kernel is taken for another.
        bodies = {name: body for name, body in sass.items() if f"{len(kernel)}{kernel}" in name}
        assert bodies, f"{kernel} is not in the library"
        for name, body in bodies.items():
            assert re.search(r"\bLDG\.E\S*\.128", body), f"{name} has no 128-bit load"
            assert re.search(r"\bSTG\.E\S*\.128", body), f"{name} has no 128-bit store"
