"""What a quantized layer keeps for its backward: codes of its input or less, and nothing of its quantized weight.

Both are floats that autograd would save. What a learned scale has made comes again out of what its gradient needs
anyway. Else hooks put codes in the place of the input, from which it comes back bit for bit; of the weight the float
one is there, and its quantizer runs once more. Everything else about the backward stays torch's, the second order too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._torch import differentiated_around, dispatch_modes, jit_tracing, keeps_saved_tensors
from ste_ops._torch import function_of as function_of_node
from ste_ops.functional.quantize._codes import Codes, Grid, pack, whole_grid
from ste_ops.nn._again import Again
from ste_ops.nn._cells import layout_of, view
from ste_ops.nn.quantizer import Quantizer, function_of, is_as_written

Made = Callable[[], Tensor]
"""What gives a tensor of the forward once more."""

# To keep less of an input or a weight takes tens of microseconds, which so many bytes are worth; to quantize a weight
# once more takes a twentieth of a step and more, where each of its elements is used for fewer outputs.
LEAST_INPUT, LEAST_WEIGHT, LEAST_USES = 1 << 16, 1 << 17, 64
_NARROW = (torch.float16, torch.bfloat16)
# Functions as quantizers whose nodes give their results again; of others, the whole numbers that they put out, and the
# distance of these.
_LEARNED = (functional.lsq, functional.lsq_plus)
_WHOLE = {functional.sign: (-1, 1, 2), functional.heaviside: (0, 1, 1), functional.ternary: (-1, 1, 1)}


def keeps(layer: Any, x: Tensor) -> bool:
    """Whether a layer may put something else in the place of what autograd saves of its forward, and it is worth it.

    A compiler decides by itself what it keeps. Activation checkpointing drops everything, and what else has hooks,
    modes or transforms around a layer sees all of it.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(x) not in (Tensor, nn.Parameter):
        return False
    if jit_tracing() or dispatch_modes():
        return False
    weight = layer._parameters.get("weight")
    if x.numel() * x.itemsize < LEAST_INPUT and (weight is None or weight.nbytes < LEAST_WEIGHT):
        return False
    if layer._quantizer("input_quantizer") is None and layer._quantizer("weight_quantizer") is None:
        return False
    if differentiated_around() or not keeps_saved_tensors():
        return False
    return x.device.type in ("cpu", "cuda") and x.is_floating_point()


def apply(layer: Any, x: Tensor, compute: Callable[[Tensor, Tensor], Tensor], padded: bool) -> Tensor:
    """`compute` of the quantized input and weight of a layer; `padded` where it pads the input with its own numbers."""
    q = layer._quantized_input(x)
    again = _again(layer, x)
    w = layer.quantized_weight() if again is None else again.run(layer._quantizer("weight_quantizer"), layer.weight)
    of_w = None if again is None else again.quantized
    if again is None and layer._quantizes_by_quantizer and _is_worth_it(layer, w, x):
        of_w = _remade(layer._quantizer("weight_quantizer"), w)
    grid = of_q = None
    if w.requires_grad:  # the input is saved for the gradient of the weight alone
        of_q = None if padded or q.nbytes < LEAST_INPUT else _remade(layer._quantizer("input_quantizer"), q)
        grid = grid_of(layer._quantizer("input_quantizer"), x, q) if of_q is None else None
    if grid is None and of_q is None and of_w is None:
        return compute(q, w)
    if x.dtype in _NARROW and autocast_dtype(x) != x.dtype:
        grid = None  # a number that is rounded twice is another
    if not padded:  # what pads adds up gradients in the dtype of q
        q = autocast(q)
    if of_w is not None:
        w = autocast(w)
    kept = Kept(q, of_q, grid, w.shape if padded else None)
    try:
        with torch.autograd.graph.saved_tensors_hooks(_Hooks(kept, w, of_w), _unpack):
            return compute(q, w)
    finally:
        kept.close()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """In which a linear layer or a convolution would take x."""
    taken = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if taken else x.dtype


def autocast(x: Tensor) -> Tensor:
    """x as they would take it, so that what is saved is known."""
    return x.to(autocast_dtype(x))


def _again(layer: Any, x: Tensor) -> Again | None:
    """None where the weight is computed, is small beside what uses it, or is quantized by something else."""
    weight, quantizer = layer._parameters.get("weight"), layer._quantizer("weight_quantizer")
    if quantizer is None or type(weight) is not nn.Parameter or not layer._quantizes_by_quantizer:
        return None
    return Again.of(quantizer, weight) if _is_worth_it(layer, weight, x) else None


def _is_worth_it(layer: Any, weight: Tensor, x: Tensor) -> bool:
    return weight.nbytes >= LEAST_WEIGHT and layer._uses(x) >= LEAST_USES


