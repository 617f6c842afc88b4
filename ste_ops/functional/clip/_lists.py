"""The gradients of a call: asked for, checked, and divided into what one native call takes."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ste_ops._checks import COMPLEX, FLOATING, refuse_nested
from ste_ops._dtensor import has_dtensor
from ste_ops._library import ops
from ste_ops._torch import negative_view

Tensors = Tensor | Iterable[Tensor]
_T = TypeVar("_T")


# What does nothing says so.


def _warn(message: str) -> None:
    """A warning at the line that called the public function, however many calls away. In a graph it would end it."""
    if torch.compiler.is_compiling():
        return
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("ste_ops.", "torch.")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def listed(operator: str, argument: str, tensors: Tensors) -> list[Tensor]:
    """A list of what an argument holds; a warning where it is an iterator that holds nothing (any more)."""
    if isinstance(tensors, list):
        return tensors
    if isinstance(tensors, Tensor):
        return [tensors]
    unnamed = not isinstance(tensors, (torch.nn.Module, Mapping)) or isinstance(tensors, torch.nn.ParameterList)
    if not isinstance(tensors, Iterable) or not unnamed:
        raise TypeError(f"{operator}: {argument} must be a tensor or an iterable of tensors, got {_described(tensors)}")
    found = list(tensors)
    if not found and isinstance(tensors, Iterator):  # a generator, a filter, a chain: used up, as a rule
        _warn(f"`{argument}` is an empty {type(tensors).__name__}, no gradient clipping will occur.")
    return found


def gradients_of(operator: str, parameters: list[Tensor], *, of_optimizer: bool = False) -> list[Tensor]:
    """The gradients there are; a warning where there can be none, as of gradients that were given as parameters."""
    grads = []
    try:
        for parameter in parameters:  # each gradient is asked for once: the attribute is what this loop costs
            grad = parameter.grad
            if grad is not None:
                grads.append(grad)
    except AttributeError:
        raise TypeError(
            f"{operator}: parameters must be a tensor or an iterable of tensors, got {_described(parameter)}"
        ) from None
    if parameters and not grads and not any(parameter.requires_grad for parameter in parameters):
        holder = "of the optimizer" if of_optimizer else "in `parameters`"
        hint = "" if of_optimizer else " It takes the parameters, not their gradients."
        _warn(
            f"{operator}: none of the {len(parameters)} tensors {holder} has a gradient or requires one, no gradient "
            f"clipping will occur.{hint}"
        )
    return grads


def _described(value: Any) -> str:
    """What came in the place of tensors, and what may have been meant."""
    kind = type(value).__name__
    if isinstance(value, torch.nn.Module):
        return f"the module {kind}; its parameters() are an iterable"
    if isinstance(value, tuple):
        return "a tuple; named_parameters() gives tuples where parameters() gives tensors"
    if isinstance(value, (Mapping, str)):
        return f"a {kind}; the values() of a dict may be tensors, its keys are not"
    return repr(kind)


def check_gradient(operator: str, index: int, grad: Tensor) -> None:
    if not isinstance(grad, Tensor):
        raise TypeError(
            f"{operator}: tensors must be an iterable of tensors, got {type(grad).__name__} at index {index}"
        )
    if grad.is_nested:
        refuse_nested(operator, f"gradients[{index}]", grad)
    if grad.dtype not in FLOATING and grad.dtype not in COMPLEX:
        raise TypeError(
            f"{operator}: gradients must be float64, float32, bfloat16, float16, complex64 or complex128, got "
            f"{grad.dtype} at index {index}"
        )
    if grad.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"{operator}: gradients must be strided or sparse_coo, got {grad.layout} at index {index}")


def in_one_call(
    operator: str, native: Callable[..., _T], grads: list[Tensor], *arguments: Any, in_parts: Callable[[], _T]
) -> _T:
    """native(grads, *arguments), or in_parts() of a list that one native call does not take.

    Such are lists with sparse or complex gradients or DTensors and lists over several devices. What no call takes is
    named before anything is written.

    DTensors, and whatever a compiled graph holds, are asked for: an operator that is given them fails late, or for
    good. Other lists are given to the operator, which looks at every tensor anyway and writes nothing where it refuses:
    to ask a thousand for their layout and device takes 130 us in Python, their norm 190 us.
    """
    writes = native is not ops.total_norm
    if writes and torch.compiler.is_compiling() and any(grad.is_complex() for grad in grads):
        # Torch makes no functional graph of what writes the real view of a complex tensor.
        raise TypeError(f"{operator}: complex gradients are clipped outside of torch.compile's graphs")
    if has_dtensor(grads) or (torch.compiler.is_compiling() and _in_several_parts(grads)):
        return in_parts()
    try:
        return native(grads, *arguments)
    except (RuntimeError, TypeError):
        for index, grad in enumerate(grads):
            check_gradient(operator, index, grad)
        if not _in_several_parts(grads):
            raise
    return in_parts()


def as_stored(x: Tensor) -> Tensor:
    """The memory of a strided tensor as kernels take it: real, and without torch's negative and conjugate bits.

    Those bits are of views such as ``z.conj().imag``; a 2-norm, a factor and a clamp are the same on both sides of 0. A
    complex tensor becomes one of real numbers with a last dimension of 2.
    """
    if torch.compiler.is_compiling():  # a graph cannot ask for bits, and writes no complex tensor
        return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    if x.is_neg():
        x = negative_view(x)
    if x.is_complex():
        return torch.view_as_real(x.conj() if x.is_conj() else x)
    return x


def real_units(x: Tensor) -> Tensor:
    """A complex tensor as a real one with the same units; a tensor with fewer than two dimensions is one."""
    return as_stored(x.unsqueeze(0) if x.is_complex() and x.dim() < 2 else x)


def magnitudes(grads: Sequence[Tensor], p: float) -> list[Tensor]:
    """Real tensors with the p-norms of the list: in a norm a complex number counts with its magnitude."""
    real = {grad: _magnitude(grad, p) for grad in dict.fromkeys(grads)}
    return [real[grad] for grad in grads]


def _magnitude(grad: Tensor, p: float) -> Tensor:
    if not grad.is_complex():
        return grad if grad.is_sparse else as_stored(grad)
    values = grad.coalesce()._values() if grad.is_sparse else grad
    return as_stored(values) if p == 2 else values.abs()


def _in_several_parts(grads: Sequence[Tensor]) -> bool:
    compiled = torch.compiler.is_compiling()  # Dynamo takes no tensor with the negative bit
    return any(
        grad.is_sparse or grad.is_complex() or grad.device != grads[0].device or (not compiled and grad.is_neg())
        for grad in grads
    )


def by_device(operator: str, grads: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradients of each device in the order of the list: what a call of one native operator takes."""
    groups: dict[torch.device, list[Tensor]] = {}
    for index, grad in enumerate(grads):
        check_gradient(operator, index, grad)  # of a DTensor its rank's own part
        groups.setdefault(grad.device, []).append(grad if grad.is_sparse else as_stored(grad))
    return list(groups.values())


def refuse_meta_beside_others(operator: str, grads: Sequence[Tensor]) -> None:
    """For what is taken of all of them together: a meta gradient has no values to take it of."""
    for index, grad in enumerate(grads):
        if grad.is_meta and not all(other.is_meta for other in grads):
            raise ValueError(
                f"{operator}: gradients must all hold values, or none, got one on the meta device at index "
                f"{index} beside others; materialize it, or leave it out"
            )


def coalesced(grads: Iterable[Tensor]) -> list[Tensor]:
    """Dense tensors with the values of the list; those of an uncoalesced sparse gradient are a copy."""
    return [grad.coalesce()._values() if grad.is_sparse else grad for grad in dict.fromkeys(grads)]


def written(grads: Sequence[Tensor]) -> None:
    # Compiled graphs do this for every input that they mutate.
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(grads)


def check_writable(operator: str, groups: list[list[Tensor]]) -> None:
    """Runs each operator's own checks of all groups before the first one is written."""
    for group in groups:
        ops.clip_grads_with_norm_(group, torch.zeros((), device=group[0].device), math.inf)
