"""What the tests of samplers draw from, and for."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Indices(Dataset):
    """Item i is i; `read` counts those that were asked for."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return index
