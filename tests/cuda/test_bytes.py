"""What each kernel says that it must move (the `Moves:` line before it) is what the emulator counts."""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass

import emulator
import pytest
import torch
from emulator import emulated_kernels
from support.kernel_moves import CUDA, definitions, definitions_of, differences, moves_of
from support.moved_cases import DTYPES, FAMILIES, Case

from ste_ops._library import ops


@dataclass(frozen=True)
class Compared:
    kernel: str
    label: str
    differences: list[str]


def compare(case: Case) -> list[Compared]:
    """Every launch of a call with the line of its kernel."""
    with emulator.counted() as launches:
        getattr(ops, case.operator)(*case.arguments)
    compared, seen = [], collections.Counter()
    for launch in launches:
        sizes = case.of_launch(launch.kernel, seen[launch.kernel])
        seen[launch.kernel] += 1
        label = sizes.pop("label", "")
        found = differences(launch, definitions("kernel")[launch.kernel], sizes, label)
        compared.append(Compared(launch.kernel, label, [f"{case.operator}: {difference}" for difference in found]))
    return compared


@pytest.fixture(scope="module")
def compared() -> dict[tuple[str, torch.dtype], list[Compared]]:
    """Of every family and dtype."""
    torch.manual_seed(0)
    with emulated_kernels():
        return {
            (family, dtype): [launch for case in cases(dtype) for launch in compare(case)]
            for family, cases in FAMILIES.items()
            for dtype in DTYPES
        }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_move_what_they_say(compared, family, dtype):
    launches = compared[family, dtype]
    assert launches
    wrong = [difference for launch in launches for difference in launch.differences]
    assert not wrong, "\n".join(wrong)


def test_many_rows_are_not_left_to_one_block():
    """Which has to wait for one load after another, each most of a microsecond."""
    states = torch.ones(5000, dtype=torch.int64)
    with emulated_kernels(), emulator.counted() as launches:
        ops.refuse_states(torch.ones(5000, 1), states, "a test")
    alone = {launch.kernel: launch.loads.asked for launch in launches if launch.blocks == 1}
    assert alone
    assert {kernel: asked for kernel, asked in alone.items() if asked > 32 * 1024} == {}


def test_every_line_is_compared(compared):
    """One without a number is none to compare, but its kernel must have run beside it."""
    ran = {(launch.kernel, launch.label) for launches in compared.values() for launch in launches}
    said = {(kernel, label) for kernel, found in definitions("kernel").items() for label in found.moves}
    assert said - ran == set()


def test_every_kernel_says_what_it_moves():
    kernels = definitions("kernel")
    assert [kernel for kernel, found in kernels.items() if not found.moves] == []
    # None is hidden from the parser by its layout, and no line belongs to nothing.
    sources = [path.read_text() for path in CUDA.rglob("*") if path.suffix in (".cu", ".cuh")]
    assert {name for source in sources for name in re.findall(r"\b(\w+_kernel)\(", source)} == set(kernels)
    lines = sum(len(re.findall(r"^// Moves", source, re.MULTILINE)) for source in sources)
    assert lines == sum(len(found.moves) for of in ("kernel", "struct") for found in definitions(of).values())


def test_a_kernel_without_a_line_is_seen():
    source = "// Adds.\ntemplate <class T>\n__global__ void __launch_bounds__(256)\n    add_kernel(T* x) {\n"
    found = definitions_of(source, "kernel")["add_kernel"]
    assert (found.parameters, found.moves) == (("T",), {})
    moves = definitions_of(source.replace("Adds.", "Moves: reads n * T, writes n * T."), "kernel")["add_kernel"].moves
    assert (moves[""].reads.amount, moves[""].writes.again) == ("n * T", "0")


@pytest.mark.parametrize(
    "line", ["// Moves: reads n * T.", "// Moves: reads n, writes n", "// Moves: much.", "// Moves n."]
)
def test_a_line_of_another_form_is_refused(line):
    with pytest.raises(ValueError, match="not of the form"):
        moves_of(line + "\n")
