"""Checks for straight-through estimators, the ones here and your own.

`torch.autograd.gradcheck` cannot check a straight-through estimator (STE). It compares the backward with finite
differences of the forward; the forward is a step, whose differences are 0, and the backward is deliberately something
else. It fails on every STE where the gradient passes, with the identity as surrogate too, and passes where no gradient
does, whatever the backward should have been. What stands behind the backward is the surrogate's primitive, a function
whose derivative is the surrogate, so `check_ste` takes finite differences of that. Two uses of gradcheck stay true: the
backward is linear in its incoming gradient, so ``gradcheck(lambda g: torch.autograd.grad(fn(x), x, g,
create_graph=True)[0], g)`` must pass, and its gradgradcheck too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

__all__ = ["CHECKS", "Report", "SurrogateLike", "check_ste"]

CHECKS = ("forward", "backward", "derivative", "nonfinite", "second_order", "forward_mode", "vmap", "compile")

# Finite differences lose everything where a step of eps * abs(x) is itself wide.
_LARGEST = 1e6


class SurrogateLike(Protocol):
    """What `check_ste` asks of a surrogate; `ste_ops.surrogate` has it, and any object of yours may."""

    def derivative(self, x: Tensor) -> Tensor:
        """s'(x), elementwise, for float32 and float64."""

    def primitive(self, x: Tensor) -> Tensor:
        """A continuous function whose derivative is s', elementwise, for float64."""

    def kinks(self) -> Sequence[float]:
        """Where s' jumps."""


@dataclass(frozen=True)
class Report:
    """What `check_ste` compared: for each check the number of elements, and the checks that were left out."""

    operator: str
    surrogate: str
    checked: dict[str, int]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        done = ", ".join(f"{check} ({count})" for check, count in self.checked.items())
        rest = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.operator} with {self.surrogate}: {done}{rest}"


def check_ste(
    fn: Callable[[Tensor], Tensor],
    surrogate: SurrogateLike,
    inputs: Tensor | Sequence[Tensor],
    *,
    reference: Callable[[Tensor], Tensor] | None = None,
    name: str | None = None,
    skip: Collection[str] = (),
    compile: bool | str = False,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> Report:
    """Checks that an elementwise straight-through estimator has the gradient that its surrogate says.

    The checks, in this order:

    - ``forward``: shape and dtype of the input, the values of ``reference`` where one is given, NaN included;
    - ``backward``: float64, on the inputs and on a grid across the kinks, against finite differences of
      ``surrogate.primitive``: central ones, one-sided beside a kink, either side's on it;
    - ``derivative``: in each input's own dtype, the incoming gradient times ``surrogate.derivative``, and exactly 0
      where that is 0;
    - ``nonfinite``: still exactly 0 there when the incoming gradient is NaN or infinite;
    - ``second_order``: the backward is differentiable in its incoming gradient, and its derivative with respect to x is
      that of ``surrogate.derivative`` (0 for a mask; no path to x counts as 0);
    - ``forward_mode``: tangents are multiplied by ``surrogate.derivative``;
    - ``vmap``: ``torch.func.vmap`` over ``torch.func.vjp``, along the first and the last dimension, equals eager;
    - ``compile``: ``torch.compile(fullgraph=True)``, forward and backward, equals eager; only if ``compile`` is set.

    Args:
        fn: takes one tensor, returns one of its shape; for a ``torch.autograd.Function``, its ``apply``.
        surrogate: one of `ste_ops.surrogate`, or any object with `derivative`, `primitive` and `kinks`.
        inputs: a floating tensor or a sequence of them, of any shapes; special values are welcome.
        reference: the forward to compare with, exactly.
        name: how errors call ``fn``; default its own name.
        skip: names from `CHECKS` to leave out, such as ``("forward_mode", "vmap")`` for a Function without them.
        compile: True, or the name of a ``torch.compile`` backend.
        eps: the step of the finite differences, relative to abs(x) where that is above 1.
        atol, rtol: tolerances; never under 4 units in the last place of the dtype.

    Returns:
        A `Report` of what was compared.

    Raises:
        AssertionError: a check failed; it names the check, the operator, the place, what was expected and received.
        TypeError, ValueError: an argument is none of the above.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-1.5, -0.0, 0.3, 1.0])
        >>> report = ste_ops.testing.check_ste(ste_ops.heaviside, ste_ops.surrogate.Clip(1.0), x)
        >>> sorted(report.checked)
        ['backward', 'derivative', 'forward', 'forward_mode', 'nonfinite', 'second_order', 'vmap']
        >>> ste_ops.testing.check_ste(ste_ops.heaviside, ste_ops.surrogate.Clip(2.0), x)
        Traceback (most recent call last):
        AssertionError: check_ste: backward of heaviside at x = -1.992: expected 1, received 0
    """
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check_arguments(surrogate, tensors, skip)
    left_out = [check for check in CHECKS if check in skip or (check == "compile" and not compile)]
    checker = _Checker(fn, surrogate, name or _name_of(fn), eps, atol, rtol)
    grid = checker.grid(tensors[0].device)
    points = torch.cat([grid, *(_finite(x) for x in tensors)])
    backend = compile if isinstance(compile, str) else "inductor"
    runs: dict[str, Callable[[], None]] = {
        "forward": lambda: checker.forward(tensors, reference),
        "backward": lambda: checker.backward(points),
        "derivative": lambda: checker.derivative([grid, *tensors]),
        "nonfinite": lambda: checker.nonfinite([grid, *tensors]),
        "second_order": lambda: checker.second_order(points),
        "forward_mode": lambda: checker.forward_mode(points),
        "vmap": lambda: checker.vmap(points),
        "compile": lambda: checker.compile(points, backend),
    }
    for check, run in runs.items():
        if check not in left_out:
            with checker.named(check):
                run()
    return Report(checker.name, repr(surrogate), checker.checked, tuple(left_out))


def _check_arguments(surrogate: object, tensors: list[Tensor], skip: Collection[str]) -> None:
    for method in ("derivative", "primitive", "kinks"):
        if not callable(getattr(surrogate, method, None)):
            raise TypeError(f"check_ste: surrogate must have derivative, primitive and kinks, got {surrogate!r}")
    for x in tensors:
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            raise TypeError(f"check_ste: inputs must be floating tensors, got {getattr(x, 'dtype', type(x).__name__)}")
    if not tensors:
        raise ValueError("check_ste: inputs must hold at least one tensor, got none")
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"check_ste: skip must name checks of {', '.join(CHECKS)}, got {', '.join(unknown)}")


