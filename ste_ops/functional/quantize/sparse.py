"""N:M sparsity."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._checks import check_tensor, checked_finite, is_integer
from ste_ops._functions.quantize import sparse as _functions
from ste_ops._fx import call_node
from ste_ops._library import ops


def sr_ste(w: Tensor, n: int, m: int, decay: float | Tensor = 2e-4) -> Tensor:
    """The n largest of every m neighbouring weights, the others 0; their gradients pass, with a decay.

    Neighbours lie along dimension 1, the inputs of a linear or convolutional layer, and along dimension 0 of a vector.
    Weights are compared by magnitude: of equal ones the first is kept, and a NaN counts as the largest. The gradient of
    a kept weight passes unchanged; to that of a pruned one ``decay * w`` is added, which pulls it towards 0 and so
    keeps the choice from flickering. ``decay=0`` is the plain straight-through estimator. A second application changes
    nothing.

    The decay joins the gradient in each backward. Where the loss is scaled (`torch.amp.GradScaler`) it is divided with
    the gradient before the step, and gradients accumulated over k batches hold it k times: there give ``decay=0``, and
    call `sr_ste_decay_` once before the step.

    w itself is kept for the backward, no mask: that of a parameter costs no memory. The backward is differentiable in
    its incoming gradient and, through the decay, in w. A forward-mode tangent passes unchanged: the decay regularizes,
    it is no derivative.

    Args:
        w: any shape and strides, float64, float32, bfloat16 or float16; m divides the size of dimension 1.
        n: how many of each m are kept, from 1 to m.
        m: how many neighbours compete.
        decay: a finite number >= 0.

    Returns:
        A tensor of w's shape, dtype and memory layout.

    Raises:
        TypeError: w is no floating tensor of those dtypes, or n or m no integer.
        ValueError: n is not in [1, m], m does not divide the size, or decay is negative or not finite.

    Source: SR-STE, arXiv:2102.04010, eq. 8 and 9; the decay's default is that of its code.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([[0.5, -2.0, 0.1, 1.0]], requires_grad=True)
        >>> y = ste_ops.sr_ste(w, 2, 4, decay=0.1)
        >>> y.detach()
        tensor([[ 0., -2.,  0.,  1.]])
        >>> y.sum().backward()
        >>> w.grad
        tensor([[1.0500, 1.0000, 1.0100, 1.0000]])
    """
    if check_tensor("sr_ste", "w", w):
        return call_node(sr_ste, locals())
    _check("sr_ste", w, n, m)
    return _functions.SRSTE.apply(w, n, m, checked_finite("sr_ste", "decay", decay, zero=True))


@torch.no_grad()
def sr_ste_decay_(w: Tensor, n: int, m: int, decay: float = 2e-4) -> None:
    """Adds ``decay * w`` to ``w.grad`` where `sr_ste` prunes w: the decay outside the loss, once for each step.

    Whatever the loss was multiplied by, and over however many batches the gradients were added, the step then holds the
    decay once. Forward with ``decay=0``, and call this after ``unscale_`` of a `torch.amp.GradScaler` and after the
    clipping of gradients, if they are clipped without it, and before ``optimizer.step()``. Weights without a gradient
    stay without, as for an optimizer.

    Args:
        w: the weights, whose ``.grad`` is changed in place, of w's dtype; else as in `sr_ste`.
        n, m: as in `sr_ste`.
        decay: a finite number >= 0; the default is that of `sr_ste`.

    Raises:
        TypeError, ValueError: as `sr_ste`, and where the gradient is of another dtype or layout than w.

    Source: SR-STE, arXiv:2102.04010, eq. 9, whose decay is no part of the loss.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.tensor([[0.5, -2.0, 0.1, 1.0]], requires_grad=True)
        >>> for _ in range(4):  # micro-batches
        ...     ste_ops.sr_ste(w, 2, 4, decay=0).sum().backward()
        >>> ste_ops.sr_ste_decay_(w, 2, 4, decay=0.1)
        >>> w.grad
        tensor([[4.0500, 4.0000, 4.0100, 4.0000]])
    """
    operator = "sr_ste_decay_"
    if check_tensor(operator, "w", w):
        raise TypeError(f"{operator}: w must be a tensor, got Proxy: torch.fx does not trace what changes w.grad")
    _check(operator, w, n, m)
    decay = checked_finite(operator, "decay", decay, zero=True)
    if w.grad is None:
        return
    if w.grad.dtype != w.dtype or w.grad.layout != w.layout:
        got = f"{w.grad.dtype}, {w.grad.layout}"
        raise TypeError(f"{operator}: w.grad must have w's dtype and layout, {w.dtype}, {w.layout}, got {got}")
    w.grad.copy_(ops.sr_ste_backward(w.grad, w, n, m, decay))


def _check(operator: str, w: Tensor, n: int, m: int) -> None:
    for name, number in (("n", n), ("m", m)):
        if not is_integer(number):
            raise TypeError(f"{operator}: {name} must be an integer, got {number!r}")
    if not 1 <= n <= m:
        raise ValueError(f"{operator}: n must be in [1, m = {m}], got {n}")
    dim = 1 if w.dim() > 1 else 0
    size = w.shape[dim] if w.dim() else 1
    if size % m:
        raise ValueError(f"{operator}: m must divide the size of dim {dim}, which is {size}, got {m}")
