"""N:M sparsity."""

from __future__ import annotations

from torch import Tensor

from ste_ops._checks import check_tensor, checked_finite, is_integer
from ste_ops._functions.quantize import sparse as _functions
from ste_ops._fx import call_node


def sr_ste(w: Tensor, n: int, m: int, decay: float = 2e-4) -> Tensor:
    """The n largest of every m neighbouring weights, the others 0; their gradients pass, with a decay.

    Neighbours lie along dimension 1, the inputs of a linear or convolutional layer, and along dimension 0 of a vector.
    Weights are compared by magnitude: of equal ones the first is kept, and a NaN counts as the largest. The gradient of
    a kept weight passes unchanged; to that of a pruned one ``decay * w`` is added, which pulls it towards 0 and so
    keeps the choice from flickering. ``decay=0`` is the plain straight-through estimator. A second application changes
    nothing.

    The decay joins the gradient in each backward. Where the loss is scaled (`torch.amp.GradScaler`) it is divided with
    the gradient before the step, and gradients accumulated over k batches hold it k times: there give ``decay=0``, and
    add ``decay * w`` where w is pruned to the unscaled gradients before the step.

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
    for name, number in (("n", n), ("m", m)):
        if not is_integer(number):
            raise TypeError(f"sr_ste: {name} must be an integer, got {number!r}")
    if not 1 <= n <= m:
        raise ValueError(f"sr_ste: n must be in [1, m = {m}], got {n}")
    dim = 1 if w.dim() > 1 else 0
    size = w.shape[dim] if w.dim() else 1
    if size % m:
        raise ValueError(f"sr_ste: m must divide the size of dim {dim}, which is {size}, got {m}")
    return _functions.SRSTE.apply(w, n, m, checked_finite("sr_ste", "decay", decay, zero=True))
