"""What the kernels load from global memory and store there, launch by launch (counter.h)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes: all that threads asked for, the distinct ones, and those of them that were moved again."""

    asked: int
    distinct: int
    again: int


@dataclass(frozen=True)
class Launch:
    signature: str
    blocks: int
    loads: Traffic
    stores: Traffic

    @property
    def kernel(self) -> str:
        return re.search(r"\b(\w+_kernel)\b", self.signature)[1]


@functools.cache
def _names(path: str) -> dict[int, str]:
    """The signatures of a library's functions by their place in it; most kernels are local to their file."""
    listed = subprocess.run(["nm", "-C", "--defined-only", path], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.findall(r"^(\w+) [tTwW] (.*_kernel\b.*)$", listed, re.MULTILINE)
    return {int(place, 16): name for place, name in found}


@contextlib.contextmanager
def counted_in(library: ctypes.CDLL) -> Iterator[list[Launch]]:
    library.emulator_counts.restype = ctypes.c_char_p
    launches: list[Launch] = []
    library.emulator_count(1)
    try:
        yield launches
    finally:
        library.emulator_count(0)
    for line in library.emulator_counts().decode().splitlines():
        place, blocks, *numbers = map(int, line.split())
        launches.append(Launch(_names(library._name)[place], blocks, Traffic(*numbers[:3]), Traffic(*numbers[3:])))
