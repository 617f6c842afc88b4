"""Clipping inside the graph as modules: for the states of recurrent nets, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ste_ops import functional
from ste_ops._checks import checked_norm_type, checked_number
from ste_ops._fx import one_node
from ste_ops._torch import differentiated_around, dispatch_modes, jit_tracing, lazy_clone


def _map(clip: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`clip` of every tensor of x, in x's structure."""
    if isinstance(x, PackedSequence):
        return x._replace(data=clip(x.data))
    if isinstance(x, (tuple, list)):
        return type(x)(_map(clip, item) for item in x)
    return x if x is None else _writable(clip(x))


def _writable(x: Tensor) -> Tensor:
    """x for a layer that may work in place (``ReLU(inplace=True)``), which autograd refuses of a Function's view.

    Nothing is copied until something is written, and nothing then either where the layer before has let go of its own.
    What is recorded or differentiated on the way has no such copy; a compiler leaves out one that nobody needs.
    """
    recorded = torch.compiler.is_compiling() or jit_tracing() or differentiated_around() or dispatch_modes()
    return x.clone() if recorded or type(x) is not Tensor else lazy_clone(x)


class ClipGradientValue(nn.Module):
    """The identity, with the gradient clamped to ``[-clip_value, clip_value]``: `ste_ops.clip_gradient_value`.

    Put between the steps of a recurrent net it bounds what one step hands back to the one before it, where
    `clip_grad_value_` would come after the gradient has already grown over all of them. `torch.nn.LSTM` and its like
    run their steps inside one call; between those nothing can be put, so loop over a cell.

    Args:
        clip_value: the bound, >= 0.

    Shape:
        A tensor, a `PackedSequence`, None, or tuples and lists of them (the state of an LSTM); the same comes out. The
        next layer may work in place (``ReLU(inplace=True)``): what came in keeps its values then.

    Raises:
        ValueError: clip_value is negative or NaN.

    Example:
        >>> import torch, ste_ops
        >>> from ste_ops.nn import ClipGradientValue
        >>> cell, clip = torch.nn.LSTMCell(3, 4), ClipGradientValue(0.1)
        >>> state = torch.zeros(2, 4), torch.zeros(2, 4)
        >>> for x in torch.randn(5, 2, 3):
        ...     state = clip(cell(x, state))
        >>> state[0].sum().backward()
    """

    def __init__(self, clip_value: float) -> None:
        super().__init__()
        self.clip_value = checked_number("ClipGradientValue", "clip_value", clip_value)

    @one_node
    def forward(self, x: Any) -> Any:
        return _map(lambda t: functional.clip_gradient_value(t, self.clip_value), x)

    def extra_repr(self) -> str:
        return f"{self.clip_value:g}"


class ClipGradientNorm(nn.Module):
    """The identity, with the gradient scaled to a norm of at most max_norm: `ste_ops.clip_gradient_norm`.

    Each tensor of a state has its own norm. ``dim=-1`` clips each sequence of a batch by itself, so that one of them
    does not decide for the others; None, the default, takes one norm over the batch. For recurrent nets see
    `ClipGradientValue`.

    Args:
        max_norm: the bound, >= 0.
        norm_type: as in `ste_ops.get_total_norm`.
        dim: the dimensions that a norm is taken over, as in `ste_ops.clip_gradient_norm`.

    Shape:
        A tensor, a `PackedSequence`, None, or tuples and lists of them (the state of an LSTM); the same comes out. The
        next layer may work in place (``ReLU(inplace=True)``): what came in keeps its values then.

    Raises:
        ValueError: max_norm is negative or NaN; norm_type is NaN, or negative and not -inf.

    Example:
        >>> import torch, ste_ops
        >>> from ste_ops.nn import ClipGradientNorm
        >>> h = torch.zeros(2, 2, requires_grad=True)
        >>> ClipGradientNorm(1.0, dim=-1)(h).backward(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        >>> h.grad
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """

    def __init__(self, max_norm: float, norm_type: float = 2.0, dim: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.max_norm = checked_number("ClipGradientNorm", "max_norm", max_norm)
        self.norm_type = checked_norm_type("ClipGradientNorm", norm_type)
        self.dim = tuple(dim) if isinstance(dim, Iterable) else dim

    @one_node
    def forward(self, x: Any) -> Any:
        return _map(lambda t: functional.clip_gradient_norm(t, self.max_norm, self.norm_type, self.dim), x)

    def extra_repr(self) -> str:
        return f"{self.max_norm:g}, norm_type={self.norm_type:g}, dim={self.dim}"
