"""How a Function works on `DTensor`s: every rank on the part that it holds, and what crosses between the ranks.

A mask has one bit for each element of the memory that a rank holds, and so can be sharded by no rule of a tensor's
dimensions. Therefore the Functions never see a DTensor: each rank's part goes in, its part of the result comes out, and
the backward of both steps is the other one (docs/decisions/dtensors.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ste_ops._functions.base import memory_order
from ste_ops._functions.sharding import Sharding

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

# 2^64 over the golden ratio, odd, as a signed number: the seeds of all parts differ.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def apply(function: Any, args: tuple[Any, ...]) -> Any:
    """`function.apply(*args)` of a DTensor x; of several outputs the first is a DTensor, the others stay parts."""
    rule: Sharding | None = function.sharding
    if rule is None:
        raise NotImplementedError(
            f"{function.__name__}: its tensors must be plain under a transform of torch.func, got a DTensor; "
            "torch.autograd.grad and backward() take DTensors"
        )
    if rule.direct:
        return function._apply(*args)
    args = args if rule.complete is None else rule.complete(args)
    x = args[0]
    axis = -1 if rule.axis is None else args[rule.axis]
    last = rule.alike + rule.parameters
    per_channel = any(_is_per_channel(p, axis) for p in args[rule.alike : last])
    if rule.axis is not None and not per_channel:
        args = (*args[: rule.axis], -1, *args[rule.axis + 1 :])  # a part may have no coordinate along it
    summed = _with_sums_reduced(x.placements)
    placements = _with_whole_dims(summed, rule.whole(*args), x.dim(), axis if per_channel else -1)
    if rule.passes and placements != summed:
        return _passing(function, args, summed, placements)
    parts = list(args)
    for i in range(rule.alike):
        parts[i] = _part(args[i], placements, placements)
    for i in range(rule.alike, last):
        if args[i] is not None:
            parts[i] = _part(args[i], *_of_parameter(placements, axis if _is_per_channel(args[i], axis) else -1))
    if rule.seed is not None:
        parts[rule.seed] = _seed(parts[rule.seed], x.device_mesh, placements)
    outputs = function.apply(*parts)
    out, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    out = _Whole.apply(out, x.device_mesh, placements, x.shape, _strides(x))
    out = _moved(out, summed)
    return (out, *others) if isinstance(outputs, tuple) else out


def _passing(function: Any, args: tuple[Any, ...], summed: tuple[Placement, ...], placements: Any) -> Any:
    """The value from a gathered x, of which every rank keeps its part; the gradient stays with the parts."""
    x, *others = args
    with torch.no_grad():
        outputs = function.apply(_part(x.detach(), placements, placements), *others)
        gathered = _Whole.apply(outputs, x.device_mesh, placements, x.shape, _strides(x))
        value = gathered.redistribute(placements=summed).to_local()
    out = _Through.apply(_part(x, summed, summed), value)
    return _Whole.apply(out, x.device_mesh, summed, x.shape, _strides(x))


def _dim(placement: Placement, dims: int) -> int | None:
    """The dimension that is sharded."""
    dim = getattr(placement, "dim", None)
    return None if dim is None else dim % max(dims, 1)


def _is_per_channel(parameter: Tensor | None, axis: int) -> bool:
    return axis >= 0 and parameter is not None and parameter.numel() != 1


def _with_sums_reduced(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    from torch.distributed.tensor import Replicate

    return tuple(Replicate() if p.is_partial() else p for p in placements)


def _with_whole_dims(
    placements: tuple[Placement, ...], whole: Collection[int], dims: int, axis: int
) -> tuple[Placement, ...]:
    """The placements with those dimensions gathered; along `axis` only parts that a parameter can be cut into stay."""
    from torch.distributed.tensor import Replicate, Shard

    interleaved = {_dim(p, dims) for p in placements if type(p) is not Shard} - {None}
    gathered = {*whole, axis} if axis in interleaved else {*whole}
    return tuple(Replicate() if _dim(p, dims) in gathered else p for p in placements)


def _of_parameter(placements: tuple[Placement, ...], axis: int) -> tuple[Any, Any]:
    """Where a parameter lies beside an x of these placements, and where the gradient that a rank finds for it does."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    held, found = [], []
    for p in placements:
        along = getattr(p, "dim", None) == axis >= 0
        held.append(Shard(0) if along else Replicate())
        # Of a parameter that ranks share each finds the summand of its own elements of x.
        found.append(Shard(0) if along else Replicate() if p.is_replicate() else Partial())
    return tuple(held), tuple(found)


