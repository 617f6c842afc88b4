"""The base of the checkers, whose comparisons count and fail with the place, and the report of what was compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

CHECKS = (
    "forward",
    "backward",
    "derivative",
    "nonfinite",
    "second_order",
    "gradgradcheck",
    "forward_mode",
    "vmap",
    "func",
    "compile",
)

NOT_ASKED = "not asked for"


@dataclass(frozen=True)
class Report:
    """What was compared: for each check the number of elements; and the checks that were left out, with the reasons.

    A check that ran and found nothing to compare is in ``checked`` with 0 and in ``reasons`` too.
    """

    operator: str
    surrogate: str
    checked: dict[str, int]
    left_out: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        done = ", ".join(f"{check} ({count})" for check, count in self.checked.items())
        rest = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.operator} with {self.surrogate}: {done}{rest}"


def check_names(caller: str, skip: Collection[str]) -> None:
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"{caller}: skip must name checks of {', '.join(CHECKS)}, got {', '.join(unknown)}")


def check_floating(caller: str, tensors: Collection[object]) -> None:
    for x in tensors:
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            raise TypeError(f"{caller}: inputs must be floating tensors, got {getattr(x, 'dtype', type(x).__name__)}")
    if not tensors:
        raise ValueError(f"{caller}: inputs must hold at least one tensor, got none")


def name_of(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, type):
        return owner.__name__
    return getattr(fn, "__name__", None) or type(fn).__name__


def ramp(x: Tensor) -> Tensor:
    """An incoming gradient of x's shape and dtype with both signs, the same at every call."""
    return torch.linspace(-2, 2, x.numel(), dtype=torch.float64, device=x.device).view(x.shape).to(x.dtype)


@dataclass
class Checker:
    """A subclass has a method for each check that it knows; `caller` is what errors begin with."""

    caller: str
    name: str
    atol: float
    rtol: float
    check: str = ""
    checked: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def runs(self) -> dict[str, Callable[[], None]]:
        """The checks by name, in the order of `CHECKS`."""
        raise NotImplementedError

    def leave_out(self, skip: Collection[str], compile: bool | str) -> None:
        """`skip` may be a mapping from names to reasons."""
        for check in CHECKS:
            if check in skip:
                self.reasons[check] = skip[check] if isinstance(skip, Mapping) else NOT_ASKED
            elif check == "compile" and not compile:
                self.reasons[check] = NOT_ASKED

    def run(self, check: str, run: Callable[[], None]) -> None:
        with self.named(check):
            run()
        if not self.checked[check]:
            self.reasons.setdefault(check, "nothing to compare")

    def report(self, surrogate: str) -> Report:
        """Runs every check that was not left out; the first that fails raises."""
        for check, run in self.runs().items():
            if check not in self.reasons:
                self.run(check, run)
        left_out = tuple(check for check in CHECKS if check not in self.checked)
        return Report(self.name, surrogate, self.checked, left_out, self.reasons)

    @contextmanager
    def named(self, check: str) -> Iterator[None]:
        self.check = check
        self.checked[check] = 0
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            hint = f"(skip=({check!r},) leaves this check out)"
            self.fail("", "it to run", f"{type(error).__name__}: {error} {hint}", error)

    def fail(self, place: str, expected: object, received: object, cause: Exception | None = None) -> NoReturn:
        raise AssertionError(
            f"{self.caller}: {self.check} of {self.name}{place}: expected {expected}, received {received}"
        ) from cause

    def tensor(self, received: Tensor | None, expected: Tensor, x: Tensor, place: str = "") -> Tensor:
        if not isinstance(received, Tensor):
            self.fail(place, f"a tensor of shape {tuple(expected.shape)}", received)
        for attribute in ("shape", "dtype"):
            wanted, got = getattr(expected, attribute), getattr(received, attribute)
            if wanted != got:
                self.fail(place, f"{attribute} {wanted} of x of shape {tuple(x.shape)}", f"{attribute} {got}")
        return received.detach()

    def equal(
        self,
        x: Tensor,
        received: Tensor | None,
        *expected: Tensor,
        exact: bool = False,
        where: Tensor | None = None,
        named: str = "",
    ) -> None:
        """Compares, element by element, with any of the expected tensors.

        An error says x at the place, or the index there of what `named` names.
        """
        received = self.tensor(received, expected[0], x, f" at {named}" if named else "")
        places = 0.0 if exact else 4 * torch.finfo(received.dtype).eps
        rtol, atol = (0.0, 0.0) if exact else (max(self.rtol, places), max(self.atol, places))
        good = torch.zeros_like(received, dtype=torch.bool)
        for one in expected:
            good |= torch.isclose(received, one, rtol=rtol, atol=atol, equal_nan=True)
        if where is not None:
            good |= ~where
        self.checked[self.check] += int(good.numel() if where is None else where.sum())
        if not bool(good.all()):
            first = tuple((~good).nonzero()[0].tolist())
            wanted = " or ".join(dict.fromkeys(f"{one[first].item():.7g}" for one in expected))
            place = f"{named}{list(first) if first else ''}" if named else f"x = {x[first].item()!r}"
            self.fail(f" at {place}", wanted, f"{received[first].item():.7g}")

    def linear(self, backward: Callable[[Tensor], Tensor | tuple[Tensor, ...]], grad: Tensor) -> None:
        """autograd's own checks of a backward as a function of its incoming gradient."""
        grad = grad.detach().requires_grad_()
        torch.autograd.gradcheck(backward, grad)
        torch.autograd.gradgradcheck(backward, grad)
        self.checked[self.check] += grad.numel()
