"""The README and the pages of docs/ say what is so: examples run, tables name what exists, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.kept import kept_bytes
from support.recomputed import BasicBlock
from torch import nn

import ste_ops
from ste_ops import __main__ as command
from ste_ops import _library

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[str]:
    """The examples of a page: what is typed at a prompt."""
    return [block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if ">>>" in block]


SHOWN = {named(page): "".join(blocks(page)) for page in PAGES if blocks(page)}


def test_these_pages_have_examples():
    """A page that has none any more is not tested."""
    assert {"README.md", *(f"docs/{name}.md" for name in ("deploy", "examples", "gradcheck", "quantize"))} <= {*SHOWN}


@pytest.mark.parametrize("page", SHOWN)
def test_python_examples(page):
    if "safetensors" in SHOWN[page]:
        pytest.importorskip("safetensors", reason="make test installs it")
    test = doctest.DocTestParser().get_doctest(SHOWN[page], {}, page, page, 0)
    assert len(test.examples) > 3
    failed, _ = doctest.DocTestRunner().run(test)
    assert failed == 0


def test_the_readme_is_short_and_says_early_what_no_gpu_has_shown():
    assert len(README.encode()) <= 9000
    assert README.splitlines()[2].startswith("**No kernel has run on a GPU yet**")
    gpu = re.search(r"^\| a GPU \| (.*?):", (ROOT / "docs" / "checked.md").read_text(), re.MULTILINE)
    assert gpu[1] == "**nothing yet**"


def test_the_two_commands_of_the_readme():
    shells = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    assert re.findall(r"^make (\w+)", shells, re.MULTILINE) == ["demo", "test"]


class SmallResNet(nn.Sequential):
    """What a test needs of torchvision's: its blocks, and the names of its first and last layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1))
        self.avgpool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)


def test_the_resnet_of_the_readme_trains_and_keeps_half_of_float(monkeypatch):
    if importlib.util.find_spec("torchvision") is None:
        models = SimpleNamespace(resnet18=SmallResNet)
        monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "torchvision" in block)
    made, made_quantized = block.split("\nquantize_(")
    space: dict[str, object] = {}
    exec(made, space)
    model, images = space["model"], space["images"]
    in_float, before = kept_bytes(model, images), model.layer2[0].conv1.weight.detach().clone()
    exec(f"quantize_({made_quantized}", space)
    assert not torch.equal(model.layer2[0].conv1.weight, before)
    assert 0.4 < kept_bytes(model, images) / in_float < 0.55
    summary = list(ste_ops.nn.summary(model))
    assert {row.bits for row in summary if row.quantized} == {(4, 4)}
    assert [row.name for row in summary if not row.quantized and row.type in ("Conv2d", "Linear")] == ["conv1", "fc"]


def test_tables_name_what_exists_and_leave_nothing_out():
    rows = (ROOT / "docs" / "operators.md").read_text()
    cells = re.findall(r"^\| (`[^|]*) \|", rows, re.MULTILINE)
    names = {name for cell in cells[1:] for name in re.findall(r"`([\w.]+)[(`]", cell)} - {"ste_ops."}
    for name in names:
        owner = ste_ops
        for part in name.split("."):
            assert hasattr(owner, part), f"ste_ops.{name}"
            owner = getattr(owner, part)
    families = {"data", "nn", "onnx", "reference", "surrogate", "testing", "__version__"}
    assert set(dir(ste_ops)) - families <= names
    assert {f"surrogate.{name}" for name in ste_ops.surrogate.__all__ if name != "Surrogate"} <= names
    assert {f"nn.{name}" for name in ste_ops.nn.__all__} <= names
    assert {f"data.{name}" for name in ste_ops.data.__all__} <= names
    assert {f"onnx.{name}" for name in ste_ops.onnx.__all__} <= names


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    targets = [page.parent / link.split("#")[0] for link in links if "://" not in link]
    assert [str(target) for target in targets if not target.exists()] == []


