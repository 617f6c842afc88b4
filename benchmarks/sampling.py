"""Weighted draws against torch.multinomial and torch.bernoulli."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import ste_ops
from benchmarks.measure import Row


def rows(device: str, quick: bool) -> Iterator[Row]:
    categories = 10**4 if quick else 10**6
    weights = torch.rand(categories, device=device)
    table = ste_ops.AliasTable(weights)
    many = 4 * categories
    yield Row(
        f"draws from a built table, n = {categories}, k = {many}",
        "torch.multinomial",
        lambda: table.sample(many),
        lambda: torch.multinomial(weights, many, replacement=True),
        30,
        at_most=False,
        rounds=5,
    )
    yield Row(
        f"table build + {categories} draws, n = {categories}",
        "torch.multinomial",
        lambda: ste_ops.multinomial(weights, categories, replacement=True),
        lambda: torch.multinomial(weights, categories, replacement=True),
        8,
        at_most=False,
        rounds=5,
    )
    p = torch.rand(2**16 if quick else 2**22, device=device)
    yield Row(
        f"bernoulli_ste forward, {p.numel()} float32",
        "torch.bernoulli",
        lambda: ste_ops.bernoulli_ste(p),
        lambda: torch.bernoulli(p),
        1.0,
        at_most=False,
        rounds=7,
    )
