"""Builds the two libraries: ste_ops/_C.abi3.so always, ste_ops/_cuda.abi3.so where CUDA is (see CONTRIBUTING.md)."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from glob import glob
from pathlib import Path
from platform import libc_ver, machine
from sysconfig import get_platform

import torch
from setuptools import setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, CppExtension

TORCH_TARGET = (2, 11)
# Machine code runs on later GPUs of its generation: that of 8.0 on 8.6, 8.7 and 8.9, of 10.0 on 10.3, of 12.0 on 12.1.
DEFAULT_ARCHS = "7.5;8.0;9.0;10.0;12.0+PTX"
SOURCES = str(Path(__file__).parent.resolve() / "csrc")  # every include is written from here


def _headers(home: Path) -> list[Path]:
    return [*home.glob("include/cuda_runtime.h"), *home.glob("targets/*/include/cuda_runtime.h")]


def cuda_home() -> str | None:
    """Where the CUDA toolkit is. torch.utils.cpp_extension does not look when torch itself has no CUDA."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    beside_nvcc = str(Path(nvcc).resolve().parent.parent) if nvcc else None
    for home in [named] if named else [cpp_extension.CUDA_HOME, "/usr/local/cuda", beside_nvcc]:
        # The nvcc on PATH may be a wrapper script that lies elsewhere than the toolkit.
        if home and Path(home, "bin", "nvcc").exists() and _headers(Path(home)):
            return home
    return None


def default_archs(home: str | None) -> str:
    """Without those that are too old for this nvcc, which a later one may drop."""
    nvcc = [str(Path(home, "bin", "nvcc")), "--list-gpu-arch"] if home else ["true"]
    try:
        said = subprocess.run(nvcc, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    except OSError:
        said = ""
    oldest = min(map(int, re.findall(r"compute_(\d+)\b", said)), default=0)
    archs = DEFAULT_ARCHS.split(";")
    return ";".join(arch for arch in archs if int(arch.removesuffix("+PTX").replace(".", "")) >= oldest)


def decide_cuda() -> tuple[bool, str]:
    force, home = os.environ.get("FORCE_CUDA"), cuda_home()
    if force == "0":
        return False, "FORCE_CUDA=0"
    if force == "1":
        if home is None:
            raise SystemExit("ste_ops: FORCE_CUDA=1, but no nvcc was found; install the CUDA toolkit or set CUDA_HOME")
        return True, f"FORCE_CUDA=1, nvcc in {home}"
    if torch.version.cuda is None:
        return False, "this torch has no CUDA (FORCE_CUDA=1 builds it all the same)"
    if home is None:
        return False, "no nvcc was found (install the CUDA toolkit or set CUDA_HOME)"
    return True, f"torch has CUDA {torch.version.cuda}, nvcc in {home}"


def sanitizer_flags() -> list[str]:
    """Of `make sanitize`, for the host compiler and its linker."""
    return os.environ.get("STE_OPS_SANITIZE", "").split()


def host_flags() -> list[str]:
    return [
        *(["-O1", "-g1", *sanitizer_flags()] if sanitizer_flags() else ["-O3", "-g0"]),
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-unknown-pragmas",
        # The same bits on every backend: no multiply-add that the source does not spell out.
        "-ffp-contract=off",
        # Nobody reads the flags of floating-point exceptions or errno; heeding them keeps loops from vectorizing.
        "-fno-trapping-math",
        "-fno-math-errno",
        # The psABI note about vector arguments does not concern functions that are always inlined.
        "-Wno-psabi",
        # Checks quote their place in the source: relative, wherever it was built.
        f"-ffile-prefix-map={Path(__file__).parent.resolve()}/=",
        f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000",
    ]


def old_symbols(source: str) -> list[str]:
    """For the linker: calls of what a csrc/packaging/glibc_*.cpp names go through it (csrc/packaging/glibc.h)."""
    if machine() != "x86_64" or libc_ver()[0] != "glibc":
        return []
    text = (Path(__file__).parent / source).read_text()
    return [f"-Wl,--wrap={name}" for name in re.findall(r"^OLD\((\w+),", text, re.MULTILINE)]


def cpu_library() -> CppExtension:
    return CppExtension(
        "ste_ops._C",
        ["csrc/registration.cpp", "csrc/packaging/glibc_cpu.cpp", *sorted(glob("csrc/cpu/**/*.cpp", recursive=True))],
        include_dirs=[SOURCES],
        extra_compile_args={"cxx": host_flags()},
        extra_link_args=[*old_symbols("csrc/packaging/glibc_cpu.cpp"), *sanitizer_flags()],
        py_limited_api=True,
    )


def cuda_library(home: str) -> CppExtension:
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_archs(home))
    os.environ.setdefault("CUDA_HOME", home)
    cpp_extension.CUDA_HOME = home
    wrapped = old_symbols("csrc/packaging/glibc_cuda.cpp")
    # nvcc splits its arguments at commas, and semicolons end a shell command.
    defines = [f"-DSTE_OPS_CUDA_ARCHS={archs.replace(';', '/').replace(' ', '/')}", "-DUSE_CUDA"]
    return CppExtension(
        "ste_ops._cuda",
        ["csrc/packaging/glibc_cuda.cpp", *sorted(glob("csrc/cuda/**/*.cu", recursive=True))],
        include_dirs=[SOURCES, str(Path(home, "include"))],
        library_dirs=[str(Path(home, "lib64"))],
        # The static runtime serves every torch; libtorch stays a dependency because it holds the current stream, and
        # librt, libdl and libpthread because there an older glibc has what the runtime calls.
        extra_link_args=[
            *wrapped,
            *("-Wl,--no-as-needed", "-ltorch", "-lcudart_static"),
            *(["-l:librt.so.1", "-l:libdl.so.2", "-l:libpthread.so.0"] if wrapped else []),
            *("-lrt", "-ldl", "-lpthread"),
        ],
        extra_compile_args={
            "cxx": host_flags() + defines,
            "nvcc": [
                "-O3",
                "--fmad=false",
                "--expt-relaxed-constexpr",
                "-Xcompiler=-fvisibility=hidden",
                f"-Xcompiler=-ffile-prefix-map={Path(__file__).parent.resolve()}/=",
                "-Xptxas=-v" if os.environ.get("STE_OPS_PTXAS") else "-Xptxas=-O3",
                host_flags()[-1],
                *defines,
            ],
        },
        py_limited_api=True,
    )


