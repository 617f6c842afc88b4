"""Dataset indices drawn one by one in proportion to weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from ste_ops.sampling._checks import draw_seed
from ste_ops.sampling.alias import AliasTable
from ste_ops.sampling.multinomial import multinomial

_CHUNK = 16384


class WeightedRandomSampler(Sampler[int]):
    """Draws dataset indices in proportion to weights: a drop-in for `torch.utils.data.WeightedRandomSampler`.

    The table is built once, when the sampler is made, and draws come in chunks: an epoch of any length holds no list of
    its indices, there may be more than 2^24 weights, and wrong weights are refused here rather than in mid-epoch. Every
    iteration takes a fresh seed from `generator`, so a generator with a fixed seed fixes the epochs. Without
    replacement an epoch is one call of `ste_ops.multinomial`.

    Args:
        weights: one non-negative number for each sample, a sequence or a 1-D tensor; read as float64.
        num_samples: draws in an epoch, > 0; without replacement at most the number of positive weights.
        replacement: whether a sample may be drawn again within an epoch.
        generator: default: torch's default generator.

    Raises:
        ValueError: num_samples is no positive int or too large, replacement no bool, weights are not 1-D, or are
            negative, NaN, infinite, all zero or empty.

    Example:
        >>> import torch, ste_ops
        >>> labels = torch.tensor([0] * 900 + [1] * 100)
        >>> weights = ste_ops.data.class_weights(labels)[labels]
        >>> sampler = ste_ops.data.WeightedRandomSampler(weights, 4000, generator=torch.Generator().manual_seed(0))
        >>> round(labels[list(sampler)].float().mean().item(), 1)
        0.5
    """

    weights: Tensor
    num_samples: int
    replacement: bool

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples <= 0:
            raise ValueError(f"num_samples should be a positive integer value, but got num_samples={num_samples}")
        if not isinstance(replacement, bool):
            raise ValueError(f"replacement should be a boolean value, but got replacement={replacement}")
        weights_tensor = torch.as_tensor(weights, dtype=torch.double)
        if len(weights_tensor.shape) != 1:
            raise ValueError(
                f"weights should be a 1d sequence but given weights have shape {tuple(weights_tensor.shape)}"
            )
        self.weights = weights_tensor
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator
        self._table = AliasTable._for("WeightedRandomSampler", weights_tensor)
        positive = int(torch.count_nonzero(weights_tensor))
        if not replacement and num_samples > positive:
            raise ValueError(
                f"WeightedRandomSampler: num_samples must be at most {positive}, the number of positive weights, "
                f"without replacement, got {num_samples}"
            )

    def __iter__(self) -> Iterator[int]:
        if not self.replacement:
            drawn = multinomial(self.weights, self.num_samples, generator=self.generator)
            for chunk in drawn.split(_CHUNK):
                yield from chunk.tolist()
            return
        seed = draw_seed("WeightedRandomSampler", self._table.device, self.generator)
        for start in range(0, self.num_samples, _CHUNK):
            yield from self._table.sample_at(seed, start, min(_CHUNK, self.num_samples - start)).tolist()

    def __len__(self) -> int:
        return self.num_samples
