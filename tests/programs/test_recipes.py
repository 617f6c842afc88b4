"""The loops of docs/recipes.md train as the same loops through torch.nn.utils do."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPES = [
    (name, i, block)
    for name, text in SECTIONS.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]
ACCUMULATED = {"Gradient accumulation": 2, "Accelerate": 2}


def expected(model, batches, loss_of, accumulated):
    """Whether any step clipped and any did not; the model is trained."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    clipped = set()
    for i, (x, y) in enumerate(batches):
        (loss_of(model(x), y) / accumulated).backward()
        if i % accumulated == accumulated - 1:
            clipped.add(bool(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5))
            optimizer.step()
            optimizer.zero_grad()
    return clipped


@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize(("name", "number", "block"), RECIPES, ids=[f"{n} {i}" for n, i, _ in RECIPES])
def test_recipe(name, number, block):
    for package in re.findall(r"^import (\w+)$", block, re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    batches = [(torch.randn(6, 4), torch.randn(6, 1) * scale) for scale in (3.0, 3.0, 0.1, 0.1, 2.0, 2.0, 0.1, 0.1)]
    loss_of = torch.nn.functional.mse_loss
    reference = copy.deepcopy(model)
    assert expected(reference, batches, loss_of, ACCUMULATED.get(name, 1)) == {True, False}
    start = copy.deepcopy(model)
    exec(PAGE.split("```python\n")[1].split("```")[0] + block, {"model": model, "batches": batches, "loss_of": loss_of})
    for p, q, r in zip(model.parameters(), reference.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, r)


def test_every_recipe_is_found():
    assert [name for name, _, _ in RECIPES] == [
        "A plain loop",
        "Folded into the step",
        "Folded into the step",
        "GradScaler",
        "GradScaler",
        "Gradient accumulation",
        "Experts that differ by rank",
        "Trainers that clip by themselves",
        "Hugging Face's Trainer",
        "Lightning",
        "Accelerate",
    ]
