"""What can be proved of the CUDA library without a GPU: it builds for every arch, spills nothing, leaves room for the
threads that hide the latency of memory, and moves 128 bits, several loads ahead."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import cuda_library, cuda_sources
from support.cuda_library import run, setup_script

SASS_ARCH = "sm_90"

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


@dataclass(frozen=True)
class Resources:
    spill_stores: int
    spill_loads: int
    registers: int


@pytest.fixture(scope="module")
def kernels(library) -> dict[tuple[str, str], Resources]:
    """What ptxas says of every kernel, by arch and mangled name."""
    report = re.compile(
        r"Compiling entry function '(\S+)' for '(\w+)'\n.*\n"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers"
    )
    found = report.findall(cuda_library.log_of(library).read_text())
    return {(arch, name): Resources(*map(int, numbers)) for name, arch, *numbers in found}


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
    bundles = len(setup_script.device_code(library.read_bytes()))
    for arch in cuda_library.MACHINES:
        assert len(re.findall(rf"\.{arch}\.cubin", listed)) == bundles > 1, listed
    assert re.search(r"\.sm_120\.ptx", listed), listed


@pytest.mark.slow
def test_the_build_refuses_a_library_without_an_arch_that_it_names(library):
    assert setup_script.device_code(library.read_bytes()), "no bundle was found"
    for bundle in setup_script.device_code(library.read_bytes()):
        assert bundle == {*cuda_library.NAMED, *(arch.removesuffix("+PTX") for arch in cuda_library.NAMED)}
    setup_script.refuse_missing_archs(library, cuda_library.ARCHS)
    setup_script.refuse_missing_archs(library, "9.0a")
    with pytest.raises(SystemExit, match=r"has no device code for 7\.0, 9\.0\+PTX of 7\.0;9\.0\+PTX"):
        setup_script.refuse_missing_archs(library, "7.0;9.0+PTX")


@pytest.mark.slow
def test_depends_on_libtorch_and_its_c_shim_alone(library):
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-dW", library)))
    assert "libtorch.so" in needed
    assert not {name for name in needed if "cuda" in name}
    undefined = re.findall(r" U (\S+)", run("nm", "-D", "--undefined-only", library))
    assert any(name.startswith("aoti_torch_get_current_cuda_stream") for name in undefined)
    assert [name for name in undefined if re.match(r"_ZNK?(2at|3c10|5torch)", name)] == []


@pytest.mark.skipif(not setup_script.old_symbols("csrc/packaging/glibc_cuda.cpp"), reason="x86-64 with glibc only")
def test_asks_for_no_newer_glibc_than_torch(library):
    assert cuda_library.newest_glibc(library) <= (2, 28)


# Of its own runtime the library calls what launches, and this, of which nothing waits for a GPU; torch cannot see it.
CALLED = {"cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cudaGetLastError", "cudaHostAlloc"}
CALLED |= {"cudaThreadExchangeStreamCaptureMode"}
LAUNCHES = r"__cuda(GetKernel|LaunchKernel|(Push|Pop)CallConfiguration|(Unr|R)egister\w+)|cudaLaunchKernel\w*"


@pytest.mark.slow
def test_calls_nothing_of_the_runtime_that_waits(library):
    objects = sorted((library.parents[1] / "temp").rglob("*.o"))
    assert objects
    called = re.findall(r" U ((?:__)?cuda[A-Z]\w+)", run("nm", "--undefined-only", *objects))
    assert "cudaHostAlloc" in called
    assert {name for name in called if not re.fullmatch(LAUNCHES, name)} <= CALLED


# A library for CUDA in a torch without it: the functions that are missing there are those that need a GPU.
ON_THE_CPU = """
import ctypes, os, torch, ste_ops
ctypes.CDLL({library!r}, mode=os.RTLD_LAZY)
key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
x, mask = torch.zeros(8), torch.zeros(1, dtype=torch.uint8)
for other in (mask.to("meta"), mask):
    try:
        torch.ops.ste_ops.binarize_backward.default.redispatch(key, x, other)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA and loads the library itself")
def test_a_first_tensor_on_the_cpu_is_refused_by_name(library):
    said = run(sys.executable, "-c", ON_THE_CPU.format(library=str(library)), cwd=cuda_library.ROOT).splitlines()
    assert said[-2] == "binarize_backward: grad and mask must be on one device"
    assert said[-1].endswith(": tensors must be on one CUDA device, got one on the CPU")


