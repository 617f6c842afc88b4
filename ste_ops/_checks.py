"""What the operators ask of their arguments. Each error names operator, argument, what was expected and what came."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from ste_ops._dtensor import check_mesh, is_dtensor

FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
COMPLEX = frozenset({torch.complex64, torch.complex128})
INTEGER = frozenset(
    {torch.bool, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
MOST = 2**40  # draws, and elements of what is counted

NonFinite = Literal["propagate", "skip", "zero"]
_NONFINITE: dict[str, int] = {"propagate": 0, "skip": 1, "zero": 2}  # as csrc/core/clip/norm.h numbers them


def is_integer(value: Any) -> bool:
    """An int, or one of NumPy or of a graph; a bool is none. (The Python types come first: they are found faster.)"""
    return isinstance(value, (int, torch.SymInt, Integral)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, Real)) and not isinstance(value, bool)


def check_tensor(operator: str, argument: str, x: Tensor) -> bool:
    """Refuses what is no floating tensor; True of a proxy of torch.fx, which stands for one while a graph is made."""
    if not isinstance(x, Tensor):
        if isinstance(x, torch.fx.Proxy):
            return True
        raise TypeError(f"{operator}: {argument} must be a tensor, got {type(x).__name__}")
    if x.is_nested:
        refuse_nested(operator, argument, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"{operator}: {argument} must be float64, float32, bfloat16 or float16, got {x.dtype}")
    return False


def refuse_nested(operator: str, argument: str, x: Tensor) -> NoReturn:
    layout = "a jagged" if x.layout == torch.jagged else "a nested"
    raise TypeError(
        f"{operator}: {argument} must be a dense tensor, got {layout} one; its values() are dense, and "
        "torch.nested.nested_tensor_from_jagged makes a jagged tensor of the result"
    )


def check_plain(operator: str, argument: str, x: Tensor, index: int | None = None) -> None:
    """Neither nested nor a DTensor: for what looks at all elements of one memory."""
    argument = argument if index is None else f"{argument}[{index}]"
    if x.is_nested:
        refuse_nested(operator, argument, x)
    if is_dtensor(x):
        raise TypeError(
            f"{operator}: {argument} must be a plain tensor, got a DTensor; full_tensor() gathers it, and "
            "to_local() is this rank's own part"
        )


def checked_bits(operator: str, bits: int, least: int = 1) -> int:
    """Up to 24, the bits of float32's significand: beyond them float32 arithmetic has no level for each integer."""
    if not is_integer(bits):
        raise TypeError(f"{operator}: bits must be an integer, got {bits!r}")
    if not least <= bits <= 24:
        raise ValueError(f"{operator}: bits must be in [{least}, 24], got {bits}")
    return int(bits)


# Where a number is taken, a floating tensor of one element is too. What learns or changes at every step is read on its
# device: the fields of the surrogates and the threshold of ternary. Every other number is read here, once, when it is
# given, and on a GPU the host waits for it; under torch.compile it is given as a number. A tensor that requires a
# gradient is refused where it would get none. Bits, axes and counts, which decide shapes, are integers.


def held_number(operator: str, name: str, value: Any) -> Any:
    """The number that a tensor holds; anything else as it is, for the check to say what was expected."""
    if not isinstance(value, Tensor):
        return value
    check_held(operator, name, value)
    if value.is_meta:
        raise ValueError(f"{operator}: {name} must hold a number, got a meta tensor")
    return value.item()


def check_held(operator: str, name: str, value: Tensor) -> None:
    """A number that a tensor of one element holds, and that gets no gradient."""
    if value.numel() != 1 or value.dtype not in FLOATING:
        got = f"{value.dtype} of shape {tuple(value.shape)}"
        raise ValueError(f"{operator}: {name} must be a number or a floating tensor of one element, got {got}")
    if value.requires_grad:
        raise ValueError(f"{operator}: {name} must require no gradient, which it cannot get; detach it")


def check_int(operator: str, name: str, value: int) -> None:
    if not is_integer(value):
        raise TypeError(f"{operator}: {name} must be an int, got {value!r}")


def check_number(operator: str, name: str, value: Any) -> float:
    number: float = value if is_number(value) else held_number(operator, name, value)
    if not is_number(number):
        raise TypeError(f"{operator}: {name} must be a number, got {value!r}")
    if number != number:  # math.isnan takes no number that torch.compile keeps as a symbol
        raise ValueError(f"{operator}: {name} must not be NaN")
    return number


