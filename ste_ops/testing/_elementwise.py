"""`check_ste`: elementwise straight-through estimators against the primitive of their surrogate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ste_ops.testing._report import Checker, Report, check_floating, check_names, name_of, ramp

# Beyond it finite differences lose everything: their width, eps * abs(x), is itself large.
_LARGEST = 1e6


class SurrogateLike(Protocol):
    """What `check_ste` asks of a surrogate; `ste_ops.surrogate` has it, and any object of yours may."""

    def derivative(self, x: Tensor) -> Tensor:
        """s'(x), elementwise, for float32 and float64."""

    def primitive(self, x: Tensor) -> Tensor:
        """A continuous function whose derivative is s', elementwise, for float64."""

    def kinks(self) -> Sequence[float]:
        """Where s' jumps."""


def check_ste(
    fn: Callable[[Tensor], Tensor],
    surrogate: SurrogateLike,
    inputs: Tensor | Sequence[Tensor],
    *,
    reference: Callable[[Tensor], Tensor] | None = None,
    name: str | None = None,
    domain: tuple[float, float] = (-math.inf, math.inf),
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
      ``surrogate.primitive``: central ones, one-sided beside a kink, either side's on it; where fields of a dataclass
      require a gradient, theirs against differences of the primitive in that field;
    - ``derivative``: in each input's own dtype, the incoming gradient times ``surrogate.derivative``, and exactly 0
      where that is 0;
    - ``nonfinite``: still exactly 0 there when the incoming gradient is NaN or infinite;
    - ``second_order``: the backward is differentiable in its incoming gradient, and its derivative with respect to x is
      that of ``surrogate.derivative`` (0 for a mask; no path to x counts as 0);
    - ``gradgradcheck``: autograd's gradcheck and gradgradcheck, at a few points, of the backward in its incoming
      gradient;
    - ``forward_mode``: tangents are multiplied by ``surrogate.derivative``;
    - ``vmap``: ``torch.func.vmap`` over ``torch.func.vjp``, along the first and the last dimension, equals eager;
    - ``func``: ``torch.func.grad`` and ``jacrev`` equal incoming gradient times derivative;
    - ``compile``: ``torch.compile(fullgraph=True)``, forward and backward, equals eager; only if ``compile`` is set.

    Args:
        fn: takes one tensor, returns one of its shape; for a ``torch.autograd.Function``, its ``apply``.
        surrogate: one of `ste_ops.surrogate`, or any object with `derivative`, `primitive` and `kinks`.
        inputs: a floating tensor or a sequence of them, of any shapes; special values are welcome.
        reference: the forward to compare with, exactly.
        name: how errors call ``fn``; default its own name.
        domain: the range that ``fn`` takes, bounds included; the grid stays in it.
        skip: names from `CHECKS` to leave out, such as ``("forward_mode", "vmap", "func")`` for a Function of the old
            form; a mapping gives the reasons, which the report repeats.
        compile: True, or the name of a ``torch.compile`` backend.
        eps: the width of the finite differences, relative to abs(x) where that is above 1.
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
        >>> report.left_out
        ('compile',)
        >>> report.checked["backward"]
        1014
        >>> ste_ops.testing.check_ste(ste_ops.heaviside, ste_ops.surrogate.Clip(2.0), x)
        Traceback (most recent call last):
        AssertionError: check_ste: backward of heaviside at x = -1.992: expected 1, received 0
    """
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    check_methods(surrogate)
    check_floating("check_ste", tensors)
    check_names("check_ste", skip)
    backend = compile if isinstance(compile, str) else "inductor"
    called = {"name": name or name_of(fn), "atol": atol, "rtol": rtol}
    checker = ElementwiseChecker(fn, surrogate, tensors, reference, domain, eps, backend, **called)
    checker.leave_out(skip, compile)
    return checker.report(repr(surrogate))


def check_methods(surrogate: object) -> None:
    for method in ("derivative", "primitive", "kinks"):
        if not callable(getattr(surrogate, method, None)):
            raise TypeError(f"check_ste: surrogate must have derivative, primitive and kinks, got {surrogate!r}")


def _finite(x: Tensor) -> Tensor:
    flat = x.detach().to(torch.float64).flatten()
    return flat[flat.abs() <= _LARGEST]


def _differences(f: Callable[[Tensor], Tensor], x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of f at x by central differences, from the right and from the left, each with an error of h^2."""
    middle, above, below = f(x), f(x + h), f(x - h)
    right = (4 * above - f(x + 2 * h) - 3 * middle) / (2 * h)
    left = (3 * middle - 4 * below + f(x - 2 * h)) / (2 * h)
    return (above - below) / (2 * h), right, left


def _moved(surrogate: Any, field: str, value: float) -> Any:
    """The surrogate with another value in that field, also one just beyond the range that it takes."""
    other = copy.copy(surrogate)
    object.__setattr__(other, field, value)
    return other


class ElementwiseChecker(Checker):
    """The checks of `check_ste`."""

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        surrogate: SurrogateLike,
        inputs: Sequence[Tensor],
        reference: Callable[[Tensor], Tensor] | None = None,
        domain: tuple[float, float] = (-math.inf, math.inf),
        eps: float = 1e-6,
        backend: str = "inductor",
        **kwargs: Any,
    ) -> None:
        super().__init__("check_ste", **kwargs)
        self.fn, self.surrogate, self.inputs, self.reference = fn, surrogate, inputs, reference
        self.domain, self.eps, self.backend = domain, eps, backend

    def runs(self) -> dict[str, Callable[[], None]]:
        grid = self.grid(self.inputs[0].device)
        points = torch.cat([grid, *(_finite(x) for x in self.inputs)])
        return {
            "forward": self.forward,
            "backward": lambda: self.backward(points),
            "derivative": lambda: self.derivative([grid, *self.inputs]),
            "nonfinite": lambda: self.nonfinite([grid, *self.inputs]),
            "second_order": lambda: self.second_order(points),
            "gradgradcheck": lambda: self.gradgradcheck(self.few(grid)),
            "forward_mode": lambda: self.forward_mode(points),
            "vmap": lambda: self.vmap(points),
            "func": lambda: self.func(points, self.few(grid)),
            "compile": lambda: self.compile(points),
        }

    def pull(self, x: Tensor, grad: Tensor, create_graph: bool = False) -> Tensor:
        """The gradient of x, which must require one, under an incoming gradient."""
        return torch.autograd.grad(self.fn(x), x, grad, create_graph=create_graph)[0]

    def slope(self, x: Tensor) -> Tensor:
        return self.surrogate.derivative(x.detach() if x.dtype.itemsize >= 4 else x.detach().float())

    def expected(self, x: Tensor, grad: Tensor) -> Tensor:
        slope = self.slope(x)
        return torch.where(slope == 0, torch.zeros_like(slope), slope * grad).to(x.dtype)

    def grid(self, device: torch.device) -> Tensor:
        """A dense line across every kink, the kinks, and their neighbours on both sides."""
        kinks = torch.tensor([0.0, *self.surrogate.kinks()], dtype=torch.float64, device=device)
        reach = max(4.0, 2.0 * float(kinks.abs().max()))
        line = torch.linspace(-reach, reach, 1001, dtype=torch.float64, device=device)
        infinity = torch.tensor(torch.inf, dtype=torch.float64, device=device)
        grid = torch.cat([line, kinks, torch.nextafter(kinks, infinity), torch.nextafter(kinks, -infinity)])
        low, high = self.domain
        return grid[(grid >= low) & (grid <= high)]

    def few(self, grid: Tensor) -> Tensor:
        """Some points of the grid, away from 0, for what costs the square of their number."""
        points = grid[:1001]
        return points[len(points) // 14 :: len(points) // 7]

    def surroundings(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The width of the differences at x; whether x is a kink; -1 or 1 where one lies just above or below x."""
        h = self.eps * x.abs().clamp(min=1.0)
        on, side = torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x)
        for kink in self.surrogate.kinks():
            # A kink that is itself the result of rounding lies within a few units in its last place.
            on |= (x - kink).abs() <= 4 * torch.finfo(x.dtype).eps * abs(kink)
            side = torch.where((x - kink).abs() <= 2 * h, torch.sign(x - kink), side)
        return h, on, torch.where(on, 0.0, side)

    # The checks.

    def forward(self) -> None:
        for x in self.inputs:
            out = self.fn(x.detach())
            if self.reference is None:
                self.tensor(out, x, x)
                self.checked[self.check] += x.numel()
            else:
                self.equal(x, out, self.reference(x.detach()), exact=True)

    def backward(self, x: Tensor) -> None:
        h, on, side = self.surroundings(x)
        central, right, left = _differences(self.surrogate.primitive, x, h)
        z = x.clone().requires_grad_()
        received = self.pull(z, torch.ones_like(x))
        # On a kink either side is right. Elsewhere all three agree, but for a corner of s' that one of them straddles.
        self.equal(x, received, central, left, right, where=~on & (side == 0))
        self.equal(x, received, right, where=side > 0)
        self.equal(x, received, left, where=side < 0)
        self.equal(x, received, left, right, where=on)
        self.fields(x, ~on & (side == 0))

    def fields(self, x: Tensor, smooth: Tensor) -> None:
        """The gradients of what the surrogate learns, from points away from the kinks, which move with it."""
        surrogate: Any = self.surrogate
        held = fields(surrogate) if is_dataclass(surrogate) else ()
        learned = [f.name for f in held if getattr(getattr(surrogate, f.name), "requires_grad", False)]
        if not learned:
            return
        tensors = [getattr(surrogate, name) for name in learned]
        grad = torch.where(smooth, ramp(x) + 0.7, 0.0)  # or what is odd in x would sum to 0
        received = torch.autograd.grad(self.fn(x.clone().requires_grad_()), tensors, grad, allow_unused=True)
        for name, tensor, got in zip(learned, tensors, received, strict=True):
            value = float(tensor)
            h = self.eps * max(1.0, abs(value))
            above, below = (_moved(surrogate, name, value + side).primitive(x) for side in (h, -h))
            expected = (grad * (above - below)).sum().detach() / (2 * h)
            self.equal(tensor.detach(), got, expected.to(tensor.dtype).view(tensor.shape), named=name)

    def derivative(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            z = x.detach().clone().requires_grad_()
            grad = ramp(x)
            received, expected = self.pull(z, grad), self.expected(x, grad)
            self.equal(x, received, expected)
            self.equal(x, received, expected, exact=True, where=expected == 0)

    def nonfinite(self, tensors: list[Tensor]) -> None:
        self.reasons[self.check] = "the derivative is 0 nowhere"
        for x in tensors:
            z = x.detach().clone().requires_grad_()
            closed = self.slope(x) == 0
            for value in (torch.nan, torch.inf, -torch.inf):
                received = self.pull(z, torch.full_like(x, value))
                self.equal(x, received, torch.zeros_like(x), exact=True, where=closed)
        if self.checked[self.check]:
            del self.reasons[self.check]

    def second_order(self, x: Tensor) -> None:
        h, on, side = self.surroundings(x)
        grad, cotangent = ramp(x).requires_grad_(), ramp(x) + 3
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

    def gradgradcheck(self, x: Tensor) -> None:
        z = x.clone().requires_grad_()
        self.linear(lambda grad: self.pull(z, grad, create_graph=True), ramp(x) + 3)

    def forward_mode(self, x: Tensor) -> None:
        tangent = ramp(x)
        with torch.autograd.forward_ad.dual_level():
            out = self.fn(torch.autograd.forward_ad.make_dual(x.clone(), tangent))
            received = torch.autograd.forward_ad.unpack_dual(out)[1]
            self.equal(x, received, self.expected(x, tangent))

    def vmap(self, x: Tensor) -> None:
        def both(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
            out, pull = torch.func.vjp(self.fn, x)  # type: ignore[misc]
            return out, pull(grad)[0]

        rows = x[: x.numel() // 7 * 7].view(-1, 7)
        grad = ramp(rows)
        z = rows.clone().requires_grad_()
        out, gradient = self.fn(z).detach(), self.pull(z, grad)
        for dim in (0, 1):
            batched = torch.func.vmap(both, in_dims=dim, out_dims=dim)(rows, grad)
            self.equal(rows, batched[0], out, exact=True)
            self.equal(rows, batched[1], gradient)

    def func(self, x: Tensor, few: Tensor) -> None:
        grad = ramp(x)
        received = torch.func.grad(lambda x: (self.fn(x) * grad).sum())(x)  # type: ignore[misc]
        self.equal(x, received, self.expected(x, grad))
        rows = torch.func.jacrev(self.fn)(few)  # type: ignore[misc]
        self.equal(few, rows.diagonal(), self.expected(few, torch.ones_like(few)))
        self.equal(few, rows.sum(0), rows.diagonal())

    def compile(self, x: Tensor) -> None:
        grad = ramp(x)
        z = x.clone().requires_grad_()
        out = torch.compile(self.fn, fullgraph=True, backend=self.backend)(z)
        self.equal(x, out, self.fn(x), exact=True)
        self.equal(x, torch.autograd.grad(out, z, grad)[0], self.pull(z, grad))
