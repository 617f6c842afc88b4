"""The README says what is so: its examples run, its tables name what exists, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import ste_ops
from ste_ops import __main__ as command
from ste_ops import _library

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_python_examples_of_the_readme():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, "README.md", "README.md", 0)
    assert len(test.examples) > 10
    failed, _ = doctest.DocTestRunner().run(test)
    assert failed == 0


def test_tables_name_what_exists_and_leave_nothing_out():
    rows = re.search(r"## Operators\n(.*?)\n## ", README, re.DOTALL)[1]
    cells = re.findall(r"^\| (`[^|]*) \|", rows, re.MULTILINE)
    named = {name for cell in cells[1:] for name in re.findall(r"`([\w.]+)[(`]", cell)} - {"ste_ops."}
    for name in named:
        owner = ste_ops
        for part in name.split("."):
            assert hasattr(owner, part), f"ste_ops.{name}"
            owner = getattr(owner, part)
    families = {"data", "nn", "onnx", "reference", "surrogate", "testing", "__version__"}
    assert set(dir(ste_ops)) - families <= named
    assert {f"surrogate.{name}" for name in ste_ops.surrogate.__all__ if name != "Surrogate"} <= named
    assert {f"nn.{name}" for name in ste_ops.nn.__all__} <= named
    assert {f"data.{name}" for name in ste_ops.data.__all__} <= named
    assert {f"onnx.{name}" for name in ste_ops.onnx.__all__} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    targets = [page.parent / link.split("#")[0] for link in links if "://" not in link]
    assert [str(target) for target in targets if not target.exists()] == []


def test_files_that_the_pages_name_exist():
    path = re.compile(r"`((?:csrc|ste_ops|tests|docs|examples)/[\w./]*)`")
    named = {name for page in PAGES for name in path.findall(page.read_text())}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_a_device_is_in_the_name_of_no_tests_but_those_of_the_cuda_sources():
    tests = ROOT / "tests"
    names = {part for path in tests.rglob("test_*.py") for part in path.relative_to(tests).parts}
    assert [name for name in names if re.search("cpu|emulated|cuda", name)] == ["cuda"]


def test_make_targets_that_the_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([\w-]+)", page.read_text())}
    assert {"demo", "test"} <= named <= targets


def test_errors_of_the_troubleshooting_are_those_of_the_library():
    source = Path(_library.__file__).read_text()
    for words in ("the compiled library", "is missing", "does not load with torch", "was built with CUDA"):
        assert words in README
        assert words in source
    assert "no CUDA kernel is loaded, because" in README
    assert "no CUDA kernel is loaded, because" in source


def test_info_command(capsys):
    command.main(["info"])
    assert re.search(r"^abi_target +2\.11$", capsys.readouterr().out, re.MULTILINE)