def _remade(quantizer: Any, made: Tensor) -> Made | None:
    """What gives a tensor once more, out of what the node that made it has saved for its gradient anyway.

    Of another's quantizer nobody knows whether it changed the tensor behind the back of its node.
    """
    if isinstance(quantizer, nn.Module):
        if not isinstance(quantizer, Quantizer) or not is_as_written(quantizer) or not quantizer.enabled:
            return None
    elif function_of(quantizer) not in _LEARNED:
        return None
    again = getattr(function_of_node(made.grad_fn), "again", None)
    return None if again is None else _Remade(again, made.grad_fn)


class _Remade:
    """A node, asked for its result once more. It saves its input as the variable that it is, which may be given other
    memory meanwhile."""

    __slots__ = ("_again", "_memory", "_node")

    def __init__(self, again: Callable[[Any], Tensor], node: Any) -> None:
        self._again, self._node = again, node
        self._memory = self._addresses()

    def _addresses(self) -> list[int]:
        return [saved.data_ptr() for saved in self._node.saved_tensors]

    def __call__(self) -> Tensor:
        if self._addresses() != self._memory:
            raise RuntimeError(
                "ste_ops.nn: what a layer quantized with a learned scale was given other memory since the forward, as "
                "by an assignment to .data; the backward quantizes it once more. Assign after the backward"
            )
        return self._again(self._node)


def grid_of(quantizer: Any, x: Tensor, q: Tensor) -> Grid | None:
    """The numbers that q consists of, where that is known and q is worth it."""
    if q is x or type(q) is not Tensor or q.storage_offset() != 0 or q.nbytes < LEAST_INPUT:
        return None
    with torch.no_grad():
        if not isinstance(quantizer, nn.Module):
            whole = _WHOLE.get(function_of(quantizer))
            return None if whole is None else whole_grid(x, *whole)
        if not isinstance(quantizer, Quantizer) or not is_as_written(quantizer) or not quantizer.enabled:
            return None
        return quantizer._grid(x)


class Kept:
    """A quantized input while its layer computes, and its codes once autograd asks for it."""

    def __init__(self, q: Tensor, made: Made | None, grid: Grid | None, padded_beside: torch.Size | None) -> None:
        self._made, self._grid = made, grid
        self._shape, self._other = q.shape, padded_beside  # the shape of the weight
        self._memory, self._version = q.untyped_storage().data_ptr(), q._version
        self._q: Tensor | None = None if grid is None else q.detach()
        self._codes: Codes | None = None
        # What pads leaves a scale for all, or one of each channel, as it is.
        of_channels = grid is not None and grid.axis is not None and grid.axis % max(q.dim(), 1) == 1
        self._padded = padded_beside is not None and grid is not None and (grid.scale is None or of_channels)

    def made_of(self, tensor: Tensor, memory: int) -> Made | None:
        """What gives `tensor` once more, which holds the input or what it was padded to; None once it was changed."""
        if memory == self._memory and tensor._version != self._version:
            return None
        if self._grid is None:
            return self._made if memory == self._memory else None
        codes = self._codes_of(tensor, memory)
        return None if codes is None else codes.unpack

    def _codes_of(self, tensor: Tensor, memory: int) -> Codes | None:
        assert self._grid is not None
        if memory != self._memory:
            alike = tensor.dim() == len(self._shape) and tensor.shape[:2] == self._shape[:2]
            alike = alike and tensor.shape != self._other
            return pack(tensor.detach(), self._grid) if self._padded and alike else None
        if self._q is not None:
            self._codes, self._q = pack(self._q, self._grid), None
        return self._codes

    def close(self) -> None:
        """What torch goes on to hold of the hooks holds no tensor."""
        self._q = self._codes = self._made = None


class _View:
    """A tensor that shares the memory of another one, which is made when it is asked for."""

    __slots__ = ("_base", "_dtype", "_layout")

    def __init__(self, base: Made, tensor: Tensor) -> None:
        self._base, self._dtype = base, tensor.dtype
        self._layout = layout_of(tensor)

    def get(self) -> Tensor:
        made = self._base()
        if made.dtype is not self._dtype:
            made = made.to(self._dtype)
        return view(made, self._layout)


class _AsItIs:
    """A saved tensor of which autograd, where hooks are, does not look whether it was changed."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    def get(self) -> Tensor:
        if self._tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self._tensor.type()} {list(self._tensor.shape)}], saved by a layer of ste_ops.nn, is at version "
                f"{self._tensor._version}; expected version {self._version} instead"
            )
        return self._tensor


class _Hooks:
    """The pack hook of a layer's own operation."""

    def __init__(self, kept: Kept, w: Tensor, of_w: Made | None) -> None:
        self._kept, self._of_w = kept, of_w
        self._memory, self._version = w.untyped_storage().data_ptr(), w._version

    def __call__(self, tensor: Tensor) -> _View | _AsItIs:
        memory = tensor.untyped_storage().data_ptr()
        if memory == self._memory:
            made = self._of_w if tensor._version == self._version else None
        else:
            made = self._kept.made_of(tensor, memory)
        return _AsItIs(tensor) if made is None else _View(made, tensor)


def _unpack(kept: _View | _AsItIs) -> Tensor:
    return kept.get()
