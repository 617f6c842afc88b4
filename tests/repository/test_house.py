"""The shape of the package: what its names promise, and which rooms may know which."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ste_ops

ROOT = next(folder for folder in Path(__file__).parents if (folder / "csrc").exists())
PACKAGE = Path(ste_ops.__file__).parent
CSRC = ROOT / "csrc"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


# Names.


def public_modules() -> Iterator[str]:
    yield "ste_ops"
    for found in pkgutil.walk_packages(ste_ops.__path__, "ste_ops."):
        if not any(part.startswith("_") and part != "__main__" for part in found.name.split(".")):
            yield found.name


def resolve(name: str) -> Any:
    parts = name.split(".")
    owner: Any = ste_ops
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(owner, part) and isinstance(owner, ModuleType):
            importlib.import_module(".".join(parts[:i]))
        owner = getattr(owner, part)
    return owner


def documented() -> Iterator[tuple[str, str]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield f"{module}:{getattr(node, 'name', '')}", ast.get_docstring(node) or ""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        yield str(page.relative_to(ROOT)), page.read_text()


def test_names_in_docs_exist():
    name = re.compile(r"(?<![\w./-])(ste_ops(?:\.[A-Za-z_]\w*)+)")
    named = {(place, found) for place, text in documented() for found in name.findall(text)}
    assert len({found for _, found in named}) > 50
    wrong = []
    for place, found in sorted(named):
        try:
            resolve(found)
        except (AttributeError, ImportError):
            wrong.append(f"{place}: {found}")
    assert wrong == []


def test_no_page_counts_what_grows():
    """A picture drawn anew, or a row more in a table, must not make a number wrong."""
    number = r"(?:[2-9]|\d\d+|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty)"
    counted = re.compile(rf"\b{number}\s+(?:surrogates|operators|quantizers|samplers)\b", re.IGNORECASE)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    assert {page.name: found for page in pages if (found := counted.findall(page.read_text()))} == {}


@pytest.mark.parametrize("name", list(public_modules()))
def test_dir_shows_public_names_alone(name):
    module = importlib.import_module(name)
    shown = dir(module)
    assert shown
    for entry in shown:
        value = getattr(module, entry)
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "ste_ops")
        assert home.split(".")[0] == "ste_ops", f"{name}.{entry} is of {home}"
        assert not entry.startswith("_") or entry == "__version__", f"{name}.{entry}"


STARS = [
    "ste_ops",
    "ste_ops.functional",
    "ste_ops.functional.quantize",
    "ste_ops.reference",
    "ste_ops.reference.quantize",
]


@pytest.mark.parametrize("name", STARS)
def test_a_star_import_leaves_builtins_alone(name):
    space: dict[str, Any] = {}
    exec(f"from {name} import *", space)
    assert "floor" in space
    assert set(space) & set(dir(builtins)) <= {"__builtins__"}
    assert importlib.import_module(name).round is not builtins.round
    assert "round" in dir(importlib.import_module(name))


def test_no_module_at_the_top_has_a_verbs_name():
    verbs = {"binarize", "clip", "draw", "quantize", "resample", "round", "sample"}
    modules = {found.name for found in pkgutil.iter_modules(ste_ops.__path__)}
    assert modules & (verbs | set(ste_ops.functional.__all__)) == set()
    families = {"binarize", "clip", "quantize", "sampling"}
    assert [name for name in families if hasattr(ste_ops, name)] == []


# Arguments.


def operators_of_modules() -> dict[str, tuple[type, Any]]:
    """Each class of `nn` with the function that its docstring begins with."""
    found = {}
    for name in ste_ops.nn.__all__:
        cls = getattr(ste_ops.nn, name)
        named = re.search(r"`ste_ops\.(\w+)`", (inspect.getdoc(cls) or "").splitlines()[0])
        if isinstance(cls, type) and named:
            found[name] = cls, getattr(ste_ops, named[1])
    return found


def test_a_module_takes_its_operators_parameters_in_their_order():
    compared = set()
    for name, (cls, operator) in operators_of_modules().items():
        (tensor, *of_operator) = inspect.signature(operator).parameters
        of_module = list(inspect.signature(cls).parameters)
        assert tensor in ("x", "w")
        if set(of_module) == set(of_operator):
            assert of_module == of_operator, name
            compared.add(name)
    assert {"PACT", "Ternary", "Sign", "SRSTE", "ClipGradientNorm"} <= compared


# Rooms of ste_ops from the ground up, each with those that it may import; a name with dots is one module of a room.

ROOMS: dict[str, set[str]] = {
    "_names": set(),
    "_torch": set(),
    "_library": {"__version__", "_torch"},
    "_dtensor": set(),
    "_dynamo": {"_torch"},
    "_checks": {"_dtensor"},
    "_random": {"_torch"},
    "_sent": set(),
    "_fx": set(),
    "_functions": {"_library", "_torch", "_dtensor", "_dynamo", "_checks", "_random"},
    "surrogate": {"_checks", "_fx", "_functions"},
    "functional": {
        *("_library", "_torch", "_dtensor", "_dynamo", "_checks", "_random", "_sent", "_fx"),
        *("_functions", "surrogate"),
    },
    "_patch": {"functional"},
    "nn": {"_torch", "_dtensor", "_checks", "_random", "_sent", "_fx", "surrogate", "functional"},
    "data": {"_library", "_torch", "_checks", "_random", "_sent", "functional"},
    "onnx": {"_names", "_library", "_torch", "_checks", "nn"},
    # The leaves.
    "reference": {"_names", "_random", "surrogate", "functional.clip.result"},
    "testing": {"", "_names", "_library", "surrogate", "reference"},
    "gallery": {"", "_names", "surrogate"},
    "demo": {"", "_names"},
    "__main__": {"", "_names", "testing", "gallery", "demo"},
    "": {"_names", "_library", "_patch", "functional", "surrogate", "nn", "data", "onnx", "reference", "testing"},
}


def imports(module: str) -> set[str]:
    """The modules and names of the package that a module imports, without the package's own."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            of_package = node.module == "ste_ops"
            found |= {f"ste_ops.{alias.name}" for alias in node.names} if of_package else {node.module or ""}
    return {name.removeprefix("ste_ops").removeprefix(".") for name in found if name.split(".")[0] == "ste_ops"}