def checked_finite(operator: str, name: str, value: float | Tensor, zero: bool = False) -> float:
    """A finite number above 0, or from 0 on if `zero`; found by comparisons, which torch.compile takes of a number."""
    if not is_number(value):
        value = held_number(operator, name, value)
    if not is_number(value) or not (value >= 0 if zero else value > 0) or not value < math.inf:
        raise ValueError(f"{operator}: {name} must be a finite number {'>=' if zero else '>'} 0, got {value!r}")
    return float(value)


def checked_at_zero(operator: str, value: int) -> int:
    if not is_integer(value) or value not in (0, 1):
        raise ValueError(f"{operator}: at_zero must be 0 or 1, got {value!r}")
    return int(value)


def checked_integer(operator: str, name: str, value: int, least: int) -> int:
    if not is_integer(value) or value < least:
        raise ValueError(f"{operator}: {name} must be an integer >= {least}, got {value!r}")
    return int(value)


def checked_width(operator: str, bits: int, least: int = 1, hint: str = "") -> int:
    """The bits of a module, in the range of `checked_bits`; `hint` says what may be meant by too few."""
    if not is_integer(bits) or bits < least:
        raise ValueError(f"{operator}: bits must be an integer >= {least}, got {bits!r}{hint}")
    if bits > 24:
        raise ValueError(
            f"{operator}: bits must be at most 24, the bits of float32's significand, beyond which there is no level "
            f"for each integer; got {bits!r}"
        )
    return int(bits)


def check_range(operator: str, quant_min: int, quant_max: int) -> None:
    check_int(operator, "quant_min", quant_min)
    check_int(operator, "quant_max", quant_max)
    if quant_min >= quant_max:
        raise ValueError(f"{operator}: quant_min must be less than quant_max, got {quant_min} and {quant_max}")


def check_axis(operator: str, x: Tensor, axis: int | None) -> int:
    """The axis counted from the front; -1 for None, which is the whole tensor."""
    if axis is None:
        return -1
    check_int(operator, "axis", axis)
    if not -x.dim() <= axis < x.dim():
        expected = f"in [{-x.dim()}, {x.dim() - 1}]" if x.dim() else "None for a 0-d tensor"
        raise IndexError(f"{operator}: axis must be {expected}, got {axis}")
    return axis % x.dim()


def check_parameter(operator: str, name: str, value: Tensor, x: Tensor, axis: int) -> None:
    """A tensor of one element, or of one for each coordinate along the axis."""
    channels = 1 if axis < 0 else x.shape[axis]
    if value.is_nested:
        refuse_nested(operator, name, value)
    if type(value) is not type(x) or type(x) is not Tensor:
        check_mesh(operator, name, value, x)
    # By comparisons: torch.compile does not find a symbol in a tuple.
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        expected = "one element" if axis < 0 else f"one element or {channels}, as many as x along axis {axis}"
        raise ValueError(f"{operator}: {name} must be 0-d or 1-d with {expected}, got the shape {tuple(value.shape)}")
    if value.device != x.device:
        raise ValueError(f"{operator}: {name} must be on x's device, {x.device}, got {value.device}")


def check_scale(operator: str, scale: float, dtype: torch.dtype) -> None:
    """A number that is positive, and neither too large nor too small for the arithmetic of `dtype`."""
    check_number(operator, "scale", scale)
    largest = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max
    if not 0 < scale <= largest or not 1 / scale <= largest:
        raise ValueError(f"{operator}: scale must be positive and finite, and its reciprocal too, got {scale}")


# Sampling.


def check_logits(operator: str, logits: Tensor) -> bool:
    """As `check_tensor`, and a dimension and a category."""
    if check_tensor(operator, "logits", logits):
        return True
    if logits.dim() == 0:
        raise ValueError(f"{operator}: logits must have at least one dimension, got shape ()")
    if logits.shape[-1] == 0:
        raise ValueError(f"{operator}: logits must have at least one category, got shape {tuple(logits.shape)}")
    return False


def check_tau(operator: str, tau: float | Tensor) -> float:
    if not is_number(tau):
        tau = held_number(operator, "tau", tau)
    if not is_number(tau):
        raise TypeError(f"{operator}: tau must be a number, got {type(tau).__name__}")
    if not 1e-30 <= tau <= 1e30:
        raise ValueError(f"{operator}: tau must be in [1e-30, 1e30], got {tau}")
    return float(tau)


