"""Which layers of a model something is done to, for what takes `skip`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ste_ops.nn import _attach
from ste_ops.nn.layers import QuantLayer


def check_module(caller: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a module, got {type(model).__name__}")


def unskipped(caller: str, model: nn.Module, skip: Collection[str]) -> dict[str, nn.Module]:
    """The modules of a model that stand in none that skip names."""
    names = dict(model.named_modules(remove_duplicate=False))
    unknown = [name for name in skip if name not in names]
    if isinstance(skip, str) or unknown:
        got = repr(skip) if isinstance(skip, str) else str(unknown)
        raise ValueError(f"{caller}: skip must be a collection of names of modules of the model, got {got}")
    skipped = {module for name in skip for module in names[name].modules()}
    return {name: module for name, module in model.named_modules() if module not in skipped}


def has_quantized_weights(layer: nn.Module) -> bool:
    if isinstance(layer, QuantLayer):
        return layer.weight_quantizer is not None
    return bool(_attach.weight_quantizers(layer))