def test_no_kernel_spills(kernels):
    assert {arch for arch, _ in kernels} == cuda_library.MACHINES
    spilled = {place: max(of.spill_stores, of.spill_loads) for place, of in kernels.items()}
    assert {place for place, bytes_ in spilled.items() if place[0] == SASS_ARCH and bytes_} == set()
    # The other archs keep a value or two around the call that a 64-bit division is.
    assert {place: bytes_ for place, bytes_ in spilled.items() if bytes_ > 16} == {}


def instances(mangled: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each mangled name with that of its kernel."""
    # It holds the length of each name before it, so that no kernel is taken for another.
    lengths = {f"{len(kernel)}{kernel}": kernel for kernel in cuda_sources.kernels()}
    for name in mangled:
        (kernel,) = {kernel for length, kernel in lengths.items() if length in name}
        yield name, kernel


# A multiprocessor of sm_90 has 65,536 registers, handed out eight at a time to a thread, and holds 2,048 threads.
# So many blocks of its kernels must fit, where their launch bounds do not say how many, by the threads that these name:
# half of the 2,048 where nothing else is said.
REGISTERS, RESIDENT_THREADS = 65_536, 2048
BLOCKS = {
    "kElementwiseThreads": 4,
    "kThreads": 2,
    "kFinishThreads": 1,  # one block of 1,024 is all there is
    "kReduceThreads": 3,  # float64 sums of every lane
    "kNormsThreads": 4,
    "kSampleThreads": 2,  # four dtypes in one kernel, each with its vectors ahead
    "kUnitThreads": 2,  # the same
    "kSamplingThreads": 4,
    "kRowThreads": 4,
    "kByteThreads": 4,
    "kPackThreads": 4,
    "256": 4,
}
# Without launch bounds: these are launched with kSamplingThreads and the like.
THREADS = 256
FEWER = {
    "quantize_kernel": 3,  # half precision: eight elements of a vector, a step for each where there are channels
    "map_scaled_backward_kernel": 2,  # two arrays ahead, 128 bytes a thread, and a parameter of three numbers
    "sr_ste_fours_kernel": 2,  # two arrays ahead, and the ranks of four
    "rewrite_kernel": 1,  # four dtypes in one kernel, whose clamp takes 70 registers
    "clip_rows_kernel": 1,  # the three looks of a norm, with pow in them
    "short_row_sample_kernel": 3,  # float64: a thread's eight weights and their masses
    "ancestors_kernel": 3,  # 64-bit divisions
    "curve_backward_kernel": 3,  # float64: two arrays two chunks ahead
    "sum_level_kernel": 3,  # eight loads of 16 bytes ahead
    # A block a row, which has its multiprocessor to itself: eight sums of a thread ahead.
    **dict.fromkeys(["scan_heavy_kernel", "scan_mass_kernel", "positions_kernel"], 3),
}


def threads_of(kernel: str) -> int:
    bounds = cuda_sources.kernels()[kernel].bounds
    return int(bounds) if bounds.isdigit() else cuda_sources.constant(bounds) if bounds else THREADS


def blocks_that_fit(kernel: str, registers: int) -> int:
    threads = threads_of(kernel)
    return min(RESIDENT_THREADS // threads, REGISTERS // (-(-registers // 8) * 8 * threads))


def test_registers_leave_room_for_the_blocks_that_hide_latency(kernels):
    few = {}
    for name, kernel in instances(name for arch, name in kernels if arch == SASS_ARCH):
        registers = kernels[SASS_ARCH, name].registers
        said = cuda_sources.kernels()[kernel]
        wanted = FEWER.get(kernel) or said.blocks or BLOCKS[said.bounds or "kSamplingThreads"]
        if blocks_that_fit(kernel, registers) < wanted:
            few[name] = f"{registers} registers, {wanted} blocks of {threads_of(kernel)} threads do not fit"
    assert few == {}


def of_128_bits(body: str, operation: str) -> int:
    return len(re.findall(rf"\b{operation}\.E\S*\.128", body))


def of_totals_alone(name):
    """Whether a sum is instantiated with what gives no gradient of each element: `kOfX` is 0."""
    return re.search(r"12LearnedTermsINS_\d+\w+?I[fd]EELi0E", name) is not None


def test_kernels_move_128_bits(kernels, sass):
    """Those that the sources give vectors, themselves or through what they are instantiated with."""
    assert {name for arch, name in kernels if arch == SASS_ARCH} == set(sass)
    structs = {f"{len(name)}{name}": name for name in cuda_sources.definitions() if name not in cuda_sources.kernels()}
    loading, storing = set(), set()
    for name, kernel in instances(sass):
        calls = cuda_sources.called_by(kernel).union(
            *(cuda_sources.called_by(struct) for length, struct in structs.items() if length in name)
        )
        if "read_vector" in calls:
            loading.add(kernel)
            assert of_128_bits(sass[name], "LDG"), f"{name} has no 128-bit load"
        if "write_vector" in calls and not of_totals_alone(name):
            storing.add(kernel)
            assert of_128_bits(sass[name], "STG"), f"{name} has no 128-bit store"
    # Kernels that touch every element once say so by their launch bounds.
    bounded = {name for name, found in cuda_sources.kernels().items() if found.bounds == "kElementwiseThreads"}
    assert bounded
    assert bounded - storing == {"pack_codes_kernel"}  # codes are less than a vector
    assert bounded - loading == {"unpack_codes_kernel"}
    assert {"norm_partials_kernel", "sample_partials_kernel", "reduce_kernel"} <= loading
    assert {"rewrite_kernel", "rewrite_to_kernel", "clip_rows_kernel", "agc_kernel", "reduce_kernel"} <= storing


def test_vectors_are_stored_as_an_assignment_would(sass):
    """Not so that other threads see them at once, which only what the host reads must be."""
    strong = {store for body in sass.values() for store in re.findall(r"\bSTG\S*STRONG\S*", body)}
    assert {store for store in strong if ".SYS" not in store} == set()


def test_squares_are_added_in_one_instruction(sass):
    """But those of float64, one of four dtypes."""
    seen = set()
    for name, kernel in instances(sass):
        if "7Squares" in name and kernel.endswith("_partials_kernel"):
            seen.add(kernel)
            products, sums = (len(re.findall(rf"\b{one}\b", sass[name])) for one in ("DMUL", "DFMA"))
            assert 0 < 2 * products <= sums, f"{name} has {products} products and {sums} fused sums"
    assert seen == {"norm_partials_kernel", "strided_partials_kernel", "sample_partials_kernel"}


# Bytes that a multiprocessor must have asked for while it waits: 3.35 TB/s of an H100 for 600 ns, by 132 of them, are
# 15 KiB; twice that, since not all of its threads wait at the same time.
IN_FLIGHT = 32 * 1024


def test_loads_of_all_chunks_are_in_flight_before_the_first_store(kernels, sass):
    seen = set()
    for name, kernel in instances(sass):
        wanted = cuda_sources.vectors_ahead(kernel)
        if wanted == 0:
            continue
        seen.add(kernel)
        ahead = of_128_bits(re.split(r"\bSTG\.", sass[name])[0], "LDG")
        assert ahead >= wanted, f"{name} has {ahead} 128-bit loads before its first store, not {wanted}"
        blocks = blocks_that_fit(kernel, kernels[SASS_ARCH, name].registers)
        in_flight = blocks * threads_of(kernel) * ahead * 16
        assert in_flight >= IN_FLIGHT, f"{name} has {in_flight} bytes of a multiprocessor in flight"
    masked = {
        name
        for name in cuda_sources.kernels()
        if cuda_sources.kernels()[name].bounds == "kElementwiseThreads"
        and cuda_sources.called_by(name) & {"load_mask_bits", "store_mask_bits"}
    }
    assert masked
    assert masked - seen == set()


def test_tables_of_gradients_keep_vectors_ahead_for_every_dtype(sass):
    """A kernel of with_storage holds its loop four times; one of pow reads a vector at a time (kVectorsAhead)."""
    seen = set()
    for name, kernel in instances(sass):
        calls = cuda_sources.called_by(kernel)
        if "for_each_vector" not in calls:
            continue
        seen.add(kernel)
        dtypes = 4 if "with_storage" in calls else 1
        ahead = 1 if "6Powers" in name else cuda_sources.constant("kAhead")
        found = of_128_bits(sass[name], "LDG")
        assert found >= dtypes * ahead, f"{name} has {found} 128-bit loads for {dtypes} dtypes, {ahead} ahead"
    assert {"norm_partials_kernel", "rewrite_kernel", "agc_kernel", "sample_partials_kernel"} <= seen