def device_code(library: bytes) -> list[set[str]]:
    """The archs of each bundle of device code in a library, "9.0" for machine code and "12.0+PTX" for PTX: each source
    with kernels has a bundle, a header of 16 bytes and then entries that begin with kind, sizes and, at 28, arch."""
    bundles, magic, place = [], struct.pack("<IHH", 0xBA55ED50, 1, 16), 0
    while (place := library.find(magic, place)) >= 0:
        entry, archs = place + 16, set()
        place = entry + struct.unpack_from("<Q", library, place + 8)[0]
        while entry < place:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, entry)
            (arch,) = struct.unpack_from("<I", library, entry + 28)
            archs.add(f"{arch // 10}.{arch % 10}{'+PTX' if kind == 1 else ''}")
            entry += header + size
        bundles.append(archs)
    return bundles


def refuse_missing_archs(library: Path, named: str) -> None:
    """A library that lacks code for an arch it names would fail on that GPU alone, long after it was built."""
    # Not "native" and the names of generations, which torch translates.
    names = re.findall(r"(\d+\.\d)[af]?(\+PTX)?", named)
    wanted = {number for number, _ in names} | {number + ptx for number, ptx in names}
    bundles = device_code(library.read_bytes())
    missing = sorted({arch for bundle in bundles for arch in wanted - bundle}) if bundles else sorted(wanted)
    if missing:
        raise SystemExit(f"ste_ops: {library} has no device code for {', '.join(missing)} of {named}")


JOINED_LINES = 500


def joined(sources: list[str], folder: Path, lines_of_each: int) -> list[str]:
    """The sources of one library as fewer files, each of which includes neighbours: torch's headers take longer to
    compile than most of ours, and nvcc reads them for every arch."""
    alone = [source for source in sources if Path(source).parts[1] not in ("cpu", "cuda")]
    units: list[list[str]] = []
    lines = lines_of_each
    for source in sorted(set(sources) - set(alone)):
        length = Path(source).read_text().count("\n")
        if lines + length > lines_of_each:
            units.append([])
            lines = 0
        units[-1].append(source)
        lines += length
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, unit in enumerate(units):
        path = folder / f"{Path(unit[0]).parts[1]}_{number}{Path(unit[0]).suffix}"
        text = "".join(f'#include "{Path(source).relative_to("csrc").as_posix()}"\n' for source in unit)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        paths.append(str(path))
    return alone + paths


class Build(BuildExtension):
    """Compiles under build/ for `pip install -e` too, which would start anew in a temporary folder every time."""

    def finalize_options(self) -> None:
        asked_for = self.build_temp
        super().finalize_options()
        if asked_for is None and Path(self.build_temp).is_absolute():
            self.build_temp = f"build/temp.{get_platform()}-{sys.implementation.cache_tag}"

    def forget_what_is_older_than_a_source(self) -> None:
        """Where torch has no CUDA, its rule for nvcc notes no includes: ninja would keep what one of them changed."""
        newest = max(path.stat().st_mtime for path in (Path(__file__).parent / "csrc").rglob("*.*"))
        compiled = Path(self.build_temp)
        for old in [*compiled.glob("**/csrc/cuda/**/*.o"), *compiled.glob("**/joined/cuda*.o")]:
            if old.stat().st_mtime < newest:
                old.unlink()

    def run(self) -> None:
        self.forget_what_is_older_than_a_source()
        # In place an edit is built again and again: there each file is compiled by itself, unless one asks otherwise.
        lines = int(os.environ.get("STE_OPS_JOINED_LINES", 0 if self.inplace else JOINED_LINES))
        for extension in self.extensions if lines else []:
            extension.sources = joined(extension.sources, Path(self.build_temp, "joined"), lines)
        super().run()
        for extension in self.extensions:
            if extension.name == "ste_ops._cuda":
                refuse_missing_archs(Path(self.get_ext_fullpath(extension.name)), os.environ["TORCH_CUDA_ARCH_LIST"])
        # Python started in a clone imports the package there, also after `pip install .`: it needs the libraries too.
        if not self.inplace and not Path(self.build_lib).is_absolute():
            self.copy_extensions_to_source()


def main() -> None:
    with_cuda, why = decide_cuda()
    libraries = [cpu_library()]
    if with_cuda:
        libraries.append(cuda_library(cuda_home() or ""))
    # tests/support/cuda_library.py wants the CUDA library alone.
    wanted = [library for library in libraries if library.name.endswith(os.environ.get("STE_OPS_ONLY", ""))]
    print(
        "ste_ops build summary\n"
        f"  torch       {torch.__version__} (stable ABI target {TORCH_TARGET[0]}.{TORCH_TARGET[1]})\n"
        "  python ABI  cp310-abi3\n"
        f"  CPU         yes, {len(libraries[0].sources)} files\n"
        f"  CUDA        {'yes' if with_cuda else 'no'}: {why}\n"
        f"  CUDA archs  {os.environ['TORCH_CUDA_ARCH_LIST'] if with_cuda else '-'}"
    )
    setup(
        ext_modules=wanted,
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
