"""examples/tutorial.py walks the tutorial, prints docs/tutorial.txt on every device, and what stands there is so."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tutorial

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.txt").read_text()
SECTIONS = re.split(r"^\d+\. ", PAGE, flags=re.MULTILINE)[1:]

# The table of the tutorial, row by row: what the sections must name, in this order.
ROWS = [
    "Dataset TensorDataset Subset DataLoader collate_fn num_workers pin_memory drop_last IterableDataset __getitems__",
    "SequentialSampler RandomSampler SubsetRandomSampler BatchSampler DistributedSampler "
    "WeightedBatchSampler DistributedWeightedSampler",
    "WeightedRandomSampler class_weights 2^24",
    ".grad retain_grad no_grad detach requires_grad_ backward(gradient=) autograd.grad(create_graph=True) "
    "autograd.backward set_grad_enabled zero_grad",
    "gradcheck jacobian hessian check_ste",
    "autograd.Function StraightThroughStep heaviside",
    "clip_grad_norm_ clip_grad_value_",
]


def shown(section: int) -> dict[str, list[str]]:
    """What a section, counted from 1, shows: a name and its values, in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^    (\S.*?)  +(\S.*)$", SECTIONS[section - 1], re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def numbers(value: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+(?:e[-+]\d+)?", value)]


def test_the_page_is_what_it_prints(device, request, tmp_path, capsys, monkeypatch):
    page, cuda = PAGE, torch.cuda.is_available()
    if "cpu" in request.node.callspec.id:  # as a user runs it, from another folder
        # torch 2.15 warns of its own torch.jit.script, which it calls itself.
        of_torch = "ignore::FutureWarning:torch.jit._script"
        command = [sys.executable, "-W", of_torch, str(ROOT / "examples" / "tutorial.py")]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        run = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        printed = run.stdout
    else:
        if "emulated" in request.node.callspec.id:  # 2^24 categories would take minutes there
            monkeypatch.setattr(tutorial.many_categories, "__code__", (lambda device: None).__code__)
            page = re.sub(r"( +\S+, with 2\^24 \+ 1 weights .*\n)", "", page)
        tutorial.main(["--device", device])
        printed = capsys.readouterr().out
    if cuda:
        page = re.sub(r"(batch.is_pinned\(\) +)False", r"\1True", page)
        page = re.sub(r"(there is no accelerator +)True", r"\1False", page)
    assert printed == page


def test_every_row_of_the_tutorial_has_its_section():
    assert len(SECTIONS) == len(tutorial.SECTIONS) == len(ROWS)
    for section, row in zip(SECTIONS, ROWS, strict=True):
        assert [name for name in row.split() if name not in section] == []


def test_data():
    section = shown(1)
    batches = numbers(section["list(loader)"][0])
    assert batches == [10 * i for i in numbers(section["what __getitems__ was asked for"][0])]
    assert len(batches) == 8
    assert 0 not in batches  # its weight
    drawn = numbers(section["numbers, squares of one batch"][0])
    assert [n * n for n in drawn[:4]] == drawn[4:]
    assert section["sizes with drop_last=False"] == ["[4, 4, 2]"]
    assert section["sizes with drop_last=True"] == ["[4, 4]"]
    assert section["the same as by none"] == ["True", "True"]
    assert len(numbers(section["12 samples by 2 workers"][0])) == 12


def test_samplers():
    section = shown(2)
    assert numbers(section["SequentialSampler"][0]) == list(range(10))
    assert sorted(numbers(section["RandomSampler"][0])) == list(range(10))
    part = numbers(section["ste_ops.multinomial(weights, 5)"][0])
    assert len(set(part)) == 5
    for epoch in range(2):
        assert sorted(numbers(section[f"SubsetRandomSampler of them, epoch {epoch}"][0])) == sorted(part)
    ours = section["ste_ops WeightedRandomSampler"]
    assert len(numbers(ours[0])) == 10
    batches = section["BatchSampler(WeightedRandomSampler, 4)"]
    assert batches == section["WeightedBatchSampler(weights, 4)"]
    assert numbers(batches[0]) == numbers(ours[0])
    assert [len(batch.split(",")) for batch in batches[0].split("], [")] == [4, 4, 2]
    assert len(numbers(section["the next epoch in a DataLoader"][0])) == 10
    assert section["len(tens.asked): calls of __getitems__"] == ["3"]


def test_ranks():
    section = shown(2)

    def rank(name, rank, ranks):
        return numbers(section[f"{name}, rank {rank} of {ranks}"][0])

    assert sorted(rank("DistributedSampler", 0, 2) + rank("DistributedSampler", 1, 2)) == list(range(10))
    stream = rank("DistributedWeightedSampler", 0, 1)
    assert len(stream) == 12
    assert [rank("DistributedWeightedSampler", r, 2) for r in range(2)] == [stream[::2], stream[1::2]]
    assert numbers(section["rank 1 of 2, after set_epoch(1)"][0]) != stream[1::2]
    assert numbers(section["rank 0 of 2, until then"][0]) == stream[:6:2]
    assert section["state['position']"] == ["6"]
    assert [numbers(section[f"rank {r} of 3, the rest"][0]) for r in range(3)] == [stream[6 + r :: 3] for r in range(3)]