def as_weights(operator: str, weights: Tensor, error: type[Exception]) -> Tensor:
    """Weights as the native table takes them, or the operator's error."""
    if type(weights) is not Tensor or weights.is_nested:
        if not isinstance(weights, Tensor):
            raise TypeError(f"{operator}: weights must be a tensor, got {type(weights).__name__}")
        check_plain(operator, "weights", weights)
    if not 1 <= weights.dim() <= 2:
        raise error(f"{operator}: weights must be 1-D or 2-D, got shape {tuple(weights.shape)}")
    if weights.size(-1) == 0:
        raise error(f"{operator}: weights must not be empty, got shape {tuple(weights.shape)}")
    dtype = weights.dtype
    if dtype in FLOATING:
        return weights.detach() if weights.requires_grad else weights
    if dtype in INTEGER:
        return weights.to(torch.float64)
    allowed = "float64, float32, bfloat16, float16, an integer dtype or bool"
    raise error(f"{operator}: weights must be {allowed}, got {dtype}")


def as_array_tensor(operator: str, argument: str, expected: str, given: Any) -> Tensor:
    """Numbers, a list or an array, in any memory, as a tensor; lists are read in double precision."""
    try:
        values = given
        if hasattr(given, "__array__"):
            array = np.asarray(given)
            values = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        made = torch.as_tensor(values)
        is_list_of_floats = not isinstance(values, np.ndarray) and made.is_floating_point()
        return torch.as_tensor(values, dtype=torch.float64) if is_list_of_floats else made
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{operator}: {argument} must be {expected}, got {type(given).__name__}: {error}") from None


def check_count(operator: str, name: str, value: int, least: int, error: type[Exception]) -> None:
    if not is_integer(value):
        raise TypeError(f"{operator}: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise error(f"{operator}: {name} must be >= {least}, got {value}")
    if value > MOST:
        raise error(f"{operator}: {name} must be at most 2**40, got {value}")


def refuse_invalid(operator: str, weights: Tensor, states: Tensor, error: type[Exception]) -> None:
    """Raises what a native pass found wrong with the weights; reads `states`, one number a row, on the host.

    A number above 0 says that all is well, 0 that every weight is zero, -1 - i that weight i is the first invalid one.
    """
    if int(states if states.dim() == 0 else states.amin() if states.numel() else 1) > 0:
        return
    rows = states.reshape(-1)
    row = int((rows <= 0).to(torch.int8).argmax())
    state = int(rows[row])
    if state == 0:
        where = "" if weights.dim() == 1 else f" in row {row}"
        raise error(f"{operator}: weights must have a positive sum, got only zeros{where}")
    index = -1 - state
    value = weights[index].item() if weights.dim() == 1 else weights[row, index].item()
    place = index if weights.dim() == 1 else (row, index)
    kind = "non-negative" if -float("inf") < value < 0 else "finite and non-negative"
    raise error(f"{operator}: weights must be {kind}, got {value} at index {place}")


# Clipping.


def _as_float(operator: str, argument: str, value: Any) -> float:
    """As torch takes it, a string like "inf" too."""
    number = held_number(operator, argument, value)
    try:
        return float(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{operator}: {argument} must be a number, got {value!r}") from None


def checked_number(operator: str, argument: str, value: float | Tensor) -> float:
    number = value if type(value) is float else _as_float(operator, argument, value)
    if not number >= 0:
        raise ValueError(f"{operator}: {argument} must be a non-negative number, got {value}")
    return number


def checked_norm_type(operator: str, value: float | Tensor) -> float:
    p = value if type(value) is float else _as_float(operator, "norm_type", value)
    if not (p >= 0 or p == -math.inf):
        raise ValueError(f"{operator}: norm_type must be a non-negative number, inf or -inf, got {value}")
    return p


def checked_nonfinite(nonfinite: str, error_if_nonfinite: bool) -> int:
    if nonfinite not in _NONFINITE:
        raise ValueError(f'clip_grad_norm_: nonfinite must be "propagate", "skip" or "zero", got {nonfinite!r}')
    if error_if_nonfinite and nonfinite != "propagate":
        raise ValueError(
            f"clip_grad_norm_: error_if_nonfinite raises where nonfinite={nonfinite!r} would not; ask for one"
        )
    return _NONFINITE[nonfinite]
