"""`check_gradients`: operators of several inputs, or with statistics of them, against a smooth stand-in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ste_ops.testing._report import CHECKS, Checker, Report, check_floating, check_names, name_of, ramp

_DTYPES = (torch.float64,)


def check_gradients(
    fn: Callable[..., Tensor],
    stand_in: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    potential: Callable[..., Tensor] | None = None,
    reference: Callable[..., Tensor] | None = None,
    dtypes: Sequence[torch.dtype] = _DTYPES,
    name: str | None = None,
    skip: Collection[str] = (),
    compile: bool | str = False,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> Report:
    """Checks that an operator has the gradients, with respect to each of its inputs, of a smooth stand-in.

    For what `check_ste` does not take: a learned scale, a statistic of the tensor, a scale for each channel. The
    stand-in is what the backward claims the operator to be near ``inputs``: each step ``r(u)`` in it replaced by
    ``r(u0) + p(u) - p(u0)``, with ``u0`` its value at ``inputs`` and ``p`` the primitive of its surrogate (u itself
    where the gradient passes). It is evaluated in float64, and need not have a gradient of its own.

    The checks: ``forward`` and ``derivative`` compare values and gradients with ``reference`` and its autograd, in
    each of ``dtypes``; the others are in float64: ``backward`` against finite differences of the stand-in,
    ``second_order`` (the derivative of the backward in its incoming gradient) and ``forward_mode`` against its
    directional ones, ``gradgradcheck``, ``vmap``, ``func`` and ``compile`` as in `check_ste`.

    Args:
        fn: takes the inputs, returns one tensor.
        stand_in: takes the inputs in float64, returns a tensor of the same shape as ``fn``.
        inputs: the floating tensor, or tensors, at which to check; no jump of the operator within eps of them.
        potential: ``potential(grad, *inputs)``, a scalar whose gradient in the inputs is the backward, where that is
            more than the incoming gradient times the stand-in's derivative (a penalty, a clipped gradient).
        reference: the operator to compare with; None leaves ``derivative`` out.
        dtypes: those of ``forward`` and ``derivative``.
        name, skip, compile, eps, atol, rtol: as in `check_ste`.

    Returns:
        A `Report` of what was compared.

    Raises:
        AssertionError: a check failed; it names the check, the operator, the place, what was expected and received.
        TypeError, ValueError: an argument is none of the above.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([-0.5, 0.25, 1.5], dtype=torch.float64)
        >>> def scaled_sign(w):
        ...     return ste_ops.sign(w) * w.abs().mean()
        >>> def stand_in(v):  # the sign held at w, plus what Clip(1.0) lets pass
        ...     return (w.sign() + v.clamp(-1, 1) - w.clamp(-1, 1)) * v.abs().mean()
        >>> report = ste_ops.testing.check_gradients(scaled_sign, stand_in, w)
        >>> report.checked["backward"]
        3
        >>> ste_ops.testing.check_gradients(lambda w: ste_ops.sign(w) * w.abs().mean().detach(), stand_in, w)
        Traceback (most recent call last):
        AssertionError: check_gradients: backward of <lambda> at inputs[0][0]: expected -2.541667, received -0.975
    """
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    check_floating("check_gradients", tensors)
    check_names("check_gradients", skip)
    backend = compile if isinstance(compile, str) else "inductor"
    called = {"name": name or name_of(fn), "atol": atol, "rtol": rtol}
    checker = GradientChecker(fn, stand_in, tensors, potential, reference, dtypes, eps, backend, **called)
    checker.leave_out(skip, compile)
    return checker.report(name_of(stand_in))


class GradientChecker(Checker):
    """The checks of `check_gradients`."""

    def __init__(
        self,
        fn: Callable[..., Tensor],
        stand_in: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        potential: Callable[..., Tensor] | None = None,
        reference: Callable[..., Tensor] | None = None,
        dtypes: Sequence[torch.dtype] = _DTYPES,
        eps: float = 1e-6,
        backend: str = "inductor",
        **kwargs: Any,
    ) -> None:
        super().__init__("check_gradients", **kwargs)
        self.fn, self.stand_in, self.reference = fn, stand_in, reference
        self.potential = potential or (lambda grad, *inputs: (grad * stand_in(*inputs)).sum())
        self.dtypes, self.eps, self.backend = dtypes, eps, backend
        self.inputs = [x.detach().double() for x in inputs]
        self.reasons["nonfinite"] = "for elementwise operators"
        if reference is None:
            self.reasons["derivative"] = "there is no reference to compare with"
        if potential is not None:
            self.reasons["second_order"] = "the backward is not linear: see gradgradcheck"

    def runs(self) -> dict[str, Callable[[], None]]:
        return {check: getattr(self, check) for check in CHECKS if check != "nonfinite"}

    def leaves(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        return [x.to(dtype, copy=True).requires_grad_() for x in self.inputs]

    def pull(
        self, fn: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        return torch.autograd.grad(fn(*leaves), leaves, grad, create_graph=create_graph)

    def incoming(self) -> Tensor:
        with torch.no_grad():
            return ramp(self.stand_in(*self.inputs)) + 0.7  # or a constant part of the backward would sum to 0

    def equal_each(self, received: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        for i, (got, wanted) in enumerate(zip(received, expected, strict=True)):
            self.equal(self.inputs[i], got, wanted, named=f"inputs[{i}]")

    def differences(self, f: Callable[..., Tensor], i: int) -> Tensor:
        """The gradient of the scalar f in input i, by central differences."""
        out, at = torch.empty_like(self.inputs[i]).flatten(), self.inputs[i].flatten()
        for k, value in enumerate(at.tolist()):
            h = self.eps * max(1.0, abs(value))
            sides = []
            for place in (value + h, value - h):
                moved = at.clone()
                moved[k] = place
                arguments = [*self.inputs[:i], moved.view_as(self.inputs[i]), *self.inputs[i + 1 :]]
                sides.append(f(*arguments))
            out[k] = (sides[0] - sides[1]) / (2 * h)
        return out.view_as(self.inputs[i])

    def along(self, tangents: Sequence[Tensor]) -> Tensor:
        """The derivative of the stand-in in the direction of the tangents, by central differences."""
        sides = [
            self.stand_in(*(x + h * t for x, t in zip(self.inputs, tangents, strict=True)))
            for h in (self.eps, -self.eps)
        ]
        return ((sides[0] - sides[1]) / (2 * self.eps)).detach()

    # The checks.

    def forward(self) -> None:
        for dtype in self.dtypes:
            inputs = [x.to(dtype) for x in self.inputs]
            out = self.fn(*inputs)
            if self.reference is None:
                self.tensor(out, self.stand_in(*self.inputs).to(dtype), inputs[0])
                self.checked[self.check] += out.numel()
            else:
                self.equal(inputs[0], out, self.reference(*inputs).detach(), named="output")

    @torch.no_grad()
    def expected(self, grad: Tensor) -> list[Tensor]:
        return [self.differences(lambda *inputs: self.potential(grad, *inputs), i) for i in range(len(self.inputs))]

    def backward(self) -> None:
        grad = self.incoming()
        self.equal_each(self.pull(self.fn, self.leaves(), grad), self.expected(grad))

    def derivative(self) -> None:
        assert self.reference is not None
        for dtype in self.dtypes:
            grad = self.incoming().to(dtype)
            expected = self.pull(self.reference, self.leaves(dtype), grad)
            self.equal_each(self.pull(self.fn, self.leaves(dtype), grad), expected)

    def second_order(self) -> None:
        grad = self.incoming().requires_grad_()
        gradients = self.pull(self.fn, self.leaves(), grad, create_graph=True)
        cotangents = [ramp(x) + 3 for x in self.inputs]
        of_grad = torch.autograd.grad(gradients, grad, cotangents, allow_unused=True)[0]
        if of_grad is None:
            self.fail("", "a backward that is differentiable in its incoming gradient", "one without a path to it")
        self.equal(grad, of_grad, self.along(cotangents), named="output")

    def gradgradcheck(self) -> None:
        leaves = self.leaves()
        self.linear(lambda grad: self.pull(self.fn, leaves, grad, create_graph=True), self.incoming())

    def forward_mode(self) -> None:
        tangents = [ramp(x) + 3 for x in self.inputs]
        with torch.autograd.forward_ad.dual_level():
            make_dual, unpack_dual = torch.autograd.forward_ad.make_dual, torch.autograd.forward_ad.unpack_dual
            duals = [make_dual(x.clone(), tangent) for x, tangent in zip(self.inputs, tangents, strict=True)]
            received = unpack_dual(self.fn(*duals))[1]
            self.equal(self.inputs[0], received, self.along(tangents), named="output")

    def vmap(self) -> None:
        def both(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            out, pull = torch.func.vjp(self.fn, *inputs)  # type: ignore[misc]
            return out, *pull(grad)

        grad = torch.stack([self.incoming() + shift for shift in (0.0, 1.0, -0.5)])
        batches = [torch.stack([x, x * 1.25, x * 0.75]) for x in self.inputs]
        # Every input with samples of its own; then only the first, as with a shared scale.
        for batched in {len(batches), 1}:
            shared = self.inputs[batched:]
            expected = [both(grad[k], *(b[k] for b in batches[:batched]), *shared) for k in range(3)]
            for dim in (0, -1):
                moved = [x.movedim(0, dim) for x in (grad, *batches[:batched])]
                in_dims = (*[dim] * len(moved), *[None] * len(shared))
                out, *gradients = torch.func.vmap(both, in_dims=in_dims)(*moved, *shared)
                for k, (wanted, *wanted_gradients) in enumerate(expected):
                    self.equal(self.inputs[0], out[k], wanted, named="output")
                    self.equal_each([gradient[k] for gradient in gradients], wanted_gradients)

    def func(self) -> None:
        grad = self.incoming()
        places = tuple(range(len(self.inputs)))
        received = torch.func.grad(lambda *inputs: (self.fn(*inputs) * grad).sum(), argnums=places)(*self.inputs)
        self.equal_each(received, self.pull(self.fn, self.leaves(), grad))

    def compile(self) -> None:
        grad = self.incoming()
        compiled = torch.compile(self.fn, fullgraph=True, backend=self.backend)
        self.equal(self.inputs[0], compiled(*self.leaves()), self.fn(*self.leaves()).detach(), named="output")
        self.equal_each(self.pull(compiled, self.leaves(), grad), self.pull(self.fn, self.leaves(), grad))
