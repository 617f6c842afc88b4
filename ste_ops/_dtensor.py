"""Whether a tensor is a `DTensor`, whose elements lie on several ranks, asked without importing what nobody uses."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def may_have_dtensor() -> bool:
    return "torch.distributed.tensor" in sys.modules


def is_dtensor(x: Any) -> bool:
    """Costs next to nothing where nobody has imported DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def has_dtensor(tensors: Iterable[Any]) -> bool:
    """Whether a DTensor is among them; costs nothing where nobody has imported DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    return any(issubclass(kind, module.DTensor) for kind in set(map(type, tensors)))


def check_mesh(operator: str, name: str, value: Tensor, x: Tensor) -> None:
    """A parameter lies where x does: both are plain, or both DTensors of one mesh."""
    of_value, of_x = is_dtensor(value), is_dtensor(x)
    if of_value != of_x:
        kinds = ["a plain tensor", "a DTensor"]
        mend = f"distribute_tensor() puts {name} on x's mesh" if of_x else f"{name}.full_tensor() is a plain one"
        raise TypeError(f"{operator}: {name} must be {kinds[of_x]} as x is, got {kinds[of_value]}; {mend}")
    if of_x and value.device_mesh != x.device_mesh:  # type: ignore[attr-defined]
        raise ValueError(
            f"{operator}: {name} must be on x's mesh, {x.device_mesh}, "  # type: ignore[attr-defined]
            f"got {value.device_mesh}"  # type: ignore[attr-defined]
        )
