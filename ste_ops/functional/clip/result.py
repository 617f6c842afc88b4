"""What a clipping call found out, left on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class ClipResult(NamedTuple):
    """What `clip_grad_norm_` found, as tensors on the gradients' device.

    Nothing here waits for the device but `first_bad_name` (and what you do with the tensors: ``if result.clipped``,
    ``float(result.total_norm)``). The answers are made from the norms when they are asked for, so asking for a
    ClipResult costs the norms alone.

    Attributes:
        total_norm: 0-d, as `get_total_norm` gives it.
        norms: the norm of each gradient, in the order of the parameters that have one; where gradients may lie on other
            ranks, one for every parameter.
        max_norm: the bound that was asked for.
        positions: where those parameters stand among all that were given.

    Example:
        >>> import torch, ste_ops
        >>> linear = torch.nn.Linear(2, 1)
        >>> linear.weight.grad, linear.bias.grad = torch.ones(1, 2), torch.tensor([torch.nan])
        >>> result = ste_ops.clip_grad_norm_(linear.parameters(), 1.0, nonfinite="skip", return_result=True)
        >>> result.nonfinite, result.clipped, result.first_bad
        (tensor(True), tensor(False), tensor(1))
        >>> result.first_bad_name(linear.named_parameters())
        'bias'
    """

    total_norm: Tensor
    norms: Tensor
    max_norm: float | Tensor
    positions: tuple[int, ...]

    @property
    def nonfinite(self) -> Tensor:
        """0-d bool: whether the norm of all is NaN or infinite."""
        return ~torch.isfinite(self.total_norm)

    @property
    def clipped(self) -> Tensor:
        """0-d bool: whether the norm was finite and the gradients were scaled."""
        coefficient = self.max_norm / (self.total_norm.double() + 1e-6)
        return torch.isfinite(self.total_norm) & (coefficient < 1)

    @property
    def first_bad(self) -> Tensor:
        """0-d int64: the place in `norms` of the first that is NaN or infinite; -1 where none is.

        -1 beside a norm that is not finite: every gradient is, but together they are more than float32 can hold.
        """
        if self.norms.numel() == 0:
            return torch.full((), -1, device=self.norms.device)
        bad = ~torch.isfinite(self.norms)
        return torch.where(bad.any(), bad.byte().argmax(), -1)

    def first_bad_name(self, named_parameters: Iterable[tuple[str, Tensor]]) -> str | None:
        """The name of the parameter behind `first_bad`, None where there is none. This waits for the device.

        Args:
            named_parameters: ``model.named_parameters()`` where ``model.parameters()`` was clipped: the same
                parameters in the same order.

        Raises:
            ValueError: there are fewer names than parameters were clipped.
        """
        names = [name for name, _ in named_parameters]
        if self.positions and self.positions[-1] >= len(names):
            raise ValueError(
                "first_bad_name: named_parameters must name the parameters that were clipped, in their order, got "
                f"{len(names)} names for a gradient at position {self.positions[-1]}"
            )
        index = int(self.first_bad)
        return None if index < 0 else names[self.positions[index]]
