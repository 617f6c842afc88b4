"""A norm and the step behind it as one comparison."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ste_ops.functional.quantize._threshold import beyond
from ste_ops.nn.quantizer import Quantizer, held_by


class ChannelThreshold(Quantizer):
    """1 where ``x * direction >= threshold`` of a channel, and `low` elsewhere and at NaN: a batch norm and its step.

    `fold_batch_norm_` puts it where a `Sign` or a `Heaviside` stood behind a norm. It passes no gradient.

    Args:
        direction: 1, -1 or 0 for each channel.
        threshold: a number for each channel.
        low: -1 as `Sign`, or 0 as `Heaviside`.

    Shapes: (batch, channels, *) to the same; direction and threshold (channels,).

    Example:
        >>> import torch, ste_ops
        >>> step = ste_ops.nn.ChannelThreshold(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5]))
        >>> step(torch.tensor([[0.5, 0.5], [0.4, -0.5]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """

    direction: Tensor
    threshold: Tensor

    def __init__(self, direction: Tensor, threshold: Tensor, low: int = -1) -> None:
        super().__init__()
        if direction.dim() != 1 or threshold.shape != direction.shape:
            got = f"{tuple(direction.shape)} and {tuple(threshold.shape)}"
            raise ValueError(f"ChannelThreshold: direction and threshold must be vectors of one size, got {got}")
        if low not in (-1, 0):
            raise ValueError(f"ChannelThreshold: low must be -1 or 0, got {low!r}")
        self.low = low
        self.register_buffer("direction", direction)
        self.register_buffer("threshold", threshold)

    def _quantize(self, x: Tensor) -> Tensor:
        direction = held_by(self, "direction")
        if x.dim() < 2 or x.shape[1] != direction.numel():
            raise ValueError(
                f"ChannelThreshold: x must have {direction.numel()} channels in dimension 1, got {tuple(x.shape)}"
            )
        return beyond(x.detach(), direction, held_by(self, "threshold"), self.low)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return beyond, {"direction": self.direction, "threshold": self.threshold, "low": self.low}

    def _repeats(self) -> bool:
        return True

    def extra_repr(self) -> str:
        return f"{self.direction.numel()}" + (", low=0" if self.low == 0 else "")
