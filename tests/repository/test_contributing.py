"""Follows 'Add a surrogate in three steps' of CONTRIBUTING.md in a copy of the repository, and tests what comes out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.compiler import compiler_without_optimization

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"^\d\. `(?P<file>[^`]+)`:.*?^ +```\w+\n(?P<code>.*?)^ +```$", re.MULTILINE | re.DOTALL)


def steps():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Add a surrogate in three steps")[1].split("\n## ")[0]
    return {step["file"]: textwrap.dedent(step["code"]) for step in STEP.finditer(section)}


def add_struct(path, code):
    struct, using = code.split("using Surrogates")
    (name,) = re.findall(r"(\w+)>;", using)
    old = path.read_text()
    new = re.sub(r"(using Surrogates = std::tuple<[^>]*)>;", rf"\1, {name}>;", old).replace(
        "// The position in this list", struct + "// The position in this list"
    )
    assert new.count(name) >= old.count(name) + 4
    path.write_text(new)


def add_class(path, code):
    (name,) = re.findall(r"^class (\w+)", code, re.MULTILINE)
    new = path.read_text().replace("__all__ = [", f'__all__ = ["{name}", ')
    path.write_text(new + "\n\n" + code)


def add_row(path, code):
    old = path.read_text()
    new = re.sub(r"(?<=\nSURROGATES: )(.*?)\n}\n", rf"\1\n{textwrap.indent(code, '    ')}}}\n", old, flags=re.DOTALL)
    (name,) = re.findall(r'^"(\w+)"', code)
    new = new.replace("from ste_ops.surrogate import (", f"from ste_ops.surrogate import (\n    {name},")
    assert new.count(name) == old.count(name) + 4
    path.write_text(new)


EDITS = {
    "csrc/core/binarize/surrogate.h": add_struct,
    "ste_ops/surrogate/masks.py": add_class,
    "tests/support/surrogate_table.py": add_row,
}


def run(folder, *command):
    environment = {**os.environ, "FORCE_CUDA": "0", "PYTHONPATH": str(folder)}
    environment["CXX"] = compiler_without_optimization(folder)
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "native")
    for name in ("csrc", "ste_ops", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    # The kernels of the other families take time to compile, and nothing here calls them; the module needs these.
    needed = ("binarize.cpp", "curve.cpp", "python_list.cpp", "norm.cpp", "in_place.cpp", "python_draws.cpp")
    for source in (folder / "csrc" / "cpu").rglob("*.cpp"):
        if source.name not in needed:
            source.unlink()
    return folder


def test_the_steps_name_the_three_files():
    assert list(steps()) == list(EDITS)
    assert len(EDITS) == 3


@pytest.mark.slow
def test_a_surrogate_added_in_three_steps_passes_the_tests(copy):
    for file, code in steps().items():
        EDITS[file](copy / file, code)
    run(copy, "setup.py", "-q", "build_ext", "--inplace")
    tests = ["tests/binarize/test_values.py", "-k", "Band and cpu or every_surrogate_has_a_row"]
    summary = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert int(re.findall(r"(\d+) passed", summary)[0]) > 10
    assert "failed" not in summary
