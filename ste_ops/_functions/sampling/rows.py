"""The batch rule of operators on rows of weights: to `vmap` a batch is more rows, each with a stream of its own."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import batch_first
from ste_ops._library import ops

# The arguments that hold a row each, with the dimensions that one row has, and the place of the seed.
_ARGUMENTS: dict[str, tuple[dict[int, int], int | None]] = {
    "alias_table": ({0: 1}, None),
    "alias_sample": ({0: 1, 1: 0}, 2),
    "inverse_cdf_sample": ({0: 1}, 1),
    "multinomial_with_replacement": ({0: 1}, 1),
    "multinomial_without_replacement": ({0: 1}, 1),
    "refuse_states": ({0: 1, 1: 0}, None),
    "systematic_resample": ({0: 1}, 1),
    "stratified_resample": ({0: 1}, 1),
    "residual_resample": ({0: 1}, 1),
}


def _rule(name: str) -> Callable[..., Any]:
    held, seed = _ARGUMENTS[name]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if info.batch_size > 0 and seed is not None and _each_alone(in_dims[seed], args[seed]):
            return _one_by_one(name, info, in_dims, args)
        places = list(held)
        rows = batch_first(info, tuple(in_dims[p] for p in places), *(args[p] for p in places))
        flat = list(args)
        for place, tensor in zip(places, rows, strict=True):
            own = tensor.shape[tensor.dim() - held[place] :]
            flat[place] = tensor.reshape(prod(tensor.shape[: tensor.dim() - held[place]]), *own).contiguous()
        if seed is not None:
            flat[seed] = _first_seed(info, in_dims[seed], args[seed])
        shape = rows[0].shape[: rows[0].dim() - held[places[0]]]
        return _with_dims(getattr(ops, name)(*flat), lambda out: out.reshape(*shape, *out.shape[1:]))

    return rule


def _each_alone(dim: int | None, seed: Tensor) -> bool:
    """Whether each of the batch draws what it would draw alone: under the one seed of randomness="same", and under
    seeds that a user gave, which have no dimension of their own. Of the seeds that randomness="different" draws, the
    first serves all, as every row has a stream of its own."""
    return dim is None or seed.dim() == 1


def _first_seed(info: Any, dim: int | None, seed: Tensor) -> Tensor:
    if info.batch_size == 0:
        return seed.new_zeros(1)
    assert dim is not None
    return seed.select(dim, 0)


def _one_by_one(name: str, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> Any:
    batched = [(place, dim) for place, dim in enumerate(in_dims) if dim is not None]
    outs = []
    for i in range(info.batch_size):
        alone = list(args)
        for place, dim in batched:
            alone[place] = args[place].select(dim, i)
        outs.append(getattr(ops, name)(*alone))
    if isinstance(outs[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*outs, strict=True)), (0,) * len(outs[0])
    return torch.stack(outs), 0


def _with_dims(out: Any, unfold: Callable[[Tensor], Tensor]) -> Any:
    return (tuple(map(unfold, out)), (0,) * len(out)) if isinstance(out, tuple) else (unfold(out), 0)


def _repeated_rule(name: str, count: int) -> Callable[..., Any]:
    """The rule of draws with replacement, of which argument `count` says how many: samples that draw from one row of
    weights, or from one table, take turns in its stream, so that nothing is copied for each of them."""
    held, seed = _ARGUMENTS[name]
    of_rows = _rule(name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        assert seed is not None
        batched = any(in_dims[place] is not None for place in held)
        if batched or info.batch_size == 0 or _each_alone(in_dims[seed], args[seed]):
            return of_rows(info, in_dims, *args)
        flat = list(args)
        flat[seed] = _first_seed(info, in_dims[seed], args[seed])
        flat[count] = info.batch_size * args[count]
        drawn = getattr(ops, name)(*flat)
        return drawn.reshape(*drawn.shape[:-1], info.batch_size, args[count]), drawn.dim() - 1

    return rule


RULES = {name: _rule(name) for name in _ARGUMENTS}
RULES["alias_sample"] = _repeated_rule("alias_sample", 4)
RULES["multinomial_with_replacement"] = _repeated_rule("multinomial_with_replacement", 2)
for _name, _of_name in RULES.items():
    torch.library.register_vmap(f"ste_ops::{_name}", _of_name)