def _part(x: DTensor, placements: tuple[Placement, ...], of_gradient: tuple[Placement, ...]) -> Tensor:
    """The part of x that this rank holds under these placements."""
    return _Part.apply(_moved(x, placements), of_gradient)


def _moved(x: DTensor, placements: tuple[Placement, ...]) -> DTensor:
    return x if x.placements == placements else _Moved.apply(x, placements)


def _seed(seed: Tensor, mesh: Any, placements: tuple[Placement, ...]) -> Tensor:
    """The same seed for the ranks that hold copies, and for each part another one."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    at = mesh.get_coordinate()
    copied = [p.is_replicate() for p in placements]
    if any(copied):
        # The first of them says it: a sum with zeros, which compiles where a broadcast does not.
        is_first = all(place == 0 for place, copy in zip(at, copied, strict=True) if copy)
        summand = seed if is_first else torch.zeros_like(seed)
        said = DTensor.from_local(summand, mesh, [Partial() if copy else Replicate() for copy in copied])
        seed = said.redistribute(placements=[Replicate()] * mesh.ndim).to_local()
    number = 0
    for size, place, copy in zip(mesh.shape, at, copied, strict=True):
        number = number if copy else number * size + place
    step = (number * _GOLDEN + 2**63) % 2**64 - 2**63
    return seed + step if step else seed


class _Moved(torch.autograd.Function):
    """x under other placements. torch 2.11's own redistribution drops a second derivative without a word."""

    @staticmethod
    def forward(ctx: Any, x: DTensor, placements: tuple[Placement, ...]) -> DTensor:
        ctx.set_materialize_grads(False)
        ctx.placements = _with_sums_reduced(x.placements)  # the gradient of a summand is that of the sum
        return x.redistribute(placements=placements)

    @staticmethod
    def backward(ctx: Any, grad: DTensor | None) -> tuple[DTensor | None, None]:
        return (None if grad is None else _moved(grad, ctx.placements)), None


class _Part(torch.autograd.Function):
    """A rank's part of a DTensor; `of_gradient` says what the parts of the gradient are, summands for instance."""

    @staticmethod
    def forward(ctx: Any, x: DTensor, of_gradient: tuple[Placement, ...]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mesh, ctx.placements, ctx.of_gradient = x.device_mesh, x.placements, of_gradient
        ctx.shape, ctx.strides = x.shape, _strides(x)
        local: Any = x.to_local()
        # A redistribution that runs beside the host is awaited here.
        return local.wait() if hasattr(local, "wait") else local.view_as(local)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        whole = _Whole.apply(grad, ctx.mesh, ctx.of_gradient, ctx.shape, ctx.strides)
        return _moved(whole, ctx.placements), None


class _Whole(torch.autograd.Function):
    """The DTensor of a shape whose parts the ranks hold."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, mesh: Any, placements: tuple[Placement, ...], shape: Any, strides: Any) -> Any:
        from torch.distributed.tensor import DTensor

        ctx.set_materialize_grads(False)
        ctx.placements = _with_sums_reduced(placements)
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=strides)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Tensor | None, None, None, None, None]:
        return (None if grad is None else _part(grad, ctx.placements, ctx.placements)), None, None, None, None


class _Through(torch.autograd.Function):
    """`value` forward, the identity as gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return grad, None


def _strides(x: Tensor) -> tuple[int, ...]:
    """Those of a dense tensor in x's order of memory: the same on every rank, whatever its part is."""
    strides, step, order = [0] * x.dim(), 1, memory_order(x) or range(x.dim())
    for d in reversed(order):
        strides[d] = step
        step = step * torch.sym_max(x.shape[d], 1)
    return tuple(strides)
