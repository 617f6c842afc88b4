"""What the sources of csrc/cuda say of their kernels: the launch bounds, and which 128-bit vectors they move."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

BEGINS = re.compile(r"(?:template|struct|class|inline|STE_HD|__global__|__device__)\b")
BOUNDS = re.compile(r"__launch_bounds__\((\w+)(?:, (\d+))?\)\s*")
NAME = re.compile(r"^(?:struct|class) (\w+)|(\w+)\(", re.MULTILINE)
LOOP = re.compile(r"for \(int k = 0; k < (\w+);")
READ_AHEAD = re.compile(r"\b\w+\[k\] = read_vector\(")


@dataclass(frozen=True)
class Definition:
    text: str
    bounds: str  # the name of the threads of a block, "" without launch bounds
    blocks: int  # that must fit into a multiprocessor by the launch bounds, 0 where they do not say


def _pieces(source: str) -> Iterator[str]:
    """Each definition that begins a line, to the brace that ends it."""
    piece = ""
    for line in source.splitlines(keepends=True):
        if piece or BEGINS.match(line):
            piece += line
        if piece and piece.count("{") == piece.count("}") and piece.rstrip().endswith(("}", ";")):
            yield piece
            piece = ""


def definitions_of(source: str) -> dict[str, Definition]:
    """The functions, kernels and structs of a source; overloads under one name."""
    found: dict[str, Definition] = {}
    for text in (piece for piece in _pieces(source) if "{" in piece):
        plain = BOUNDS.sub("", re.sub(r"^template <.*>\n", "", text))
        name = next(filter(None, NAME.search(plain).groups()))
        bounds = BOUNDS.search(text)
        earlier = found[name].text if name in found else ""
        found[name] = Definition(earlier + plain, *((bounds[1], int(bounds[2] or 0)) if bounds else ("", 0)))
    return found


@functools.cache
def _sources() -> tuple[str, ...]:
    paths = [*(ROOT / "csrc" / "cuda").rglob("*"), *(ROOT / "csrc" / "core").rglob("*.h")]
    return tuple(path.read_text() for path in sorted(paths) if path.suffix in (".cu", ".cuh", ".h"))


@functools.cache
def definitions() -> dict[str, Definition]:
    cuda = [source for source in _sources() if "__device__" in source or "__global__" in source]
    return {name: found for source in cuda for name, found in definitions_of(source).items()}


def kernels() -> dict[str, Definition]:
    return {name: found for name, found in definitions().items() if name.endswith("_kernel")}


def _value(expression: str, constants: dict[str, str]) -> int:
    """Of numbers, products and constants; the lesser one of a choice, and 0 of what only a template knows."""
    if "?" in expression:
        return min(_value(choice, constants) for choice in expression.split("? ")[1].split(" : "))
    product = 1
    for factor in expression.split(" * "):
        product *= int(factor) if factor.isdigit() else _value(constants.get(factor, "0"), constants)
    return product


@functools.cache
def _constants() -> dict[str, str]:
    lines = [found for source in _sources() for found in re.findall(r"^constexpr \w+ (\w+) = ([^;]+);", source, re.M)]
    return dict(lines)


def constant(name: str) -> int:
    return _value(_constants()[name], _constants())


@functools.cache
def called_by(name: str) -> frozenset[str]:
    """The names of all definitions that a kernel or a struct comes to."""
    seen: set[str] = set()
    left = {name}
    while left:
        seen |= left
        words = {word for one in left for word in re.findall(r"\w+", definitions()[one].text)}
        left = (words & definitions().keys()) - seen
    return frozenset(seen)


def vectors_ahead(kernel: str) -> int:
    """The 128-bit loads that every instance of a kernel issues in loops before it uses the first of them."""
    vectors = 0
    for name in called_by(kernel):
        text, bound = definitions()[name].text, "0"
        constants = _constants() | dict(re.findall(r"constexpr \w+ (\w+) = ([^;]+);", text))
        for line in text.splitlines():
            loop = LOOP.search(line)
            bound = loop[1] if loop else bound
            if "if constexpr" not in line:
                vectors += len(READ_AHEAD.findall(line)) * _value(bound, constants)
    return vectors
