"""Stochastic rounding as a module."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from ste_ops import functional
from ste_ops._random import check_generator
from ste_ops._sent import SendsGenerator
from ste_ops.nn.quantizer import Quantizer


class StochasticRound(SendsGenerator, Quantizer):
    """`ste_ops.stochastic_round` while training, half to even (`ste_ops.round`) in evaluation; the gradient passes.

    Args:
        generator: what the seeds are drawn from; default: torch's own generator of x's device, which is the only one
            that `torch.utils.checkpoint` puts back: a call with another is refused there, when it is computed again.

    Source: Gupta et al., arXiv:1502.02551.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.StochasticRound().eval()(torch.tensor([0.2, 1.5, -0.7]))
        tensor([ 0.,  2., -1.])
    """

    def __init__(self, generator: Generator | None = None) -> None:
        super().__init__()
        check_generator("StochasticRound", generator)
        self.generator = generator

    def _quantize(self, x: Tensor) -> Tensor:
        if self.training:
            return functional.stochastic_round(x, generator=self.generator)
        return functional.round(x)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return None if self.training else (functional.round, {})  # in training each call draws others
