"""What a quantized layer keeps for its backward: codes of its input, and nothing of its quantized weight.

Both are floats that autograd would save. Hooks put codes in the place of the one, from which it comes back bit for bit;
of the other the weight itself is there, and its quantizer runs once more. Everything else about the backward stays
torch's, the second order too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._torch import differentiated_around, dispatch_modes, jit_tracing, keeps_saved_tensors
from ste_ops.functional.quantize._codes import Codes, Grid, pack, whole_grid
from ste_ops.nn.quantizer import Quantizer, function_of

_NARROW = (torch.float16, torch.bfloat16)
# Of functions as quantizers, the whole numbers that they put out.
_WHOLE = {functional.sign: (-1, 1, 2), functional.heaviside: (0, 1, 1), functional.ternary: (-1, 1, 1)}
# What these make of a weight depends on nothing else, so that they may run again.
_REPEATED = {functional.xnor_weight, functional.magnitude_aware_sign, functional.dorefa_weight}
_REPEATED |= {functional.bitnet_weight, *_WHOLE}


def keeps(x: Tensor) -> bool:
    """Whether a layer may put something else in the place of what autograd saves of its forward.

    A compiler decides by itself what it keeps. Activation checkpointing drops everything, and what else has hooks,
    modes or transforms around a layer sees all of it.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(x) not in (Tensor, nn.Parameter):
        return False
    if jit_tracing() or dispatch_modes() or differentiated_around() or not keeps_saved_tensors():
        return False
    return x.device.type in ("cpu", "cuda") and x.is_floating_point()


def apply(layer: Any, x: Tensor, compute: Callable[[Tensor, Tensor], Tensor], padded: bool = False) -> Tensor:
    """`compute` of the quantized input and weight of a layer; `padded` where it pads the input with its own numbers."""
    q = layer._quantized_input(x)
    grid = _grid(layer.input_quantizer, x, q)
    again = Again.of(layer.weight_quantizer, layer.weight)
    w = layer.quantized_weight() if again is None else again.run()
    if grid is None and again is None:
        return compute(q, w)
    narrow, q, w = q.dtype in _NARROW, _autocast(q), _autocast(w)
    if narrow and q.dtype != x.dtype:
        grid = None  # a number that is rounded twice is another
    kept = Kept(q, grid, padded)
    with torch.autograd.graph.saved_tensors_hooks(_Hooks(kept, w, again), _unpack):
        return compute(q, w)


def _autocast(x: Tensor) -> Tensor:
    """x as a linear layer or a convolution would take it, so that what is saved is known."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _grid(quantizer: Any, x: Tensor, q: Tensor) -> Grid | None:
    """The numbers that q consists of, where that is known."""
    if q is x or type(q) is not Tensor or q.storage_offset() != 0:
        return None
    with torch.no_grad():
        if not isinstance(quantizer, nn.Module):
            whole = _WHOLE.get(function_of(quantizer))
            return None if whole is None else whole_grid(x, *whole)
        if not isinstance(quantizer, Quantizer) or not _own_class(quantizer) or not quantizer.enabled:
            return None
        return quantizer._grid(x)


def _own_class(quantizer: nn.Module) -> bool:
    """Whether what it does is what its class here does: neither a subclass of it nor hooks change that."""
    hooked = quantizer._forward_hooks or quantizer._forward_pre_hooks
    return type(quantizer).__module__.split(".")[0] == __name__.split(".")[0] and not hooked


class Again:
    """A quantized weight of which nothing is kept: the quantizer runs once more, when the backward asks for it."""

    def __init__(self, quantizer: Any, weight: Tensor) -> None:
        self._quantizer, self._weight = quantizer, weight
        held = [*quantizer.parameters(), *quantizer.buffers()] if isinstance(quantizer, nn.Module) else []
        self._versions = [(tensor, tensor._version) for tensor in (weight, *held)]
        self._count = 0
        self._saved: list[Tensor] = []
        self._quantized: Tensor | None = None

    @classmethod
    def of(cls, quantizer: Any, weight: Tensor) -> Again | None:
        """None where the quantizer draws, learns of what it sees, or is not ours; or nothing would be saved of it."""
        if quantizer is None or type(weight) is not nn.Parameter:
            return None
        if isinstance(quantizer, Quantizer):
            repeats = _own_class(quantizer) and quantizer.enabled and quantizer._repeats()
        else:
            repeats = not isinstance(quantizer, nn.Module) and function_of(quantizer) in _REPEATED
        return cls(quantizer, weight) if repeats else None

    def run(self) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            quantized: Tensor = self._quantizer(self._weight)
            return quantized

    def quantized(self) -> Tensor:
        self._repeat()
        assert self._quantized is not None
        return self._quantized

    def _pack(self, tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _unpack(self, index: int) -> Tensor:
        self._repeat()
        return self._saved[index]

    def _repeat(self) -> None:
        for tensor, version in self._versions:
            if tensor._version != version:
                raise RuntimeError(
                    "ste_ops.nn: a weight or a tensor of its quantizer was changed in place between forward and "
                    f"backward, where the quantized weight is computed once more: shape {tuple(tensor.shape)}, version "
                    f"{tensor._version}, expected {version}. Step the optimizer after the backward"
                )
        if self._quantized is not None:
            return
        saved: list[Tensor] = []
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda none: none):
            quantized = self._quantizer(self._weight.detach().requires_grad_())
        self._saved, self._quantized = saved, quantized.detach()


class Kept:
    """A quantized input, and its codes once autograd asks for it."""

    def __init__(self, q: Tensor, grid: Grid | None, padded: bool) -> None:
        self._grid, self._padded = grid, padded
        self._memory, self._shape = q.untyped_storage().data_ptr(), q.shape
        self._q: Tensor | None = q.detach()
        self._codes: Codes | None = None

    def codes_of(self, tensor: Tensor) -> Codes | None:
        """The codes from which `tensor` comes back, which holds the input or what it was padded to."""
        if self._grid is None:
            return None
        if tensor.untyped_storage().data_ptr() != self._memory:
            alike = tensor.dim() == len(self._shape) and tensor.shape[:2] == self._shape[:2]
            return pack(tensor.detach(), self._grid) if self._padded and alike else None
        if self._q is not None:
            self._codes, self._q = pack(self._q, self._grid), None
        return self._codes


class _View:
    """A tensor that shares the memory of another one, which is made when it is asked for."""

    __slots__ = ("_base", "_dtype", "_geometry")

    def __init__(self, base: Callable[[], Tensor], tensor: Tensor) -> None:
        self._base, self._dtype = base, tensor.dtype
        self._geometry = tensor.shape, tensor.stride(), tensor.storage_offset()

    def make(self) -> Tensor:
        return self._base().to(self._dtype).as_strided(*self._geometry)


class _Hooks:
    """The pack hook of a layer's own operation."""

    def __init__(self, kept: Kept, w: Tensor, again: Again | None) -> None:
        self._kept, self._again = kept, again
        self._weight = w.untyped_storage().data_ptr()

    def __call__(self, tensor: Tensor) -> Any:
        if self._again is not None and tensor.untyped_storage().data_ptr() == self._weight:
            return _View(self._again.quantized, tensor)
        codes = self._kept.codes_of(tensor)
        return tensor if codes is None else _View(codes.unpack, tensor)


def _unpack(kept: Any) -> Tensor:
    return kept.make() if isinstance(kept, _View) else kept
