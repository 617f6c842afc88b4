"""A quantized weight that is not kept for the backward: its quantizer runs once more, as it was in the forward."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._torch import without_transforms
from ste_ops.nn.quantizer import Quantizer, function_of, is_as_written
from ste_ops.surrogate import Surrogate

# What these make of a weight depends on nothing but their arguments.
_FUNCTIONS = {functional.sign, functional.heaviside, functional.ternary, functional.xnor_weight}
_FUNCTIONS |= {functional.magnitude_aware_sign, functional.dorefa_weight, functional.bitnet_weight}


class Again:
    """The quantizer of a weight as it was in the forward, and the tensors that it used.

    They are the same memory, and what changes them in place before the backward is found by their versions, as autograd
    finds it; whatever else becomes of the quantizer does not matter.
    """

    def __init__(self, quantizer: Any, weight: nn.Parameter) -> None:
        self._weight, self._requires_grad = weight.detach(), weight.requires_grad
        held: list[Tensor] = []
        self._quantizer = _copied(quantizer, held) if isinstance(quantizer, nn.Module) else quantizer
        self._versions = [(tensor, tensor._version) for tensor in (self._weight, *held)]
        self._count = 0
        self._saved: list[Tensor] | None = None

    @classmethod
    def of(cls, quantizer: Any, weight: nn.Parameter) -> Again | None:
        """None where the quantizer draws, learns of what it sees, or is not ours."""
        if weight.is_inference():
            return None
        if isinstance(quantizer, Quantizer):
            held = (*quantizer._parameters.values(), *quantizer._buffers.values())
            repeats = is_as_written(quantizer) and quantizer.enabled and not any(map(_is_inference, held))
            repeats = repeats and quantizer._repeats()
        else:
            repeats = not isinstance(quantizer, nn.Module) and _repeats(quantizer)
        return cls(quantizer, weight) if repeats else None

    def run(self, quantizer: Any, weight: nn.Parameter) -> Tensor:
        """The quantized weight, of which nothing is kept."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            quantized: Tensor = quantizer(weight)
        return quantized

    def quantized(self) -> Tensor:
        """The same once more."""
        for tensor, version in self._versions:
            if tensor._version != version:
                raise RuntimeError(
                    "ste_ops.nn: a weight or a tensor of its quantizer was changed in place between forward and "
                    f"backward, where the quantized weight is computed once more: shape {tuple(tensor.shape)}, version "
                    f"{tensor._version}, expected {version}. Step the optimizer after the backward"
                )
        saved: list[Tensor] = []
        with (
            torch.inference_mode(False),
            without_transforms(),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(saved.append, lambda none: none),
        ):
            quantized: Tensor = self._quantizer(nn.Parameter(self._weight, self._requires_grad))
        self._saved = saved
        return quantized.detach()

    def _pack(self, tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _unpack(self, index: int) -> Tensor:
        if self._saved is None:
            self.quantized()
        saved = self._saved or []
        assert len(saved) == self._count, "a quantizer saved something else the second time"
        return saved[index]


def _copied(quantizer: nn.Module, held: list[Tensor]) -> nn.Module:
    """The module with all that it is now; `held` gets the tensors that it computes with."""
    copy = quantizer.__class__.__new__(quantizer.__class__)
    vars(copy).update(vars(quantizer))
    for kind in ("_parameters", "_buffers"):
        own: dict[str, Tensor | None] = {}
        for name, tensor in vars(quantizer)[kind].items():
            own[name] = same = None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)
            if same is not None and name != "initialized":
                held.append(same)
        vars(copy)[kind] = own
    return copy


def _is_inference(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_inference()


def _repeats(quantizer: Any) -> bool:
    """Whether a function does the same once more: its arguments hold no tensor."""
    given: list[Any] = []
    function = quantizer
    while isinstance(function, functools.partial):
        given += [*function.args, *function.keywords.values()]
        function = function.func
    return function_of(quantizer) in _FUNCTIONS and not any(map(holds_tensors, given))


def holds_tensors(value: Any) -> bool:
    """Whether a number or a surrogate is, or has, a tensor that others may change."""
    if isinstance(value, Surrogate):
        return any(isinstance(getattr(value, field.name), Tensor) for field in fields(value))  # type: ignore[arg-type]
    return isinstance(value, Tensor)
