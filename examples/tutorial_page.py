"""How the sections of examples/tutorial.py print."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(value: Any) -> str:
    """Plain numbers of four digits, wherever a tensor was."""
    if isinstance(value, Tensor):
        return text(value.tolist())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(text, value)) + "]"
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)  # + 0.0: -0 is shown as 0


def show(what: str, value: Any) -> None:
    print(f"    {what:<52}  {text(value)}")


def say(why: str) -> None:
    print("\n" + textwrap.fill(" ".join(why.split()), 100, initial_indent="  ", subsequent_indent="  "))