def test_the_tables_of_whole_nets_are_those_of_the_results():
    """`python -m benchmarks.net_figure RESULTS docs/nets.svg` draws the figure, and prints the README's rows."""
    figure = pytest.importorskip("benchmarks.net_figure", reason="runs in a checkout only")
    (results,) = set(re.findall(r"benchmarks/results/nets-[\d-]+\.md", README))
    assert results in (ROOT / "docs" / "speed.md").read_text()
    table = (ROOT / results).read_text()
    nets = figure.rows(table, 64)
    assert figure.short_table(nets) in README
    drawn = re.findall(r"<text[^>]*>([^<]*)", (ROOT / "docs" / "nets.svg").read_text())
    for kinds in nets.values():
        for step, kept in kinds.values():
            assert f"{figure.written(step)} ms" in drawn
            assert any(text.startswith(f"{figure.written(kept)} MiB") for text in drawn)
        assert kinds["ours, recompute_"][1] < min(kinds["float"][1], kinds["plain"][1])
    of_4 = {name: kinds for name, kinds in figure.rows(table, 4).items() if "ResNet-18" in name}
    assert len(of_4) == 2
    assert all(kinds["ours, recompute_"][1] > kinds["float"][1] for kinds in of_4.values())


def test_the_shares_of_a_step_are_those_of_the_results():
    page = (ROOT / "docs" / "speed.md").read_text()
    (results,) = set(re.findall(r"results/nets-[\d-]+\.md", page))
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "benchmarks" / results).read_text().splitlines()]
    eager = [cells for cells in lines if len(cells) == 8 and cells[2] == "eager"]
    shares = [(cells[0], cells[3], float(cells[5])) for cells in eager if cells[3].startswith("ours")]
    ranges = {
        "ours": [share for net, kind, share in shares if kind == "ours" and "BitNet" not in net],
        "recomputed": [share for net, kind, share in shares if kind != "ours" and "BitNet" not in net],
        "BitNet": [share for net, _, share in shares if "BitNet" in net],
    }
    for found in ranges.values():
        assert f"{min(found):.2f} to {max(found):.2f}" in " ".join(page.split())


def test_the_table_of_torches_is_that_of_the_newest_record():
    compat = pytest.importorskip("tools.compat", reason="runs in a checkout only")
    page = (ROOT / "docs" / "checked.md").read_text()
    newest = max((ROOT / "benchmarks" / "results").glob("compat-*.json"))
    assert f"benchmarks/results/{newest.name}" in page
    rows = compat.table(json.loads(newest.read_text())["rows"]).splitlines()
    assert len(rows) > 2
    assert {*rows} <= {*page.splitlines()}


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", index.read_text())
    pages = [path for path in (ROOT / "docs").glob("*.*") if path.suffix in (".md", ".txt") and path != index]
    assert len(pages) > 10
    assert [path.name for path in pages if path.name not in linked] == []


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_pages_meet_a_heading():
    links = [(page, *link) for page in PAGES for link in re.findall(r"\]\(([\w/.-]*\.md)#([\w-]+)\)", page.read_text())]
    assert len(links) > 2
    assert [(named(page), *link) for page, *link in links if link[1] not in anchors(page.parent / link[0])] == []


def test_files_that_the_pages_name_exist():
    path = re.compile(r"`((?:csrc|ste_ops|tests|docs|examples)/[\w./]*)`")
    names = {name for page in PAGES for name in path.findall(page.read_text())}
    assert len(names) > 10
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_a_device_is_in_the_name_of_no_tests_but_those_of_the_cuda_sources():
    tests = ROOT / "tests"
    names = {part for path in tests.rglob("test_*.py") for part in path.relative_to(tests).parts}
    assert [name for name in names if re.search("cpu|emulated|cuda", name)] == ["cuda"]


def test_make_targets_that_the_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    names = {name for page in PAGES for name in re.findall(r"`make ([\w-]+)", page.read_text())}
    assert {"demo", "test"} <= names <= targets


def test_errors_of_the_troubleshooting_are_those_of_the_library():
    page = (ROOT / "docs" / "install.md").read_text()
    source = Path(_library.__file__).read_text()
    for words in ("the compiled library", "is missing", "does not load with torch", "was built with CUDA"):
        assert words in page
        assert words in source
    assert "no CUDA kernel is loaded, because" in page
    assert "no CUDA kernel is loaded, because" in source


def test_info_command(capsys):
    command.main(["info"])
    assert re.search(r"^abi_target +2\.11$", capsys.readouterr().out, re.MULTILINE)
    command.main(["info", "--json"])
    assert json.loads(capsys.readouterr().out) == ste_ops.build_info()


def test_the_command_helps_where_it_is_given_nothing(capsys, monkeypatch):
    monkeypatch.setattr(command.sys, "argv", ["/bin/ste-ops"])
    command.main([])
    assert "usage: ste-ops " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        command.main(["--version"])
    assert capsys.readouterr().out == f"ste_ops {ste_ops.__version__}\n"
    assert f'ste-ops = "{command.main.__module__}:main"' in (ROOT / "pyproject.toml").read_text()
