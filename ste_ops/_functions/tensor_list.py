"""What a kernel asks of a tensor list, for its fake kernel to ask too: see csrc/ops/clip/tensor_list.h."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import add, le

import torch
from torch import Tensor

from ste_ops._checks import FLOATING

_MAX_DIMS = 24  # of Strided in csrc/core/clip/strided.h


def check_list(operator: str, tensors: Sequence[Tensor], *, writes: bool) -> None:
    _require(len(tensors) > 0, f"{operator}: the list of gradients is empty")
    for index, tensor in enumerate(tensors):
        _require(
            tensor.device == tensors[0].device,
            f"{operator}: gradients of one call must be on one device, got another one at index {index}",
        )
        _require(
            tensor.layout == torch.strided,
            f"{operator}: gradients must be strided, got {tensor.layout} at index {index}",
        )
        _require(
            tensor.dtype in FLOATING,
            f"{operator}: gradients must be float64, float32, bfloat16 or float16, got {tensor.dtype} at index {index}",
        )
        _check_layout(operator, tensor, index, writes)


def check_norm_type(operator: str, p: float) -> None:
    # What torch.compile keeps as a symbol is left to the kernel, here and below: a comparison would fix its value.
    known = isinstance(p, (int, float))
    _require(
        not known or p >= 0 or p == -math.inf,
        f"{operator}: norm_type must be a non-negative number, inf or -inf, got {p}",
    )


def check_nonfinite(operator: str, value: int) -> None:
    _require(0 <= value <= 2, f"{operator}: nonfinite must be 0 (propagate), 1 (skip) or 2 (zero), got {value}")


def check_total_norm(operator: str, total_norm: Tensor, grads: Sequence[Tensor]) -> None:
    _require(total_norm.numel() == 1, f"{operator}: total_norm must have one element, got {total_norm.numel()}")
    _require(
        total_norm.dtype in (torch.float32, torch.float64),
        f"{operator}: total_norm must be float32 or float64, got {total_norm.dtype}",
    )
    _require(total_norm.device == grads[0].device, f"{operator}: total_norm must be on the gradients' device")


def check_units(operator: str, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    check_list(operator, parameters, writes=False)
    check_list(operator, grads, writes=True)
    _require(
        len(parameters) == len(grads),
        f"{operator}: parameters and gradients must be as many, got {len(parameters)} and {len(grads)}",
    )
    _require(parameters[0].device == grads[0].device, f"{operator}: parameters and gradients must be on one device")
    for index, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        _require(
            parameter.shape == grad.shape, f"{operator}: the gradient at index {index} must have its parameter's shape"
        )


def check_samples(operator: str, grad_samples: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    check_list(operator, grad_samples, writes=False)
    check_list(operator, sums, writes=True)
    _require(
        len(sums) == len(grad_samples),
        f"{operator}: sums must be as many as grad_samples, got {len(sums)} for {len(grad_samples)}",
    )
    _require(sums[0].device == grad_samples[0].device, f"{operator}: sums must be on the device of grad_samples")
    seen: set[int] = set()
    for index, (grad, total) in enumerate(zip(grad_samples, sums, strict=True)):
        _require(
            grad.dim() > 0,
            f"{operator}: grad_samples must have a dimension of samples, got a 0-d tensor at index {index}",
        )
        _require(
            grad.shape[0] == grad_samples[0].shape[0],
            f"{operator}: all grad_samples must have the same number of samples, got {grad_samples[0].shape[0]} at "
            f"index 0 and {grad.shape[0]} at index {index}",
        )
        _require(
            total.shape == grad.shape[1:] and total.dtype == grad.dtype,
            f"{operator}: the sum at index {index} must have a sample's shape and dtype",
        )
        _require(
            grad.is_contiguous() and total.is_contiguous(),
            f"{operator}: grad_samples and sums must be contiguous, got others at index {index}",
        )
        _require(id(total) not in seen, f"{operator}: sums must be different tensors, got one twice at index {index}")
        seen.add(id(total))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def _check_layout(operator: str, tensor: Tensor, index: int, writes: bool) -> None:
    sizes, strides = tensor.shape, tensor.stride()
    if not all(type(n) is int for n in (*sizes, *strides)) or tensor.numel() == 0 or tensor.is_contiguous():
        return
    _require(
        sum(size != 1 for size in sizes) <= _MAX_DIMS,
        f"{operator}: the gradient at index {index} has more than {_MAX_DIMS} dimensions that are not contiguous with "
        "each other",
    )
    _require(
        not writes or not shares_memory(sizes, strides),
        f"{operator}: the gradient at index {index} cannot be written in place, because several of its elements "
        "share memory (an expanded tensor?); clone() it first",
    )


def shares_memory(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements of a tensor may share memory: where a stride does not reach past all that smaller ones span."""
    span = 0
    for step, size in sorted(zip(strides, sizes, strict=True)):
        if size > 1 and step <= span:
            return True
        span += (size - 1) * step
    return False


def is_dense(x: Tensor) -> bool:
    """Whether its elements fill the memory from the first one to the last, in whatever order."""
    return x.is_contiguous() or (_bytes(x) == x.nbytes and not shares_memory(x.shape, x.stride()))


def sharing(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """The indices of two tensors that have a byte in common, None where each has memory of its own."""
    starts, sizes = [*map(Tensor.data_ptr, tensors)], [*map(_bytes, tensors)]
    # Spans are apart where each ends before the next begins, so the ends have the order of the starts.
    ends = sorted(map(add, starts, sizes))
    if all(map(le, ends, sorted(starts)[1:])):
        return None
    spans = sorted((start, index) for index, start in enumerate(starts))
    end = 0
    before: list[int] = []  # the tensors that may reach into the next one, and `end` is where they all end
    for start, index in spans:
        if start >= end:
            before = []
        for other in before:
            if _meet(tensors[other], tensors[index]):
                return min(other, index), max(other, index)
        if start > 0 and sizes[index] > 0:  # a meta tensor lies nowhere
            before.append(index)
            end = max(end, start + sizes[index])
    return None


def _meet(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have a byte in common, of which the first does not begin later."""
    offset = second.data_ptr() - first.data_ptr()
    if second.numel() == 0 or offset >= _bytes(first):
        return False
    if is_dense(first) and is_dense(second):
        return True
    taken = torch.zeros(max(_bytes(first), offset + _bytes(second)), dtype=torch.bool, device="cpu")
    _places(taken, first, 0).fill_(True)
    return bool(_places(taken, second, offset).any())


def _places(of_bytes: Tensor, x: Tensor, offset: int) -> Tensor:
    """The bytes of x, from an offset on."""
    size = x.element_size()
    return of_bytes.as_strided((*x.shape, size), (*(step * size for step in x.stride()), 1), offset)


def _bytes(x: Tensor) -> int:
    """From the first to the last, those between its elements included."""
    if x.is_contiguous() or x.numel() == 0:
        size: int = x.nbytes
        return size
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()
