"""The base class of the quantizers, and what those with a scale or a bound share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ste_ops._checks import checked_integer
from ste_ops._dtensor import is_dtensor
from ste_ops._fx import one_node
from ste_ops._torch import dispatch_modes, has_forward_hooks
from ste_ops.functional.quantize._codes import Grid
from ste_ops.functional.quantize._law import law_of
from ste_ops.functional.quantize.uniform import LEAST_STEP

if TYPE_CHECKING:
    from typing_extensions import Self

    from ste_ops.nn.codes import Codes


class Quantizer(nn.Module):
    """Base of the quantizers here: from a tensor of any shape and strides to one of the same shape and dtype.

    What an operator does to NaN, zeros and ties, its gradient and what it keeps for the backward, is on the page of the
    operator, the function in `ste_ops` that a class names. Layers of `ste_ops.nn` take any module or function as a
    quantizer; nothing has to be derived from this class. `torch.fx` records a
    quantizer as one node.

    ``disable()`` makes one pass its input on as it is, and ``enable()`` quantize again: a delayed start, or a look at
    the model in float. `disable_quantization` does it over a model. Each is one more graph under `torch.compile`, once.
    `LSQ`, `LSQPlus` and `FakeQuantize` keep it in their `state_dict`; the others have nothing of their settings there.
    """

    _enabled = True  # of those that were pickled before

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True  # not the class's, or its first change would be another graph

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = one_node(vars(cls)["forward"])  # type: ignore[method-assign]

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        return self._quantize(x) if self._enabled else x

    def _quantize(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: a subclass must define forward")

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        """The operator that it is now, and its settings; None where it gives no integers times a scale."""
        return None

    def _grid(self, x: Tensor) -> Grid | None:
        """The numbers of which what it made of x consists, for a layer that keeps codes of them; None: it keeps x."""
        operator = self._operator()
        if operator is None or "group_size" in operator[1]:
            return None
        law = law_of(operator[0], x, **operator[1])
        return None if law is None else law.grid(x)

    def codes(self, x: Tensor) -> Codes:
        """The integers that it rounds x to, with their scale and zero point, as `Codes`.

        Raises:
            TypeError: it does not put out integers times a scale, as `SRSTE`, or is a class of the user's.
            RuntimeError: its scale is not set yet.
            ValueError: it is disabled, or x holds a NaN.

        Example:
            >>> import torch, ste_ops
            >>> quantize = ste_ops.nn.FakeQuantize(4, signed=False, scale=0.5, zero_point=2)
            >>> codes = quantize.codes(torch.tensor([-1.0, 0.6]))
            >>> codes.values, codes.scale, codes.zero_point
            (tensor([0, 3], dtype=torch.int8), tensor(0.5000), tensor(2.))
        """
        from ste_ops.nn.codes import codes_of

        return codes_of(f"{type(self).__name__}.codes", self, x)

    def _repeats(self) -> bool:
        """Whether the next calls give the same of the same weight and change nothing, so a layer need not keep it."""
        return False

    @property
    def enabled(self) -> bool:
        return self._enabled

    def disable(self) -> Self:
        """From now on x is returned as it is, with its gradient."""
        self._enabled = False
        return self

    def enable(self) -> Self:
        """From now on x is quantized."""
        self._enabled = True
        return self


def held_by(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of the module, faster than as its attribute, which it is where something computes it."""
    for tensors in (module._parameters, module._buffers):
        held: Tensor | None = tensors.get(name)  # type: ignore[attr-defined]
        if held is not None:
            return held
    return getattr(module, name)  # type: ignore[no-any-return]


def function_of(quantizer: Any) -> Any:
    """The function within `functools.partial`."""
    while isinstance(quantizer, functools.partial):
        quantizer = quantizer.func
    return quantizer


def is_as_written(quantizer: nn.Module) -> bool:
    """Whether what it does is what its class here does: no subclass, forward of its own or hook changes that."""
    own = type(quantizer).__module__.split(".")[0] == __name__.split(".")[0]
    return own and "forward" not in vars(quantizer) and not has_forward_hooks(quantizer)


def checked_group_size(name: str, group_size: int | None) -> int | None:
    return None if group_size is None else checked_integer(name, "group_size", group_size, 1)


def as_numbers(value: Any) -> tuple[list[Any], tuple[int, ...]]:
    """The numbers of a number, a sequence, an array or a tensor, and its shape."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)):
        return [value], ()
    parts = [as_numbers(part) for part in value]
    return [number for numbers, _ in parts for number in numbers], (len(parts), *(parts[0][1] if parts else ()))


def fill(held: Tensor, numbers: list[Any]) -> None:
    """One number everywhere, which a sharded tensor takes too, or each at its place."""
    if len(set(numbers)) == 1:
        held.fill_(numbers[0])
    else:
        held.copy_(torch.tensor(numbers, device=held.device))


def shapes_of_now(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Older states hold scales and bounds of shape ``()``, a Boolean flag and an integer zero point."""
    for key, held in (*module._parameters.items(), *module._buffers.items()):
        saved = state_dict.get(prefix + key)
        if held is not None and isinstance(saved, Tensor):
            saved = saved if saved.is_floating_point() else saved.to(held.dtype)
            state_dict[prefix + key] = saved.reshape(1) if saved.dim() == 0 else saved


def _own(held: Tensor) -> Tensor:
    """A tensor, and of a DTensor this rank's part, without asking the others."""
    return held.to_local() if is_dtensor(held) else held  # type: ignore[attr-defined]


def save_in_use(destination: dict[str, Any], key: str, initialized: Tensor | None = None) -> None:
    """Puts the step or bound in use into a state where the parameter was pushed below the least one.

    Elsewhere the parameter itself stays, into which averages and loaders write. So it does a little below, where an
    average of the least steps may come to lie by rounding.
    """
    held = destination[key]
    local = _own(held)
    if type(local) is not Tensor or local.is_meta or dispatch_modes():
        return
    below = local < 0.99 * LEAST_STEP
    if initialized is not None:
        below = below & (_own(initialized) >= 1)  # what is not set is 0
    if bool(below.any()):
        destination[key] = held.clamp(min=LEAST_STEP)