def test_imbalance():
    section = shown(3)
    counts = torch.tensor(numbers(section["samples of each class"][0]))
    torch.testing.assert_close(
        torch.tensor(numbers(section["class_weights(labels)"][0])), counts.sum() / (3 * counts), rtol=1e-3, atol=0
    )
    for name, expected in (("evenly", 3 * counts), ("by class weight", torch.full((3,), 1000.0))):
        drawn = torch.tensor(numbers(section[f"of 3000 drawn {name}"][0]))
        assert drawn.sum() == 3000
        # Five standard deviations of a class's binomial count.
        assert ((drawn - expected).abs() < 5 * (expected * (1 - expected / 3000)).sqrt()).all()
    assert section["torch"] == section["ste_ops"]
    assert numbers(section["without replacement"][0]) == list(range(8))
    assert section["len(sampler)"] == [str(10**12)]
    assert section["torch, with 2^24 + 1 weights"] == ["number of categories cannot exceed 2^24"]
    assert all(0 <= i <= 2**24 for i in numbers(section["ste_ops, with 2^24 + 1 weights"][0]))


def test_gradients():
    section = shown(4)
    grads = ["[0, 1, 1, 0]", "[0, 2, 3, 0]"]
    assert section["x"] == ["[-1.5, -0.5, 0.25, 2]"]
    assert section["heaviside(x)"] == ["[0, 0, 1, 1]"]
    assert section["sign(x)"] == ["[-1, -1, 1, 1]"]
    assert section["x.grad"] == grads
    assert section["x.grad, after a second backward"] == ["[0, 2, 2, 0]"]
    assert section["hidden.grad, of sign(hidden)"] == ["[0, 1, 1, 0]"]
    assert section["x.grad, of hidden = 2 x"] == ["[0, 2, 2, 0]"]
    cut = [name for name, value in section.items() if value == ["False"]]
    assert cut == [
        "requires_grad under no_grad",
        "under set_grad_enabled(False)",
        "of sign(x.detach())",
        "of sign(x).detach()",
    ]
    sigmoid = [1 / (1 + math.exp(-4 * x)) for x in (-0.5, 0.0, 0.5)]
    assert numbers(section["s'(x) of Sigmoid(4.0)"][0]) == pytest.approx([4 * s * (1 - s) for s in sigmoid], rel=1e-3)
    assert numbers(section["s''(x)"][0]) == pytest.approx([16 * s * (1 - s) * (1 - 2 * s) for s in sigmoid], rel=1e-3)
    norm = math.hypot(0.5, 0.25)  # the slope is the weight where the gradient passes
    penalty = [2 * (norm - 1) * w / norm for w in (0.5, -0.25)]
    assert numbers(section["weight.grad of a gradient penalty"][0]) == pytest.approx(penalty, rel=1e-3)
    assert section["x.grad of 1 heaviside(x) + 10 sign(x)"] == ["[0, 11, 11, 0]"]
    assert section["x.grad after zero_grad(set_to_none=False)"] == ["[0, 0, 0, 0]"]
    assert section["x.grad after zero_grad()"] == ["None"]


def test_checks():
    section = shown(5)
    assert section["gradcheck(heaviside, x)"] == ["Jacobian mismatch for output 0 with respect to input 0"]
    assert {"backward", "derivative", "gradgradcheck"} <= set(
        section["check_ste(heaviside, Clip(1.0), x) passes"][0].strip("[]").split(", ")
    )
    assert "backward" in section["check_ste(heaviside, Clip(0.4), x) fails at"][0]
    assert numbers(section["jacobian(sign, x)"][0]) == torch.tensor([0.0, 1, 1, 0]).diag().flatten().tolist()
    assert numbers(section["hessian of sum of sign(x)"][0]) == [0, 0, 0, 0]
    assert numbers(section["hessian of sum of x sign(x)"][0]) == [2, 0, 0, 2]
    second = [16 * s * (1 - s) * (1 - 2 * s) for s in (1 / (1 + math.exp(-4 * x)) for x in (-0.5, 0.25))]
    assert numbers(section["hessian with Sigmoid(4.0)"][0]) == pytest.approx([second[0], 0, 0, second[1]], rel=1e-3)


def test_the_hand_written_step():
    section = shown(6)
    for name in ("StraightThroughStep", "ste_ops.heaviside"):
        assert section[f"{name}([-2, -0.5, 0, 0.5, 2])"] == ["[0, 0, 0, 1, 1]"]
    elements = 2**16 + 6
    theirs, ours = (numbers(value)[0] for value in section[f"saved for backward, {elements} elements"])
    assert (theirs, ours) == (4 * elements, math.ceil(elements / 8))
    assert section["values of the same bits"] == section["gradients of the same bits"] == [f"{elements} of {elements}"]
    assert section["check_ste(ste_ops.heaviside, ...) fails at"] == ["[]"]
    assert section["check_ste(StraightThroughStep.apply, ...) fails at"] != ["[]"]


def test_clipping():
    section = shown(7)
    for name in ("torch", "ste_ops"):
        assert section[f"{name}: norm, gradients after"] == ["[13, [1.5, -2], [6]]"]
        assert section[f"{name}: gradients after"] == ["[[3, -3.5], [3.5]]"]
    assert section["below the bound nothing changes"] == ["[13, [3, -4], [12]]"]
    assert section["norm_type=inf"] == ["[12, [1.5, -2], [6]]"]
