"""Runs the CUDA sources on the CPU: builds them against cuda_emulator.h and loads them as torch operators."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils import cpp_extension

from emulator.counts import Launch, counted_in

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
NAMESPACE = "ste_ops_emulated"
CHECK_EVERYTHING = os.environ.get("STE_OPS_EMULATED_CHECK") == "1"  # make races
SANITIZED = os.environ.get("STE_OPS_SANITIZE", "")  # make sanitize: what setup.py compiles the kernels with

# Shared memory lies in thread-local storage, which template instances of two libraries would share without
# -fno-gnu-unique.
FLAGS = ["-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-DSTE_OPS_EMULATED", f"-I{FOLDER}", f"-I{ROOT / 'csrc'}"]
# Of the kernels; calls sanitizer.cpp and tsan.cpp. The compiler instruments for address or for thread, not both: under
# AddressSanitizer nothing is checked for races.
SANITIZE = f"-fsanitize=alignment,bounds {SANITIZED or '-fsanitize=thread'} -Wno-maybe-uninitialized"
# The engine itself is not instrumented: tsan.cpp could not be. It tells AddressSanitizer which stack runs (fiber.h).
SANITIZED_ENGINE = "-DEMULATOR_SANITIZED" if SANITIZED else ""
ENGINE_NAMES = ("engine", "warp", "poison", "sanitizer", "checker", "counter", "runtime", "tsan")
ENGINE = [FOLDER / f"{name}.cpp" for name in ENGINE_NAMES]
LINK = ["-shared", "-ldl", "-pthread", *SANITIZED.split()]


def write_ninja(
    folder: Path, library: str, sources: list[Path], flags: list[str], link: list[str], header: Path | None
) -> None:
    """A build.ninja in `folder` that compiles every source and the emulator as C++ and links them; what `header`
    includes is parsed once for all sources."""
    objects = " ".join(source.name + ".o" for source in [*sources, *ENGINE])
    # g++ looks for header.gch before header, first in the folder that it runs in.
    parsed = f"{header.name}.gch" if header else ""
    included = f"-Winvalid-pch -include {header.name}" if header else ""
    lines = [
        f"cxx = {os.environ.get('CXX', 'g++')}",
        "language = c++",
        "rule compile",
        f"  command = $cxx -MMD -MF $out.d {' '.join(flags)} $special -x $language -c $in -o $out",
        "  description = $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx $in -o $out {' '.join(link)}",
        "  description = $out",
        *([f"build {parsed}: compile {header}\n  language = c++-header\n  special = {SANITIZE}"] if header else []),
        *(
            f"build {source.name}.o: compile {source} | {parsed}\n  special = {SANITIZE} {included}"
            for source in sources
        ),
        *(f"build {source.name}.o: compile {source}\n  special = {SANITIZED_ENGINE}" for source in ENGINE),
        f"build {library}: link {objects}",
    ]
    text = "\n".join(lines) + "\n"
    path = folder / "build.ninja"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def compile_sources(
    folder: Path, library: str, sources: list[Path], flags: list[str], link: list[str], header: Path | None = None
) -> Path:
    """Compiles what has changed since the last call; processes that share `folder` take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_ninja(folder, library, sources, flags, link, header)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        done = subprocess.run(
            [_ninja(), *jobs], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    if done.returncode != 0:
        raise RuntimeError(f"the emulated CUDA kernels do not compile:\n{done.stdout}")
    return folder / library


def _ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"
    return str(beside) if beside.exists() else "ninja"


def joined(sources: list[Path], folder: Path) -> list[Path]:
    """Two files that include the halves of `sources`, where all is built once: what they instantiate is compiled less
    often."""
    if "STE_OPS_JOINED_LINES" not in os.environ:
        return sources
    folder.mkdir(parents=True, exist_ok=True)
    halves = {"first.cu": sources[: len(sources) // 2], "second.cu": sources[len(sources) // 2 :]}
    for name, half in halves.items():
        text = "".join(f'#include "{source}"\n' for source in half)
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    return [folder / name for name in halves]


def build() -> Path:
    """Compiles csrc/registration.cpp and csrc/cuda/**/*.cu into build/emulator/<torch>/ste_ops_emulated.so."""
    torch_lib = Path(torch.__file__).parent / "lib"
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, "-DTORCH_TARGET_VERSION=0x020b000000000000", *(f"-isystem {path}" for path in includes)]
    link = [*LINK, f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    folder, header = ROOT / "build" / "emulator" / torch.__version__, FOLDER / "precompiled.h"
    kernels = joined(sorted((ROOT / "csrc" / "cuda").rglob("*.cu")), folder / "joined")
    sources = [ROOT / "csrc" / "registration.cpp", *kernels, FOLDER / "guarded.cpp"]
    return compile_sources(folder, f"{NAMESPACE}.so", sources, flags, link, header)


@functools.cache
def load() -> ctypes.CDLL:
    """Builds and loads the library, and gives its operators the fake kernels and batch rules of the real ones."""
    import ste_ops  # noqa: F401  registers the fake kernels
    from ste_ops._functions.base import FAKES
    from ste_ops._functions.sampling.rows import RULES

    path = str(build())
    torch.ops.load_library(path)
    for name, rule in FAKES.items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", rule)
    for name, rule in RULES.items():
        torch.library.register_vmap(f"{NAMESPACE}::{name}", rule)
    library = ctypes.CDLL(path)
    library.emulator_checked_kernels.restype = ctypes.c_void_p
    return library


@contextlib.contextmanager
def emulated_kernels() -> Iterator[None]:
    """Points every operator at the emulated CUDA kernels, which take CPU tensors."""
    from ste_ops._library import ops

    load()
    torch._dynamo.reset()
    ops.use("ste_ops_emulated")
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # an error that nobody asked for is not the next test's
            ops.raise_deferred(torch.empty(0))
        ops.use("ste_ops")
        torch._dynamo.reset()


def check(on: bool) -> None:
    """Whether kernels report races and accesses outside allocations; tensors must have been made since."""
    load().emulator_guard(int(on))
    load().emulator_check(int(on))


def checked_kernels() -> str:
    """The signatures of the kernels that have run under check, a line each."""
    return ctypes.string_at(load().emulator_checked_kernels()).decode()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    check(True)
    try:
        yield
    finally:
        check(CHECK_EVERYTHING)


@contextlib.contextmanager
def counted() -> Iterator[list[Launch]]:
    """What every launch of the operators' kernels moves in the meantime, in order; the list is filled at the end."""
    with counted_in(load()) as launches:
        yield launches
