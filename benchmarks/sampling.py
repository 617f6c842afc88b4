"""Weighted draws against torch.multinomial and torch.bernoulli."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import ste_ops
from benchmarks.measure import Row


def rows(device: str, quick: bool) -> Iterator[Row]:
    for categories in (10**3, 10**4) if quick else (10**4, 10**6, 10**7):
        yield from of_table(torch.rand(categories, device=device))
    if device == "cpu":
        yield from few_of_few()
    yield from few_draws(torch.rand(10**4, device=device))
    yield from few_draws(torch.rand(10**4 if quick else 10**7, device=device))
    yield from without_replacement(torch.rand(10**5 if quick else 10**7, device=device))
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


def of_table(weights: torch.Tensor) -> Iterator[Row]:
    n = len(weights)
    table = ste_ops.AliasTable(weights)
    # The more categories, the longer torch's binary search for each draw.
    many = min(4 * n, 4 * 10**6)
    rounds = 5 if n <= 10**6 else 3
    yield Row(
        f"draws from a built table, n = {n}, k = {many}",
        "torch.multinomial",
        lambda: table.sample(many),
        lambda: torch.multinomial(weights, many, replacement=True),
        30,
        at_most=False,
        rounds=rounds,
    )
    yield Row(
        f"table build + {n} draws, n = {n}",
        "torch.multinomial",
        lambda: ste_ops.multinomial(weights, n, replacement=True),
        lambda: torch.multinomial(weights, n, replacement=True),
        8,
        at_most=False,
        rounds=rounds,
    )


def few_draws(weights: torch.Tensor) -> Iterator[Row]:
    for draws in (1, 10, *(len(weights) // few for few in (128, 16, 8))):
        yield Row(
            f"{draws} draws with replacement without a table, n = {len(weights)}",
            "torch.multinomial",
            lambda draws=draws: ste_ops.multinomial(weights, draws, replacement=True),  # type: ignore[misc]
            lambda draws=draws: torch.multinomial(weights, draws, replacement=True),  # type: ignore[misc]
            1.0,
            at_most=False,
            rounds=5,
        )


def few_of_few() -> Iterator[Row]:
    """Nothing but calling: at most 3 us more than torch takes, which are 2 or 3."""
    for shape in ((10,), (100,), (8, 10), (8, 200)):
        weights = torch.rand(shape)
        for draws in (2, 10, 20):
            yield Row(
                f"{draws} draws with replacement of weights {list(shape)}",
                "torch.multinomial",
                lambda w=weights, draws=draws: ste_ops.multinomial(w, draws, replacement=True),  # type: ignore[misc]
                lambda w=weights, draws=draws: torch.multinomial(w, draws, replacement=True),  # type: ignore[misc]
                2.5,
                at_most=True,
                rounds=51,
            )


def without_replacement(weights: torch.Tensor) -> Iterator[Row]:
    n = weights.numel()  # of which torch.multinomial takes at most 2^24
    for k, target in ((10, 5), (n // 2, 1.5)):
        yield Row(
            f"draws without replacement, n = {n}, k = {k}",
            "torch.multinomial",
            lambda k=k: ste_ops.multinomial(weights, k),  # type: ignore[misc]
            lambda k=k: torch.multinomial(weights, k),  # type: ignore[misc]
            target,
            at_most=False,
            rounds=5,
        )
