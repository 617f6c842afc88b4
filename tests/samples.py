"""Sample arguments of every registered operator; an operator without a row here fails tests/test_compile.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from table import first_instances

from ste_ops._library import ops

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


def gradients(device: str) -> list[torch.Tensor]:
    return [
        torch.randn(5, 7, device=device),
        torch.randn(6, 4, device=device, dtype=torch.bfloat16).t(),
        torch.randn(9, device=device, dtype=torch.float64)[1:],
        torch.randn(0, device=device),
    ]


def lists(device: str) -> list[list[torch.Tensor]]:
    return [gradients(device)[:2], gradients(device), gradients(device)[:1]]


def per_sample(device: str) -> list[Arguments]:
    shapes = [(3, 5, 7), (3,), (3, 0), (3, 2)]
    grads = [
        torch.randn(s, device=device).to(d) for s, d in zip(shapes, [torch.float32, torch.float64] * 2, strict=True)
    ]
    sums = [torch.ones_like(g[0]) for g in grads]
    return [(grads, sums, 0.5), (grads[:1], sums[:1], 0.5), ([grads[0][:0]], sums[:1], 0.5)]


def rows(device: str) -> list[torch.Tensor]:
    return [
        *gradients(device)[:3],
        torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last),
    ]


def tables(device: str) -> list[Arguments]:
    weights = [torch.rand(10, device=device), torch.rand(3, 7, device=device, dtype=torch.float64)]
    return [(*ops.alias_table(w), torch.tensor([4], device=device), 2, 5) for w in weights]


def pruned(device: str) -> list[torch.Tensor]:
    return [
        torch.randn(5, 8, device=device),
        torch.randn(8, 6, device=device, dtype=torch.bfloat16).t(),
        torch.randn(2, 4, 3, 3, device=device, dtype=torch.float64),
        torch.randn(12, device=device, dtype=torch.float16)[::3],
        torch.randn(0, 4, device=device),
    ]


def seed(device: str) -> torch.Tensor:
    return torch.tensor([7], device=device)


# operator -> device -> arguments of several calls.
SAMPLES: dict[str, Callable[[str], list[Arguments]]] = {
    "heaviside": steps,
    "sign": steps,
    "binarize_backward": masked,
    "sr_ste": lambda device: [(w, 2, 4) for w in pruned(device)],
    "sr_ste_backward": lambda device: [(torch.randn_like(w), w, 2, 4, 0.1) for w in pruned(device)],
    "total_norm": lambda device: [(grads, p) for grads in lists(device) for p in (2.0, float("inf"), 0.0, 3.0)],
    "total_norms": lambda device: [(grads, p) for grads in lists(device) for p in (2.0, 3.0)],
    "clip_grad_norms_": lambda device: [(grads, 0.5, 2.0, 2) for grads in lists(device)],
    "clip_grad_norm_": lambda device: [(grads, 0.5, 2.0) for grads in lists(device)],
    "clip_grads_with_norm_": lambda device: [(g, torch.ones((), device=device), 0.5) for g in lists(device)],
    "clip_grad_value_": lambda device: [(grads, 0.1) for grads in lists(device)],
    "clip_grad_agc_": lambda device: [(grads, [g * 9 for g in grads], 0.01, 1e-3) for grads in lists(device)],
    "clip_per_sample_": per_sample,
    "clip_gradient_value_backward": lambda device: [(grad, 0.1) for grad in rows(device)],
    "clip_gradient_norm_backward": lambda device: [(grad, grad.dim() - 1, 0.5, 2.0) for grad in rows(device)],
    "alias_table": lambda device: [(torch.rand(10, device=device),), (torch.rand(3, 7, device=device),)],
    "alias_sample": tables,
    "exponential_keys": lambda device: [
        (torch.rand(10, device=device), seed(device)),
        (torch.rand(3, 7, device=device, dtype=torch.float64).round(), seed(device)),
    ],
    "bernoulli": lambda device: [(grad.sigmoid(), seed(device)) for grad in gradients(device)],
}

# They take no tensor and answer with a string: torch.library.opcheck has nothing to check.
WITHOUT_TENSORS = {"surrogates", "build_info", "cuda_build_info"}
