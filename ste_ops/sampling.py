"""Weighted draws from exact integer tables, and the Bernoulli draw with a straight-through gradient."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ste_ops._functions import sampling as _functions
from ste_ops._library import ops

_FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_INTEGER = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_MOST = 2**40


def _as_weights(operator: str, weights: Tensor, error: type[Exception]) -> Tensor:
    """Weights as the native table takes them, or the operator's error."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{operator}: weights must be a tensor, got {type(weights).__name__}")
    if weights.dim() not in (1, 2):
        raise error(f"{operator}: weights must be 1-D or 2-D, got shape {tuple(weights.shape)}")
    if weights.shape[-1] == 0:
        raise error(f"{operator}: weights must not be empty, got shape {tuple(weights.shape)}")
    if weights.dtype in _INTEGER:
        return weights.to(torch.float64)
    if weights.dtype not in _FLOATING:
        allowed = "float64, float32, bfloat16, float16, an integer dtype or bool"
        raise error(f"{operator}: weights must be {allowed}, got {weights.dtype}")
    return weights.detach()


def _check_count(operator: str, name: str, value: int, least: int, error: type[Exception]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{operator}: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise error(f"{operator}: {name} must be >= {least}, got {value}")
    if value > _MOST:
        raise error(f"{operator}: {name} must be at most 2**40, got {value}")


def _seed(operator: str, device: torch.device, generator: Generator | None) -> Tensor:
    """A seed drawn on `device`, so that neither the host nor a CUDA graph waits for it."""
    if generator is None:
        return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device)
    if not isinstance(generator, Generator):
        raise TypeError(f"{operator}: generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise RuntimeError(
            f"{operator}: generator must be on the device of the draws, {device}, got one on {generator.device}"
        )
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def _refuse_invalid(operator: str, weights: Tensor, states: Tensor, error: type[Exception]) -> None:
    """Raises what a native pass found wrong with the weights; reads `states`, one number a row, on the host.

    A number above 0 says that all is well, 0 that every weight is zero, -1 - i that weight i is the first invalid one.
    """
    if int(states if states.dim() == 0 else states.amin() if states.numel() else 1) > 0:
        return
    rows = states.reshape(-1)
    row = int((rows <= 0).to(torch.int8).argmax())
    state = int(rows[row])
    if state == 0:
        where = "" if weights.dim() == 1 else f" in row {row}"
        raise error(f"{operator}: weights must have a positive sum, got only zeros{where}")
    index = -1 - state
    value = weights[index].item() if weights.dim() == 1 else weights[row, index].item()
    place = index if weights.dim() == 1 else (row, index)
    kind = "non-negative" if -float("inf") < value < 0 else "finite and non-negative"
    raise error(f"{operator}: weights must be {kind}, got {value} at index {place}")


def multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Draws category indices in proportion to weights, as `torch.multinomial`, without its limit of 2^24 categories.

    A zero weight is never drawn, no positive weight is lost however small it is beside the others, and the same seed
    gives the same draws on every device and at any number of threads. With replacement an alias table is built and
    drawn from; to draw more than once from the same weights, keep an `AliasTable`. Without, every category gets an
    exponential key and the least num_samples of them are drawn, in the order in which one draw after the other would
    take them.

    Args:
        weights: shape [n] or [rows, n]; float64, float32, bfloat16, float16, an integer dtype or bool (integers are
            read as float64). They need not sum to one. At most 2^36 categories.
        num_samples: draws from each row, > 0; without replacement at most the number of positive weights.
        replacement: whether a category may be drawn again.
        generator: where the seed comes from, on the device of weights; default: torch's default generator.

    Returns:
        int64, shape [num_samples] or [rows, num_samples], on weights' device. No gradient.

    Raises:
        RuntimeError: weights are negative, NaN, infinite or all zero in a row, empty, or not 1-D or 2-D; num_samples
            is < 1 or too large; the generator is on another device. The values of weights are checked where the host
            can see them: on CUDA and inside a compiled graph, where that would wait for the device, every draw of an
            invalid row, and every draw that no category is left for, is -1 instead. `AliasTable` checks everywhere.
        TypeError: an argument is of the wrong type.

    Source: Walker's alias method (1977), built by the sweep of Hübschle-Schneider and Sanders (ESA 2019); exponential
    keys of Efraimidis and Spirakis (2006); Philox (Salmon et al., SC'11).

    Example:
        >>> import torch, ste_ops
        >>> _ = torch.manual_seed(0)
        >>> draws = ste_ops.multinomial(torch.tensor([0.0, 3.0, 1.0]), 10000, replacement=True)
        >>> torch.bincount(draws, minlength=3).div(10000).mul(100).round()
        tensor([ 0., 75., 25.])
    """
    operator = "multinomial"
    values = _as_weights(operator, weights, RuntimeError)
    _check_count(operator, "num_samples", num_samples, 1, RuntimeError)
    seed = _seed(operator, values.device, generator)
    check = values.device.type == "cpu" and not torch.compiler.is_compiling()
    if not replacement:
        return _without_replacement(operator, values, seed, num_samples, check)
    table, capacity = ops.alias_table(values)
    if check:
        _refuse_invalid(operator, values, capacity, RuntimeError)
    return ops.alias_sample(table, capacity, seed, 0, num_samples)


def _without_replacement(operator: str, weights: Tensor, seed: Tensor, num_samples: int, check: bool) -> Tensor:
    if num_samples > weights.shape[-1]:
        raise RuntimeError(
            f"{operator}: num_samples must be at most {weights.shape[-1]}, the number of weights, without replacement, "
            f"got {num_samples}"
        )
    keys, positive = ops.exponential_keys(weights, seed)
    if check:
        _refuse_invalid(operator, weights, positive, RuntimeError)
        fewest = int(positive.amin()) if positive.numel() else num_samples
        if num_samples > fewest:
            raise RuntimeError(
                f"{operator}: num_samples must be at most {fewest}, the number of positive weights"
                f"{'' if weights.dim() == 1 else ' in a row'}, without replacement, got {num_samples}"
            )
    least, drawn = torch.topk(keys, num_samples, largest=False)
    usable = (least < float("inf")) & (positive > 0).unsqueeze(-1)
    return torch.where(usable, drawn, -1)


class AliasTable:
    """A distribution over category indices, built once and drawn from in constant time a draw.

    Eight bytes a category. The table holds exact integers: `mass` and `probabilities` recover from it what every
    category is drawn with. Weight w becomes an integer mass, w times a power of two, rounded to nearest and at least 1
    where w > 0, so that all masses sum to about 2^60; fewer than n units more, spread in proportion, make the sum a
    multiple of n. Draw i of a seed is a function of (table, seed, i) alone, the same on every device. Can be pickled
    and copied.

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
        values = _as_weights(operator, weights, ValueError)
        self._table, self._capacity = ops.alias_table(values)
        _refuse_invalid(operator, values, self._capacity, ValueError)

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
        _check_count("AliasTable.sample", "num_samples", num_samples, 1, ValueError)
        seed = _seed("AliasTable.sample", self.device, generator)
        return ops.alias_sample(self._table, self._capacity, seed, 0, num_samples)

    def sample_at(self, seed: int | Tensor, start: int, num_samples: int) -> Tensor:
        """Draws number start, start + 1, ... of the endless stream that `seed` names, in time O(num_samples).

        ``sample_at(s, 0, a + b)`` is ``sample_at(s, 0, a)`` followed by ``sample_at(s, a, b)``. The rows of a 2-D table
        have streams of their own.

        Args:
            seed: an int (its lower 64 bits count) or an int64 tensor of one element on the table's device.
            start: number of the first draw, >= 0.
            num_samples: draws from each row, >= 0.

        Returns:
            int64, shape [num_samples] or [rows, num_samples].

        Raises:
            ValueError: start or num_samples is negative or above 2^40.
        """
        _check_count("AliasTable.sample_at", "start", start, 0, ValueError)
        _check_count("AliasTable.sample_at", "num_samples", num_samples, 0, ValueError)
        if not isinstance(seed, Tensor):
            signed = (int(seed) + 2**63) % 2**64 - 2**63
            seed = torch.full((1,), signed, dtype=torch.int64, device=self.device)
        return ops.alias_sample(self._table, self._capacity, seed, start, num_samples)

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


def bernoulli_ste(p: Tensor, *, generator: Generator | None = None) -> Tensor:
    """Draws 1 with probability p and 0 otherwise; the gradient passes straight through to p.

    The gradient of p is the incoming gradient: an unbiased estimate where what follows is linear in the draw. Nothing
    is saved for the backward. The forward compares p with 64 random bits of its own, as integers: p = 0 never gives 1
    and p = 1 always does. The draw belongs to the element's place in memory. Under ``torch.vmap`` pass
    ``randomness="different"`` or ``"same"``.

    Args:
        p: any shape and strides, float64, float32, bfloat16 or float16, values in [0, 1].
        generator: where the seed comes from, on p's device; default: torch's default generator.

    Returns:
        Zeros and ones of p's shape, dtype and memory layout.

    Raises:
        RuntimeError: on the CPU, some p is not in [0, 1], as `torch.bernoulli` does; on CUDA, where the host would have
            to wait to know it, such an element gives NaN. Also when the generator is on another device.
        TypeError: p is no floating tensor of those dtypes.

    Source: the straight-through estimator of Bengio et al., arXiv:1308.3432.

    Example:
        >>> import torch, ste_ops
        >>> p = torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
        >>> ste_ops.bernoulli_ste(p).detach()
        tensor([0., 1., 1.])
        >>> ste_ops.bernoulli_ste(p).sum().backward()
        >>> p.grad
        tensor([1., 1., 1.])
    """
    if not isinstance(p, Tensor):
        raise TypeError(f"bernoulli_ste: p must be a tensor, got {type(p).__name__}")
    if p.dtype not in _FLOATING:
        raise TypeError(f"bernoulli_ste: p must be float64, float32, bfloat16 or float16, got {p.dtype}")
    return _functions.Bernoulli.apply(p, _seed("bernoulli_ste", p.device, generator))
