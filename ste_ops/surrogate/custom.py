"""The surrogate that is any Python callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ste_ops._functions.binarize import Saves
from ste_ops._functions.custom import custom_step
from ste_ops.surrogate.base import Surrogate


@dataclass(frozen=True, init=False, repr=False)
class Custom(Surrogate, native=False):
    """s'(x) = derivative(x), any elementwise function in plain torch. Saves x.

    It is called in the backward, with x in float32 where that is float16 or bfloat16, under the grad mode of the
    backward, so that under ``create_graph`` autograd differentiates it too, to any order. Under ``torch.compile`` it
    becomes part of the graph. It must be elementwise and give a tensor of its argument's shape. What else it reads gets
    no gradient, and may require none.

    Args:
        derivative: s', from a tensor to a tensor.
        primitive: a function whose derivative is s'; `ste_ops.testing.check_ste` needs it.
        kinks: where s' jumps, for `ste_ops.testing.check_ste` too.

    Raises:
        TypeError: derivative or primitive is not callable.
        ValueError: in the backward, derivative read a tensor that requires a gradient.

    Example:
        >>> import torch, ste_ops
        >>> tent = ste_ops.surrogate.Custom(lambda x: (1 - x.abs()).clamp(min=0))
        >>> x = torch.tensor([-0.25, 3.0], requires_grad=True)
        >>> ste_ops.sign(x, tent).sum().backward()
        >>> x.grad
        tensor([0.7500, 0.0000])
    """

    saves: ClassVar[Saves] = "input"
    slope: Callable[[Tensor], Tensor]
    area: Callable[[Tensor], Tensor] | None
    jumps: tuple[float, ...]

    # The fields cannot have the names of the arguments, which are methods of every surrogate.
    def __init__(
        self,
        derivative: Callable[[Tensor], Tensor],
        primitive: Callable[[Tensor], Tensor] | None = None,
        kinks: Sequence[float] = (),
    ) -> None:
        if not callable(derivative) or not (primitive is None or callable(primitive)):
            wrong = ("primitive", primitive) if callable(derivative) else ("derivative", derivative)
            raise TypeError(f"Custom: {wrong[0]} must be callable, got {wrong[1]!r}")
        for field, value in (("slope", derivative), ("area", primitive), ("jumps", tuple(kinks))):
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        return f"Custom({getattr(self.slope, '__name__', self.slope)})"

    def _binarize(self, operator: str, x: Tensor, *threshold: float | Tensor) -> Tensor:
        return custom_step(operator, threshold, x, self.slope)

    def _binarize_held(self, operator: str, x: Tensor, threshold: Tensor) -> Tensor:
        return self._binarize(operator, x, threshold)

    def _derivative(self, x: Tensor) -> Tensor:
        return self.slope(x)

    def primitive(self, x: Tensor) -> Tensor:
        if self.area is None:
            raise ValueError(f"{self!r}: primitive must be given where it is asked for, got None")
        return self.area(x)

    def kinks(self) -> list[float]:
        return list(self.jumps)
