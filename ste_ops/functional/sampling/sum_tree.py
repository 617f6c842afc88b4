"""A distribution whose weights change between draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ste_ops._checks import as_array_tensor, as_weights, check_count, check_plain, is_number, refuse_invalid
from ste_ops._functions.sampling.sum_tree import FANOUT, tree_levels
from ste_ops._library import ops
from ste_ops._random import draw_seed
from ste_ops._sent import Sent

Indices = int | slice | Sequence[int] | NDArray[Any] | Tensor
Weights = float | Sequence[float] | NDArray[Any] | Tensor


class SumTree:
    """Weights that change, drawn from in proportion: prioritized replay, mining of hard examples.

    An update of k weights and k draws take O(k log n), in one native call each. The tree is a function of the weights
    it holds now: no sequence of updates leaves a trace in it, and the same weights give the same draws bit for bit on
    every device and at any number of threads. A zero weight is never drawn. All weights may be zero (a buffer that is
    still empty); drawing is an error then.

    Sixteen children a node. In each node the weights of the children become integers relative to the largest, at least
    1 where positive; a draw goes down by 64 random bits a level. So a weight is drawn with its share of the sum, to
    2^-50 of it or 2^-56 of all, and never with nothing where it is positive. `probabilities` says what each one is
    drawn with. About nine bytes a weight, besides the weights.

    ``len(tree)`` is the number of weights, ``tree[i]`` a weight (or several, as in a tensor) and ``tree[i] = w`` the
    same as ``tree.update(i, w)``. Can be pickled, copied and sent to another process; a copy has weights of
    its own, those of the moment it is made.

    Args:
        weights: shape [n], at least one; float64, float32, bfloat16, float16, an integer dtype or bool (integers are
            kept as float64). Copied.

    Raises:
        ValueError: weights are negative, NaN or infinite, empty, not 1-D, or of another dtype. To know this the host
            reads one number from weights' device, once.
        TypeError: weights is no tensor.

    Source: prioritized experience replay, Schaul et al., arXiv:1511.05952; trees of sums, Wong and Easton, "An
    efficient method for weighted sampling without replacement" (1980).

    Example:
        >>> import torch, ste_ops
        >>> tree = ste_ops.SumTree(torch.zeros(1000))
        >>> tree.update(torch.tensor([3, 7, 7]), torch.tensor([1.0, 5.0, 2.0]))  # of equal indices the last one counts
        >>> tree.total()
        tensor(3., dtype=torch.float64)
        >>> drawn = tree.sample(64)
        >>> ((drawn == 3) | (drawn == 7)).all()
        tensor(True)
        >>> share = tree[drawn].double() / tree.total()  # for importance sampling
        >>> torch.allclose(share, tree.probabilities()[drawn])
        True
    """

    def __init__(self, weights: Tensor) -> None:
        values = as_weights("SumTree", weights, ValueError)
        if values.dim() != 1:
            raise ValueError(f"SumTree: weights must be 1-D, got shape {tuple(values.shape)}")
        self._set(values, "SumTree")

    def _set(self, weights: Tensor, operator: str) -> None:
        held, nodes, verdict = ops.sum_tree(weights)
        refuse_invalid(operator, weights, verdict, ValueError)
        self._weights, self._nodes = held, nodes

    @property
    def device(self) -> torch.device:
        return self._weights.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return self._weights.dtype

    def __len__(self) -> int:
        return self._weights.shape[0]

    def __repr__(self) -> str:
        return f"SumTree(n={len(self)}, dtype={self.dtype}, device={str(self.device)!r})"

    def weights(self) -> Tensor:
        """A copy of the weights as they are now."""
        return self._weights.clone()

    def __getitem__(self, indices: Any) -> Tensor:
        return self._weights[indices].clone()

    def __setitem__(self, indices: Indices, weights: Weights) -> None:
        self.update(indices, weights)

    def total(self) -> Tensor:
        """The sum of the weights, float64 and 0-d, to a relative error of 1e-14; inf where it is beyond float64."""
        word = self._nodes[-FANOUT]
        # From the exponent's place in the word to that in a float64; torch.ldexp takes powers of two in float32.
        field, fraction = (word >> 52 & 4095) - 52, word & (2**52 - 1)
        small = (field < 1).to(torch.int64)  # below 2^-1022, or zero
        bits = (field + 64 * small).clamp(max=2047) << 52 | fraction * (field < 2047)
        total = bits.view(torch.float64)
        return torch.where(word == 0, 0.0, torch.where(small == 1, total * 2.0**-64, total))

    def update(self, indices: Indices, weights: Weights) -> None:
        """Sets weights[indices] = weights. Where an index occurs more than once, its last weight counts.

        Args:
            indices: integers in [0, n): a tensor of any shape on the tree's device, an array, a list or an int; or a
                slice. None at all change nothing.
            weights: a tensor of that shape (or one that broadcasts to it) on the same device, an array, a list or a
                number; converted to the tree's dtype. Above zero they stay so: one that is too small for the dtype
                becomes the least number of it.

        Raises:
            RuntimeError: an index is negative or not below n, or a weight is negative, NaN or infinite. The tree is
                then what it was before. On CUDA the host does not wait to know of it: a later operator raises it
                (`check_deferred_errors`).
            ValueError: the shapes do not fit, or a tensor is on another device.
            TypeError: indices are no integers, or weights no real numbers.
        """
        index, values = self._as_indices(indices), self._as_values(weights)
        if values.shape != index.shape:
            try:
                values = values.expand(index.shape)
            except RuntimeError:
                raise ValueError(
                    f"SumTree.update: weights must have the shape of indices, {tuple(index.shape)}, got "
                    f"{tuple(values.shape)}"
                ) from None
        ops.sum_tree_update_(self._weights, self._nodes, index.reshape(-1), values.reshape(-1))

    def _as_indices(self, indices: Indices) -> Tensor:
        if isinstance(indices, slice):
            start, stop, step = indices.indices(len(self))
            return torch.arange(len(range(start, stop, step)), device=self.device) * step + start
        index = self._on_device("indices", "integers", indices)
        if index.numel() and (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool):
            hint = "; mask.nonzero().squeeze(1) makes them of a mask" if index.dtype == torch.bool else ""
            raise TypeError(f"SumTree.update: indices must be integers, got {index.dtype}{hint}")
        return index.to(torch.int64)

    def _as_values(self, weights: Weights) -> Tensor:
        if is_number(weights):
            weights = torch.full((), float(cast(float, weights)), dtype=torch.float64, device=self.device)
        values = self._on_device("weights", "real numbers", weights).detach()
        if values.is_complex():
            raise TypeError(f"SumTree.update: weights must be real numbers, got {values.dtype}")
        if values.dtype == self.dtype or not values.is_floating_point():
            return values.to(self.dtype)
        limits, narrow = torch.finfo(self.dtype), values.to(self.dtype)
        # Zero would mean never.
        return torch.where((narrow == 0) & (values > 0), limits.smallest_normal * limits.eps, narrow)

    def _on_device(self, name: str, expected: str, given: Any) -> Tensor:
        """A tensor as it is, anything else as one on the tree's device."""
        if not isinstance(given, Tensor):
            return as_array_tensor("SumTree.update", name, expected, given).to(self.device)
        check_plain("SumTree.update", name, given)
        if given.device != self.device:
            raise ValueError(f"SumTree.update: {name} must be on the tree's device, {self.device}, got {given.device}")
        return given

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draws indices with replacement, in proportion to the weights as they are now.

        Args:
            num_samples: > 0.
            generator: on the tree's device; default: torch's default generator.

        Returns:
            int64, shape [num_samples].

        Raises:
            ValueError: num_samples < 1.
            RuntimeError: every weight is zero; on CUDA the draws are -1 and a later operator raises it
                (`check_deferred_errors`). Also when the generator is on another device.
        """
        check_count("SumTree.sample", "num_samples", num_samples, 1, ValueError)
        seed = draw_seed("SumTree.sample", self.device, generator)
        return ops.sum_tree_sample(self._nodes, len(self), seed, 0, num_samples)

    def sample_at(self, seed: int | Tensor, start: int, num_samples: int) -> Tensor:
        """Draws number start, start + 1, ... of the endless stream that `seed` names, from the weights as they are now.

        Args and errors are those of `AliasTable.sample_at`, but for the stride; and those of `sample`.

        Returns:
            int64, shape [num_samples].
        """
        check_count("SumTree.sample_at", "start", start, 0, ValueError)
        check_count("SumTree.sample_at", "num_samples", num_samples, 0, ValueError)
        if not isinstance(seed, Tensor):
            signed = (int(seed) + 2**63) % 2**64 - 2**63
            seed = torch.full((1,), signed, dtype=torch.int64, device=self.device)
        return ops.sum_tree_sample(self._nodes, len(self), seed, start, num_samples)

    def probabilities(self) -> Tensor:
        """What every weight is drawn with, float64, shape [n]: the product of its shares on the way down."""
        share = self._nodes.new_ones(1, dtype=torch.float64)
        levels, offset = [len(self), *tree_levels(len(self))], 0
        for children, count in zip(levels[-2::-1], levels[:0:-1], strict=True):
            prefix = self._nodes[offset : offset + count * FANOUT].reshape(count, FANOUT)
            mass = prefix.diff(dim=-1, prepend=prefix.new_zeros(count, 1)).to(torch.float64)
            total = prefix[:, -1:].clamp(min=1).to(torch.float64)
            share = (share.unsqueeze(-1) * (mass / total)).reshape(-1)[:children]
            offset += count * FANOUT
        return share

    def to(self, device: torch.device | str) -> SumTree:
        """The same tree on another device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(SumTree)
        moved._weights, moved._nodes = self._weights.to(device), self._nodes.to(device)
        return moved

    def __copy__(self) -> SumTree:
        copied = object.__new__(SumTree)
        copied._weights, copied._nodes = self._weights.clone(), self._nodes.clone()
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"weights": Sent(self._weights)}

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        self._set(state["weights"], "SumTree")

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the weights: all that a tree is."""
        return {"weights": self.weights()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of a `state_dict`; the tree keeps its device.

        Raises:
            ValueError: the state is of a tree of another length or dtype, or of something else.
        """
        weights = state.get("weights")
        if not isinstance(weights, Tensor) or set(state) != {"weights"}:
            raise ValueError(f"SumTree.load_state_dict: expected a state with weights alone, got {sorted(state)}")
        if weights.shape != self._weights.shape or weights.dtype != self.dtype:
            raise ValueError(
                f"SumTree.load_state_dict: weights must be {self.dtype} of shape {tuple(self._weights.shape)}, got "
                f"{weights.dtype} of shape {tuple(weights.shape)}"
            )
        self._set(weights.to(self.device), "SumTree.load_state_dict")
