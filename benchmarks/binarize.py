"""The straight-through steps against copies, the tutorial's class and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import ste_ops
from benchmarks.measure import Count, Row
from ste_ops._library import ops

_CLIP = ste_ops.surrogate.Clip(1.0)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class StraightThroughStep(torch.autograd.Function):
    """The hand-written estimator of the PyTorch tutorial."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad = grad.clone()
        grad[x.abs() > 1] = 0
        return grad


def _step(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(function(x), x, grad)


# What a compiled net runs in its forward graph and, later, in its backward graph.
def _tutorial_forward(x: Tensor) -> Tensor:
    return (x > 0).float()


def _tutorial_backward(x: Tensor, grad: Tensor) -> Tensor:
    return torch.where(x.abs() > 1, 0.0, grad)


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    numel = 2**18 if quick else 2**22
    for dtype in _DTYPES:
        x, grad = (torch.randn(numel, device=device).to(dtype) for _ in range(2))
        mask = ops.heaviside(x, _CLIP.number, *_CLIP.parameters)[1]
        name = str(dtype).removeprefix("torch.")
        bytes_of_copy = 2 * x.nbytes
        yield Row(
            f"heaviside forward, {name}",
            "x.clone()",
            lambda x=x: ops.heaviside(x, _CLIP.number, *_CLIP.parameters),
            x.clone,
            1.10,
            at_most=True,
            # On a GPU the promise is the bandwidth of a copy, on the CPU its time.
            weight=bytes_of_copy / (bytes_of_copy + mask.nbytes) if device == "cuda" else 1.0,
        )
        yield Row(
            f"heaviside backward, {name}",
            "grad.clone()",
            lambda grad=grad, mask=mask: ops.binarize_backward(grad, mask),
            grad.clone,
            1.10,
            at_most=True,
            weight=bytes_of_copy / (bytes_of_copy + mask.nbytes) if device == "cuda" else 1.0,
        )

    x, grad = torch.randn(numel, device=device, requires_grad=True), torch.randn(numel, device=device)
    yield Row(
        "heaviside forward + backward, float32",
        "the tutorial's class",
        _step(ste_ops.heaviside, x, grad),
        _step(StraightThroughStep.apply, x, grad),
        10,
        at_most=False,
    )
    forward, backward = torch.compile(_tutorial_forward), torch.compile(_tutorial_backward)
    detached = x.detach()
    forward(detached), backward(detached, grad)
    yield Row(
        "heaviside forward + backward, float32",
        "torch.compile of the tutorial's arithmetic",
        lambda: ops.binarize_backward(grad, ops.heaviside(detached, _CLIP.number, *_CLIP.parameters)[1]),
        lambda: (forward(detached), backward(detached, grad)),
        1.2,
        at_most=False,
    )
    small, small_grad = torch.randn(64, device=device, requires_grad=True), torch.randn(64, device=device)
    yield Row(
        "heaviside forward + backward, 64 elements",
        "the tutorial's class",
        _step(ste_ops.heaviside, small, small_grad),
        _step(StraightThroughStep.apply, small, small_grad),
        0.95,
        at_most=True,
    )
    yield Count("bytes saved for backward / bytes of x, float32", "x itself", _saved_bytes(x) / x.nbytes, 1 / 32)


def _saved_bytes(x: Tensor) -> int:
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ste_ops.heaviside(x)
    return sum(saved)
