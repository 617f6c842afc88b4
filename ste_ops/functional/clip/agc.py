"""Adaptive clipping: each unit's gradient against the norm of its weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from ste_ops._checks import check_plain, checked_number
from ste_ops._dtensor import has_dtensor, is_dtensor
from ste_ops._library import ops
from ste_ops.functional.clip import _lists
from ste_ops.functional.clip._lists import check_writable, gradients_of, in_one_call, listed, written
from ste_ops.functional.clip.distributed_units import clip_divided, own_units


def clip_grad_agc_(parameters: Tensor | Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """Adaptive gradient clipping (NFNets): scales a unit's gradient where it is large beside the unit's weights.

    A unit is what belongs to one index of the first dimension: an output of a linear layer, a channel that a
    convolution puts out. A tensor with fewer than two dimensions is one unit. Where the norm of a unit's gradient
    reaches ``clip_factor * max(norm of its weights, eps)`` it is scaled down to that. Norms are taken in float64; each
    unit is read once, and only gradients that change are written. No host sync.

    The paper clips every layer but the final linear one: leave its parameters out of the list.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over. A layer that keeps its
            outputs in another dimension than the first (``ConvTranspose``) is taken by its first dimension all the
            same, as in timm. `DTensor`s are clipped by their units' norms over all ranks, which all have to call where
            units are divided (a sharded bias, ``Shard(1)``).
        clip_factor: the largest ratio of the norms, >= 0. The paper takes 0.01 for large batches and more for small
            ones.
        eps: the least that a norm of weights counts as, >= 0, so that weights of zero can move.

    Raises:
        ValueError: clip_factor or eps is negative or NaN; a `DTensor` gradient is Partial, or does not lie as its
            parameter does.
        TypeError: a gradient is sparse or integer.
        RuntimeError: a gradient's elements share memory. Nothing has been written then.

    Source:
        Brock et al., High-Performance Large-Scale Image Recognition Without Normalization (arXiv:2102.06171), equation
        3; the defaults, the 1e-6 below the fraction and the units are those of the authors' code and of timm's
        ``adaptive_clip_grad``.

    Example:
        >>> import torch, ste_ops
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]], requires_grad=True)
        >>> weight.grad = torch.tensor([[0.03, 0.04], [0.03, 0.04]])
        >>> ste_ops.clip_grad_agc_([weight], clip_factor=0.02)
        >>> weight.grad
        tensor([[0.0300, 0.0400],
                [0.0060, 0.0080]])
    """
    operator = "clip_grad_agc_"
    clip_factor = checked_number(operator, "clip_factor", clip_factor)
    eps = checked_number(operator, "eps", eps)
    parameters = listed(operator, "parameters", parameters)
    gradients_of(operator, parameters)  # says where there is nothing to clip
    pairs = [(parameter, parameter.grad) for parameter in parameters]
    with torch.no_grad():
        if not has_dtensor([t for pair in pairs for t in pair]):
            _clip([(weight, grad) for weight, grad in pairs if grad is not None], clip_factor, eps)
            return
        whole, divided = own_units(operator, pairs)
        _clip(whole, clip_factor, eps)
        clip_divided(divided, clip_factor, eps)
        written([grad for _, grad in pairs if grad is not None and is_dtensor(grad)])


def _clip(pairs: list[tuple[Tensor, Tensor]], clip_factor: float, eps: float) -> None:
    if not pairs:
        return
    weights, grads = [weight for weight, _ in pairs], [grad for _, grad in pairs]

    def in_parts() -> None:
        _clip_in_parts(weights, grads, clip_factor, eps)

    native = functools.partial(ops.clip_grad_agc_, weights)
    in_one_call("clip_grad_agc_", native, grads, clip_factor, eps, in_parts=in_parts)
    written(grads)


def _clip_in_parts(weights: list[Tensor], grads: list[Tensor], clip_factor: float, eps: float) -> None:
    operator = "clip_grad_agc_"
    for index, grad in enumerate(grads):
        check_plain(operator, "gradients", grad, index)
        if grad.is_sparse:
            raise TypeError(f"{operator}: gradients must be strided, got {grad.layout} at index {index}")
    weights, grads = ([_lists.real_units(x) for x in tensors] for tensors in (weights, grads))
    groups = _lists.by_device(operator, grads)
    check_writable(operator, groups)
    weight_of = dict(zip(grads, weights, strict=True))
    for group in groups:
        ops.clip_grad_agc_([weight_of[grad] for grad in group], group, clip_factor, eps)
