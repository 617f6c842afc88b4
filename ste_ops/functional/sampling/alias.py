"""A distribution that is drawn from in constant time a draw."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ste_ops._checks import as_weights, check_count, refuse_invalid
from ste_ops._library import ops
from ste_ops._random import draw_seed


class AliasTable:
    """A distribution over category indices, built once and drawn from in constant time a draw.

    Eight bytes a category, and while it is built on the CPU an eighth of a byte more. The table holds exact integers:
    `mass` and `probabilities` recover from it what every category is drawn with. Weight w becomes an integer mass, w
    times a power of two, rounded to nearest and at least 1 where w > 0, so that all masses sum to about 2^60; fewer
    than n units more, spread in proportion, make the sum a multiple of n. Draw i of a seed is a function of (table,
    seed, i) alone, the same on every device. Can be pickled and copied.

    Args:
        weights: shape [n], or [rows, n] for a distribution in each row; dtypes as in `multinomial`.

    Raises:
        ValueError: weights are negative, NaN, infinite or all zero in a row, empty, not 1-D or 2-D, or of another
            dtype. To know this the host reads one number a row from weights' device, once.
        TypeError: weights is no tensor.

    Example:
        >>> import torch, ste_ops
        >>> table = ste_ops.AliasTable(torch.tensor([1.0, 3.0]))
        >>> table.probabilities()
        tensor([0.2500, 0.7500], dtype=torch.float64)
        >>> table.sample_at(seed=7, start=0, num_samples=6).shape
        torch.Size([6])
    """

    def __init__(self, weights: Tensor) -> None:
        self._build("AliasTable", weights)

    def _build(self, operator: str, weights: Tensor) -> None:
        values = as_weights(operator, weights, ValueError)
        self._table, self._capacity = ops.alias_table(values)
        refuse_invalid(operator, values, self._capacity, ValueError)

    @property
    def shape(self) -> torch.Size:
        """The shape of the weights."""
        return self._table.shape

    @property
    def device(self) -> torch.device:
        return self._table.device

    def __repr__(self) -> str:
        return f"AliasTable(shape={tuple(self.shape)}, device={str(self.device)!r})"

    def to(self, device: torch.device | str) -> AliasTable:
        """The same table on another device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(AliasTable)
        moved._table, moved._capacity = self._table.to(device), self._capacity.to(device)
        return moved

    @classmethod
    def _for(cls, operator: str, weights: Tensor) -> AliasTable:
        """A table whose errors name `operator`."""
        table = object.__new__(cls)
        table._build(operator, weights)
        return table

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draws with replacement, under a seed that comes from `generator`.

        Args:
            num_samples: draws from each row, > 0.
            generator: on the table's device; default: torch's default generator.

        Returns:
            int64, shape [num_samples] or [rows, num_samples].

        Raises:
            ValueError: num_samples < 1.
            RuntimeError: the generator is on another device.
        """
        check_count("AliasTable.sample", "num_samples", num_samples, 1, ValueError)
        seed = draw_seed("AliasTable.sample", self.device, generator)
        return ops.alias_sample(self._table, self._capacity, seed, 0, num_samples)

    def sample_at(self, seed: int | Tensor, start: int, num_samples: int, stride: int = 1) -> Tensor:
        """Draws number start, start + stride, ... of the endless stream that `seed` names, in time O(num_samples).

        ``sample_at(s, 0, a + b)`` is ``sample_at(s, 0, a)`` followed by ``sample_at(s, a, b)``. Rank r of W processes
        that share one stream takes ``sample_at(s, r, k, stride=W)``. The rows of a 2-D table have streams of their
        own.

        Args:
            seed: an int (its lower 64 bits count) or an int64 tensor of one element on the table's device. Under
                `torch.vmap` each of a batch of seeds names its own stream.
            start: number of the first draw, >= 0.
            num_samples: draws from each row, >= 0.
            stride: from the number of one draw to that of the next, >= 1.

        Returns:
            int64, shape [num_samples] or [rows, num_samples].

        Raises:
            ValueError: start or num_samples is negative, stride is below 1, or one of them is above 2^40, or the last
                draw's number is 2^63 or more.
        """
        check_count("AliasTable.sample_at", "start", start, 0, ValueError)
        check_count("AliasTable.sample_at", "num_samples", num_samples, 0, ValueError)
        check_count("AliasTable.sample_at", "stride", stride, 1, ValueError)
        if start + num_samples * stride >= 2**63:
            raise ValueError(
                f"AliasTable.sample_at: the draws must have numbers below 2**63, got start {start}, num_samples "
                f"{num_samples} and stride {stride}"
            )
        if not isinstance(seed, Tensor):
            signed = (int(seed) + 2**63) % 2**64 - 2**63
            seed = torch.full((1,), signed, dtype=torch.int64, device=self.device)
        elif seed.numel() == 1:
            seed = seed.reshape(())  # by which vmap tells it from one that was drawn
        return ops.alias_sample(self._table, self._capacity, seed, start, num_samples, stride)

    def mass(self) -> Tensor:
        """The exact integer mass of every category, int64 in the shape of the weights: a row sums to n times a whole
        number, and a category is drawn with its mass over that sum."""
        bits = (self.shape[-1] - 1).bit_length()
        own = self._table >> bits
        alias = self._table & ((1 << bits) - 1)
        return own.scatter_add(-1, alias, self._capacity.unsqueeze(-1) - own)

    def probabilities(self) -> Tensor:
        """What every category is drawn with, float64 in the shape of the weights: its mass over the total."""
        mass = self.mass()
        return mass.to(torch.float64) / mass.sum(-1, keepdim=True)