def room_of(name: str) -> str:
    return name.removeprefix("ste_ops").removeprefix(".").split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room):
    modules = [module for module in TREES if room_of(module) == room]
    assert modules
    wrong = []
    for module in modules:
        for imported in sorted(imports(module)):
            if room_of(imported) != room and not {imported, room_of(imported)} & ROOMS[room]:
                wrong.append(f"{module} imports ste_ops.{imported}")
    assert wrong == []


def test_every_room_has_a_row():
    assert {room_of(module) for module in TREES} == set(ROOMS)


# Rooms of csrc, with those that their files may include.

INCLUDES: dict[str, set[str]] = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "cpu": {"core", "ops", "cpu"},
    "cuda": {"core", "ops", "cuda", "cuda_emulator.h"},
    "packaging": {"packaging"},
    "registration.cpp": {"core", "ops", "cpu"},
}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+(["<][^">]+)', path.read_text(), re.MULTILINE)


def test_kernels_refuse_in_their_own_words():
    """STD_TORCH_CHECK puts a C++ function and its file before the message."""
    used = [path for path in CSRC.rglob("*.*") if "STD_TORCH_CHECK(" in path.read_text()]
    assert used == []


def test_csrc_has_no_header_at_its_root():
    assert {path.name for path in CSRC.iterdir()} == set(INCLUDES)


@pytest.mark.parametrize("room", INCLUDES)
def test_a_room_of_csrc_includes_what_it_may(room):
    place = CSRC / room
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    assert files
    wrong = []
    for path in files:
        for included in includes(path):
            own = included.startswith('"')
            if own and included[1:].split("/")[0] not in INCLUDES[room]:
                wrong.append(f"{path.relative_to(ROOT)} includes {included[1:]}")
            elif own and included[1:] != "cuda_emulator.h" and not (CSRC / included[1:]).exists():
                wrong.append(f"{path.relative_to(ROOT)} includes {included[1:]}, not written from csrc")
            elif room == "core" and re.match(r"<(torch|ATen|c10|Python)", included):
                wrong.append(f"{path.relative_to(ROOT)} includes {included}>")
    assert wrong == []


# Size.


def test_a_function_can_be_read_in_one_sitting():
    long = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                told = node.body[0] if ast.get_docstring(node) is not None else None
                lines = node.end_lineno - node.lineno + 1 - (told.end_lineno - told.lineno + 1 if told else 0)
                if lines >= 50:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert long == []
