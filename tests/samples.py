"""Sample arguments of every registered operator; an operator without a row here fails tests/test_compile.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from table import first_instances

Arguments = tuple[Any, ...]


def steps(device: str) -> list[Arguments]:
    xs = [
        torch.randn(5, 7, device=device),
        torch.randn(6, 10, device=device, dtype=torch.bfloat16).t()[::2],
        torch.randn(2, 3, 4, 5, device=device, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn((), device=device, dtype=torch.float16),
        torch.randn(3, 0, device=device),
    ]
    return [(x, s.number, *s.parameters) for s in first_instances() for x in xs]


def masked(device: str) -> list[Arguments]:
    def mask(numel: int) -> torch.Tensor:
        return torch.randint(0, 256, ((numel + 7) // 8,), dtype=torch.uint8, device=device)

    return [
        (torch.randn(5, 7, device=device), mask(35)),
        (torch.randn(6, 10, device=device, dtype=torch.float16).t(), mask(60)),
        (torch.randn(7, 1, device=device, dtype=torch.float64).expand(7, 3), mask(21)),
        (torch.randn(0, device=device), mask(0)),
    ]


# operator -> device -> arguments of several calls.
SAMPLES: dict[str, Callable[[str], list[Arguments]]] = {
    "heaviside": steps,
    "sign": steps,
    "binarize_backward": masked,
}

# They take no tensor and answer with a string: torch.library.opcheck has nothing to check.
WITHOUT_TENSORS = {"surrogates", "build_info", "cuda_build_info"}
