"""The batch rule of operators on rows of weights: to `vmap` a batch is more rows, each with a stream of its own."""

from __future__ import annotations

from collections.abc import Callable
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
    "multinomial_without_replacement": ({0: 1}, 1),
    "refuse_states": ({0: 1, 1: 0}, None),
    "systematic_resample": ({0: 1}, 1),
    "stratified_resample": ({0: 1}, 1),
    "residual_resample": ({0: 1}, 1),
}


def _rule(name: str) -> Callable[..., Any]:
    held, seed = _ARGUMENTS[name]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        places = list(held)
        rows = batch_first(info, tuple(in_dims[p] for p in places), *(args[p] for p in places))
        if seed is not None and in_dims[seed] is None:
            return _under_one_seed(name, places, rows, args)
        flat = list(args)
        for place, tensor in zip(places, rows, strict=True):
            flat[place] = tensor.reshape(-1, *tensor.shape[tensor.dim() - held[place] :]).contiguous()
        if seed is not None:
            flat[seed] = args[seed].select(in_dims[seed], 0)
        shape = rows[0].shape[: rows[0].dim() - held[places[0]]]
        return _with_dims(getattr(ops, name)(*flat), lambda out: out.reshape(*shape, *out.shape[1:]))

    return rule


def _under_one_seed(name: str, places: list[int], rows: list[Tensor], args: tuple[Any, ...]) -> Any:
    """randomness="same": each of the batch draws what it would draw alone, from the streams of its own rows."""
    outs = []
    for of_one in zip(*rows, strict=True):
        alone = list(args)
        for place, tensor in zip(places, of_one, strict=True):
            alone[place] = tensor
        outs.append(getattr(ops, name)(*alone))
    if isinstance(outs[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*outs, strict=True)), (0,) * len(outs[0])
    return torch.stack(outs), 0


def _with_dims(out: Any, unfold: Callable[[Tensor], Tensor]) -> Any:
    return (tuple(map(unfold, out)), (0,) * len(out)) if isinstance(out, tuple) else (unfold(out), 0)


RULES = {name: _rule(name) for name in _ARGUMENTS}
for _name, _of_name in RULES.items():
    torch.library.register_vmap(f"ste_ops::{_name}", _of_name)
