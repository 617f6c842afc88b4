"""The rows of `gradcheck_suite`: an operator, its arguments, and what its backward is compared with.

Operators are looked up when a check calls them, so the suite tests what `ste_ops` holds then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import ste_ops
from ste_ops import reference
from ste_ops.testing._elementwise import ElementwiseChecker, SurrogateLike
from ste_ops.testing._gradients import GradientChecker
from ste_ops.testing._report import Checker

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@dataclass(frozen=True)
class Setting:
    """A suite's device, its dtypes and its backend of torch.compile."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    backend: str = "inductor"


@dataclass(frozen=True)
class Case:
    """A row of the table: an operator, its arguments, and the function that makes its checker."""

    operator: str
    arguments: str
    make: Callable[[Setting], Checker]
    skip: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.operator}({self.arguments})"


def _pair(operator: str, call: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """``call(operator, *inputs)`` for the native operator and for its reference."""
    return (
        lambda *inputs: call(getattr(ste_ops, operator), *inputs),
        lambda *inputs: call(getattr(reference, operator), *inputs),
    )


def _specials(dtype: torch.dtype, device: torch.device, points: Sequence[float]) -> Tensor:
    """The points and their neighbours in dtype, with both signs."""
    exact = torch.tensor(points, dtype=torch.float64).to(dtype)
    exact = torch.cat([exact, -exact])
    above, below = (torch.nextafter(exact, exact.new_tensor(to)) for to in (math.inf, -math.inf))
    return torch.cat([exact, above, below]).to(device)


def elementwise_case(
    operator: str,
    arguments: str,
    call: Callable[..., Tensor],
    stands_in: SurrogateLike,
    points: Sequence[float] = (),
    domain: tuple[float, float] = (-math.inf, math.inf),
    skip: dict[str, str] | None = None,
    scalar: tuple[float, bool] | None = None,
) -> Case:
    """With a scalar, ``call(operator, x, tensor)`` takes its value as a tensor of one element, learned or not."""

    def make(setting: Setting) -> Checker:
        scalars: dict[torch.dtype, Tensor] = {}
        if scalar:
            for kind in {torch.float64, *setting.dtypes}:
                wide = kind if kind.itemsize >= 4 else torch.float32
                scalars[kind] = torch.tensor(scalar[0], dtype=wide, device=setting.device, requires_grad=scalar[1])
        fn, against = _pair(operator, (lambda fn, x: call(fn, x, scalars[x.dtype])) if scalar else call)
        inputs = []
        for dtype in setting.dtypes:
            limits = torch.finfo(dtype)
            values = [0.0, 0.5, 1.0, 1.5, limits.tiny, limits.max, math.inf, math.nan, *points, *stands_in.kinks()]
            x = _specials(dtype, setting.device, values)
            inputs.append(x if domain[0] == -math.inf else x[(x >= domain[0]) & (x <= domain[1])])
        return ElementwiseChecker(
            fn, stands_in, inputs, against, domain, backend=setting.backend, name=operator, **TOLERANCE
        )

    return Case(operator, arguments, make, skip or {})


def gradient_case(
    operator: str,
    arguments: str,
    call: Callable[..., Tensor],
    stand_in: Callable[..., Callable[..., Tensor]],
    inputs: Sequence[Tensor],
    potential: Callable[..., Tensor] | None = None,
    skip: dict[str, str] | None = None,
) -> Case:
    """``stand_in(*inputs)`` makes the smooth function near these inputs."""

    def make(setting: Setting) -> Checker:
        fn, against = _pair(operator, call)
        at = [x.to(setting.device) for x in inputs]
        return GradientChecker(
            fn,
            stand_in(*at),
            at,
            potential,
            against,
            setting.dtypes,
            backend=setting.backend,
            name=operator,
            **TOLERANCE,
        )

    return Case(operator, arguments, make, skip or {})
