"""The `Moves:` lines before the kernels of csrc/cuda (launch.cuh says what they mean), and what they come to."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emulator import Launch
from emulator.counts import Traffic

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"

# A kernel, or a struct that a kernel is made for, with the comment and the template parameters before it.
DEFINITION = re.compile(
    r"^(?P<comment>(?://.*\n)*)(?:template <(?P<template>.*)>\n)?"
    r"(?:(?:inline )?__global__ void\s+(?:__launch_bounds__\(.*?\)\s+)?(?P<kernel>\w+)\("
    r"|struct (?P<struct>\w+)(?: : [^{]+)? \{)",
    re.MULTILINE,
)
LINE = re.compile(r"^// Moves(?: \((?P<label>[^)]+)\))?: (?P<text>.*)\.$")
FORMULA = re.compile(r"reads (?P<reads>[^,;]+), writes (?P<writes>[^,;]+)(?:; .*)?")
AMOUNT = re.compile(r"(?P<at_most>at most )?(?P<amount>.+?)(?: \(again (?P<again>.+)\))?")
# Of the types that templates are instantiated with, as they are demangled.
BYTES = {"bool": 1, "unsigned short": 2, "unsigned int": 4, "float": 4, "long": 8, "unsigned long": 8, "double": 8}
BYTES |= {"Half": 2, "BFloat16": 2}
BYTES |= {"Additive": 8, "AdditivePair": 16, "Maximum": 8}  # of a total


@dataclass(frozen=True)
class Amount:
    amount: str
    at_most: bool
    again: str


@dataclass(frozen=True)
class Moves:
    """No amounts: no fixed number."""

    reads: Amount | None
    writes: Amount | None


@dataclass(frozen=True)
class Definition:
    parameters: tuple[str, ...]
    moves: dict[str, Moves]  # by label, "" for none


def _amount(text: str) -> Amount:
    found = AMOUNT.fullmatch(text)
    again = {None: "0", "all": found["amount"]}.get(found["again"], found["again"])
    return Amount(found["amount"], bool(found["at_most"]), again)


def moves_of(comment: str) -> dict[str, Moves]:
    """By label; raises ValueError for a line that is not of the form."""
    moves: dict[str, Moves] = {}
    for line in (line for line in comment.splitlines() if "Moves" in line):
        found = LINE.match(line)
        formula = found and FORMULA.fullmatch(found["text"])
        if not found or not (formula or found["text"].startswith("no fixed number: ")):
            raise ValueError(f"not of the form that csrc/cuda/launch.cuh gives: {line}")
        sides = [_amount(formula[side]) for side in ("reads", "writes")] if formula else [None, None]
        moves[found["label"] or ""] = Moves(*sides)
    return moves


def definitions_of(source: str, named: str) -> dict[str, Definition]:
    """The kernels of a source ("kernel") or its structs ("struct"), by name."""
    return {
        found[named]: Definition(
            tuple(parameter.split()[-1] for parameter in (found["template"] or "").split(", ") if parameter),
            moves_of(found["comment"]),
        )
        for found in DEFINITION.finditer(source)
        if found[named]
    }


@functools.cache
def definitions(named: str) -> dict[str, Definition]:
    sources = [path for path in sorted(CUDA.rglob("*")) if path.suffix in (".cu", ".cuh")]
    return {name: found for path in sources for name, found in definitions_of(path.read_text(), named).items()}


def template_arguments(type_: str) -> list[str]:
    """Of a demangled name that ends in its arguments."""
    arguments, depth = [""], 0
    for letter in type_[type_.find("<") + 1 : type_.rfind(">")] if "<" in type_ else "":
        depth += (letter in "<(") - (letter in ">)")
        if letter == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += letter
    return [argument.strip() for argument in arguments if argument]


def kernel_arguments(launch: Launch) -> list[str]:
    """The template arguments of a launched kernel."""
    behind = launch.signature.split(launch.kernel, 1)[1]
    return template_arguments(behind[: behind.find(">(") + 1]) if behind.startswith("<") else []


class Names:
    """What the names of a line stand for: the sizes of a call, and the template arguments of its kernel."""

    def __init__(self, sizes: Mapping[str, int], bound: dict[str, str]):
        self.sizes, self.bound = sizes, bound

    def value(self, expression: str, side: Callable[[Moves], Amount]) -> int:
        return self._value(ast.parse(expression, mode="eval").body, side)

    def _value(self, node: ast.expr, side: Callable[[Moves], Amount]) -> int:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._name(node.id, side)
        if not isinstance(node, ast.BinOp):
            raise ValueError(f"only sums, products and quotients: {ast.unparse(node)}")
        left, right = self._value(node.left, side), self._value(node.right, side)
        operations = {ast.Add: left + right, ast.Mult: left * right, ast.Div: -(-left // max(right, 1))}
        return operations[type(node.op)]

    def _name(self, name: str, side: Callable[[Moves], Amount]) -> int:
        if name in self.sizes:
            return self.sizes[name]
        if name not in self.bound and name == "A":
            return max(4, self._name("T", side))  # arithmetic_t<T>
        if name not in self.bound:
            raise LookupError(f"{name} is neither a size of the call nor a template parameter")
        argument = self.bound[name]
        if re.fullmatch(r"\d+", argument):
            return int(argument)
        unqualified = re.sub(r"<.*", "", argument).split("::")[-1]
        if unqualified in BYTES:
            return BYTES[unqualified]
        struct = definitions("struct").get(unqualified)
        if not struct or "" not in struct.moves:
            raise LookupError(f"{unqualified}, which {name} stands for, has no Moves line")
        own = Names(self.sizes, self.bound | dict(zip(struct.parameters, template_arguments(argument), strict=True)))
        return own.value(side(struct.moves[""]).amount, side)


# Words that many threads share (seeds, steps, what stands once for a row) are no array that is read twice: so many
# bytes of a launch, and one in so many.
SHARED, SHARE = 64, 64


def differences(launch: Launch, kernel: Definition, sizes: Mapping[str, int], label: str = "") -> list[str]:
    """Where a launch moved something else than the kernel's line says; nothing to compare where that has no number."""
    if label not in kernel.moves:
        return [f"{launch.kernel} has no line that begins with Moves{f' ({label})' if label else ''}"]
    names = Names(sizes, dict(zip(kernel.parameters, kernel_arguments(launch), strict=True)))
    moves = kernel.moves[label]
    sides: list[tuple[str, Traffic, Callable[[Moves], Amount]]] = [
        ("reads", launch.loads, lambda moves: moves.reads),
        ("writes", launch.stores, lambda moves: moves.writes),
    ]
    wrong = []
    for verb, traffic, side in sides if moves.reads else []:
        amount = side(moves)
        try:
            must, again = names.value(amount.amount, side), names.value(amount.again, side)
        except LookupError as error:
            wrong.append(f"{launch.kernel}: {error}")
            continue
        if traffic.distinct > must or (traffic.distinct < must and not amount.at_most):
            wrong.append(f"{launch.kernel} {verb} {amount.amount} = {must} bytes, counted were {traffic.distinct}")
        if traffic.again > again + max(SHARED, must // SHARE) and not amount.at_most:
            wrong.append(f"{launch.kernel} {verb} {again} bytes again, counted were {traffic.again}")
    return wrong