def _name_of(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, type):
        return owner.__name__
    return getattr(fn, "__name__", None) or type(fn).__name__


def _finite(x: Tensor) -> Tensor:
    flat = x.detach().to(torch.float64).flatten()
    return flat[flat.abs() <= _LARGEST]


def _ramp(x: Tensor) -> Tensor:
    """An incoming gradient of x's shape and dtype with both signs, the same at every call."""
    return torch.linspace(-2, 2, x.numel(), dtype=torch.float64, device=x.device).view(x.shape).to(x.dtype)


def _differences(f: Callable[[Tensor], Tensor], x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of f at x by central differences, from the right and from the left, each with an error of h^2."""
    middle, above, below = f(x), f(x + h), f(x - h)
    right = (4 * above - f(x + 2 * h) - 3 * middle) / (2 * h)
    left = (3 * middle - 4 * below + f(x - 2 * h)) / (2 * h)
    return (above - below) / (2 * h), right, left


@dataclass
class _Checker:
    fn: Callable[[Tensor], Tensor]
    surrogate: SurrogateLike
    name: str
    eps: float
    atol: float
    rtol: float
    check: str = ""
    checked: dict[str, int] = field(default_factory=dict)

    # What every check is made of.

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
            f"check_ste: {self.check} of {self.name}{place}: expected {expected}, received {received}"
        ) from cause

    def tensor(self, received: Tensor | None, expected: Tensor, x: Tensor) -> Tensor:
        if not isinstance(received, Tensor):
            self.fail("", f"a tensor of shape {tuple(expected.shape)}", received)
        for attribute in ("shape", "dtype"):
            wanted, got = getattr(expected, attribute), getattr(received, attribute)
            if wanted != got:
                self.fail("", f"{attribute} {wanted} of x of shape {tuple(x.shape)}", f"{attribute} {got}")
        return received.detach()

    def equal(
        self, x: Tensor, received: Tensor | None, *expected: Tensor, exact: bool = False, where: Tensor | None = None
    ) -> None:
        """Compares, element by element, with any of the expected tensors."""
        received = self.tensor(received, expected[0], x)
        places = 0.0 if exact else 4 * torch.finfo(x.dtype).eps
        rtol, atol = (0.0, 0.0) if exact else (max(self.rtol, places), max(self.atol, places))
        good = torch.zeros_like(received, dtype=torch.bool)
        for one in expected:
            good |= torch.isclose(received, one, rtol=rtol, atol=atol, equal_nan=True)
        if where is not None:
            good |= ~where
        self.checked[self.check] += int(good.numel() if where is None else where.sum())
        if not bool(good.all()):
            first = tuple((~good).nonzero()[0].tolist())
            wanted = " or ".join(dict.fromkeys(f"{one[first].item():.9g}" for one in expected))
            self.fail(f" at x = {x[first].item()!r}", wanted, f"{received[first].item():.9g}")

    def pull(self, x: Tensor, grad: Tensor, create_graph: bool = False) -> Tensor:
        """The gradient of x, which must require one, under an incoming gradient."""
        return torch.autograd.grad(self.fn(x), x, grad, create_graph=create_graph)[0]

    def expected(self, x: Tensor, grad: Tensor) -> Tensor:
        wide = x.detach() if x.dtype.itemsize >= 4 else x.detach().float()
        slope = self.surrogate.derivative(wide)
        return torch.where(slope == 0, torch.zeros_like(slope), slope * grad).to(x.dtype)

    def grid(self, device: torch.device) -> Tensor:
        """A dense line across every kink, the kinks, and their neighbours on both sides."""
        kinks = torch.tensor([0.0, *self.surrogate.kinks()], dtype=torch.float64, device=device)
        reach = max(4.0, 2.0 * float(kinks.abs().max()))
        line = torch.linspace(-reach, reach, 1001, dtype=torch.float64, device=device)
        infinity = torch.tensor(torch.inf, dtype=torch.float64, device=device)
        return torch.cat([line, kinks, torch.nextafter(kinks, infinity), torch.nextafter(kinks, -infinity)])

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step of the differences at x; whether x is a kink; -1 or 1 where one lies just above or below x."""
        h = self.eps * x.abs().clamp(min=1.0)
        on, side = torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x)
        for kink in self.surrogate.kinks():
            on |= x == kink
            side = torch.where((x - kink).abs() <= 2 * h, torch.sign(x - kink), side)
        return h, on, side

    # The checks.

    def forward(self, tensors: list[Tensor], reference: Callable[[Tensor], Tensor] | None) -> None:
        for x in tensors:
            out = self.fn(x.detach())
            if reference is None:
                self.tensor(out, x, x)
                self.checked[self.check] += x.numel()
            else:
                self.equal(x, out, reference(x.detach()), exact=True)

    def backward(self, x: Tensor) -> None:
        h, on, side = self.steps(x)
        central, right, left = _differences(self.surrogate.primitive, x, h)
        one = torch.where(on, left, torch.where(side > 0, right, torch.where(side < 0, left, central)))
        other = torch.where(on, right, one)
        z = x.clone().requires_grad_()
        received = self.pull(z, torch.ones_like(x))
        self.equal(x[~on], received[~on], one[~on])
        if bool(on.any()):
            self.equal(x[on], received[on], one[on], other[on])

    def derivative(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            z = x.detach().clone().requires_grad_()
            grad = _ramp(x)
            received, expected = self.pull(z, grad), self.expected(x, grad)
            self.equal(x, received, expected)
            self.equal(x, received, expected, exact=True, where=expected == 0)

    def nonfinite(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            z = x.detach().clone().requires_grad_()
            closed = self.expected(x, torch.ones_like(x)) == 0
            for value in (torch.nan, torch.inf, -torch.inf):
                received = self.pull(z, torch.full_like(x, value))
                self.equal(x, received, torch.zeros_like(x), exact=True, where=closed)

    def second_order(self, x: Tensor) -> None:
        h, on, side = self.steps(x)
        grad, cotangent = _ramp(x).requires_grad_(), _ramp(x) + 3
        z = x.clone().requires_grad_()
        gradient = self.pull(z, grad, create_graph=True)
        of_grad, of_x = torch.autograd.grad(gradient, (grad, z), cotangent, allow_unused=True)
        if of_grad is None:
            self.fail("", "a backward that is differentiable in its incoming gradient", "one without a path to it")
        self.equal(x, of_grad, self.expected(x, cotangent))
        # A corner of s' has two slopes, of which either is right, or their mean.
        slopes = _differences(self.surrogate.derivative, x, h)
        expected = [slope * grad.detach() * cotangent for slope in slopes]
        received = torch.zeros_like(x) if of_x is None else of_x
        self.equal(x, received, *expected, where=~on & (side == 0))

    def forward_mode(self, x: Tensor) -> None:
        tangent = _ramp(x)
        with torch.autograd.forward_ad.dual_level():
            out = self.fn(torch.autograd.forward_ad.make_dual(x.clone(), tangent))
            received = torch.autograd.forward_ad.unpack_dual(out)[1]
            self.equal(x, received, self.expected(x, tangent))

    def vmap(self, x: Tensor) -> None:
        def both(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
            out, pull = torch.func.vjp(self.fn, x)  # type: ignore[misc]
            return out, pull(grad)[0]

        rows = x[: x.numel() // 7 * 7].view(-1, 7)
        grad = _ramp(rows)
        z = rows.clone().requires_grad_()
        out, gradient = self.fn(z).detach(), self.pull(z, grad)
        for dim in (0, 1):
            batched = torch.func.vmap(both, in_dims=dim, out_dims=dim)(rows, grad)
            self.equal(rows, batched[0], out, exact=True)
            self.equal(rows, batched[1], gradient)

    def compile(self, x: Tensor, backend: str) -> None:
        grad = _ramp(x)
        z = x.clone().requires_grad_()
        out = torch.compile(self.fn, fullgraph=True, backend=backend)(z)
        self.equal(x, out, self.fn(x), exact=True)
        self.equal(x, torch.autograd.grad(out, z, grad)[0], self.pull(z, grad))
