"""Private torch has one room, `ste_ops/_torch.py`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ste_ops"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "_torch.py")


def private(name):
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def dotted(node):
    """The names of `a.b.c`, or none where it begins with something else than a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and [*before, node.attr]
    return []


def private_names_of_torch(source):
    """What a module reaches of torch by a name that begins with one underscore, through imports too."""
    tree, roots, found = ast.parse(source), {"torch": "torch"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    found |= {alias.name} if private(alias.name) else set()
                    roots[alias.asname or "torch"] = alias.name if alias.asname else "torch"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found |= {name} if private(name) else set()
                roots[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        names = dotted(node)
        if names and names[0] in roots and private(".".join(names[1:])):
            found.add(".".join([roots[names[0]], *names[1:]]))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._functorch.unwrap_if_dead(x)",
        "from torch._C import _functorch",
        "from torch.autograd import forward_ad as ad\nad._current_level",
        "import torch.utils._pytree as pytree",
        "import torch as t\nt.autograd._profiler_enabled()",
    ],
)
def test_a_private_name_is_found(source):
    assert private_names_of_torch(source)


def test_public_names_are_not():
    assert not private_names_of_torch("import torch\nself._apply, torch.__version__, x._base\nfrom torch import Tensor")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_reaches_for_no_private_torch(path):
    assert private_names_of_torch(path.read_text()) == set()
