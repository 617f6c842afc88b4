"""Layouts, dtypes and estimators that the tests of categorical_ste and subset_ste share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ste_ops._library import ops

FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ESTIMATORS = ["straight_through", "gumbel", "reinmax"]
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2),
    "sliced": lambda x: x[:, 1:, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1),
    "one row": lambda x: x[0, 0],
    "one category": lambda x: x[..., :1],
    "no row": lambda x: x[:0],
}


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def saved_bytes(draw: Callable[[], Tensor]) -> int:
    """Of the tensors that a backward keeps, each storage once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        draw()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def raises_for_values(device: str) -> bool:
    return ops.namespace == "ste_ops" and device == "cpu"
