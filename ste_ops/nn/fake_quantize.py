"""`FakeQuantize`: a quantizer onto a scale that is found, and that may follow what it sees."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._checks import is_integer, is_number
from ste_ops._torch import dispatch_modes, functorch_active, jit_tracing, within_backward
from ste_ops.functional.quantize.uniform import LEAST_STEP
from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn._processes import keeps_whole
from ste_ops.nn.quantizer import as_numbers, fill, held_by, shapes_of_now


class FakeQuantize(UniformQuantizer):
    """`ste_ops.fake_quantize`: rounded to multiples of a fixed scale, and kept as floats.

    Unless given, scale and zero point come from the first tensor that the module sees: with ``signed=True`` the largest
    magnitude over ``quant_max``, with zero point 0; with ``signed=False`` the range from the minimum to the maximum, 0
    included. They stay as they are until `reset_parameters`. What is said of the first tensor at `LSQ` holds here too.
    A layer's weights that start at zero would leave the range of their first step at once, and get no gradient there:
    the scale then follows them while training, and is set by the first forward in evaluation.

    With `momentum` minimum and maximum go on as moving averages, updated by every forward in training before it
    quantizes, and scale and zero point follow from them: ``low + momentum * (min(x) - low)``, as in torch's
    `MovingAverageMinMaxObserver`, whose ``averaging_constant`` it is. The first tensor is taken as it is; one that is
    empty or holds a NaN or an infinity is left out. In evaluation nothing moves. A forward that runs within a backward
    updates nothing, so activation checkpointing counts a batch once. `DistributedDataParallel` gives every process the
    first one's averages before each forward, as with batch normalization (``broadcast_buffers``, its default);
    ``fully_shard`` leaves buffers alone, and ``dist.broadcast(buffer, 0)`` of each buffer does the same there.

    ``freeze()`` leaves the averages and the scale as they are, until ``unfreeze()``. Of one that is disabled (`disable`
    at `Quantizer`) they go on to follow x, for a delayed start.

    Args:
        bits: an integer, >= 2 if signed, else >= 1, at most 24; default 8. The integers run from -2^(bits-1) to
            2^(bits-1) - 1, or 0 to 2^bits - 1.
        signed: True for weights, False for activations; default True.
        axis: a scale for each channel along it; default: one for the tensor.
        channels: the size of x along `axis`. A layer of `ste_ops.nn` sets it for its weights.
        scale: a number > 0, or one for each channel; default: found as above.
        zero_point: an integer within the range, or one for each channel; default 0. Only together with `scale`.
        group_size: None, or how many neighbours of an output channel of weights have a scale of their own; it divides
            the weights of a channel, which are taken in row-major order. `channels` are then the groups.
        momentum: the part of a new tensor in the moving averages, > 0 and <= 1 (torch's default is 0.01); default
            None: the scale does not move.

    Attributes:
        scale, zero_point: buffers of shape ``(1,)`` or ``(channels,)``; the zero point holds integers as floats.
        bits, signed: may be assigned; the range follows, and the scale stays until `reset_parameters`.
        quant_min, quant_max: the range of the integers.
        low, high: with `momentum` the moving averages, buffers as the scale. They start at the range of a given scale.

    Source: Jacob et al., arXiv:1712.05877; `torch.fake_quantize_per_tensor_affine`.

    Example:
        >>> import torch, ste_ops
        >>> quantize = ste_ops.nn.FakeQuantize(bits=4, scale=0.5)
        >>> quantize(torch.tensor([-9.0, 0.6, 1.3]))
        tensor([-4.0000,  0.5000,  1.5000])
        >>> quantize
        FakeQuantize(bits=4, signed=True)
        >>> follows = ste_ops.nn.FakeQuantize(bits=8, signed=False, momentum=0.1)
        >>> for largest in (255.0, 355.0):
        ...     _ = follows(torch.tensor([0.0, largest]))
        >>> follows.high
        tensor([265.])
    """

    zero_point: Tensor
    low: Tensor
    high: Tensor
    _momentum: float | None = None

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        axis: int | None = None,
        channels: int | None = None,
        scale: Any = None,
        zero_point: Any = 0,
        group_size: int | None = None,
        momentum: float | None = None,
    ) -> None:
        if momentum is not None and not (is_number(momentum) and 0 < momentum <= 1):
            raise ValueError(f"FakeQuantize: momentum must be None or a number > 0 and <= 1, got {momentum!r}")
        self._momentum = None if momentum is None else float(momentum)
        super().__init__(bits, signed, axis, channels, scale, group_size)
        zeros, shape = as_numbers(zero_point)
        if not all(is_integer(zero) and self.quant_min <= zero <= self.quant_max for zero in zeros):
            raise ValueError(
                f"FakeQuantize: zero_point must be integers from {self.quant_min} to {self.quant_max}, "
                f"got {zero_point!r}"
            )
        if scale is None and any(zeros):
            raise ValueError(f"FakeQuantize: zero_point is given together with scale, got {zero_point!r} alone")
        if len(zeros) != 1 and shape != self.scale.shape:
            raise ValueError(
                f"FakeQuantize: zero_point must be one integer or have the shape of scale, {tuple(self.scale.shape)}, "
                f"got {shape}"
            )
        self._zeros = zeros
        self.reset_parameters()

    @property
    def momentum(self) -> float | None:
        return self._momentum

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        fill(self.zero_point, self._zeros)
        if self._momentum is not None:
            for held, value in zip((self.low, self.high), self._range_of(self.scale, self.zero_point), strict=True):
                held.copy_(value)

    def _range_of(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest that a scale holds, of zero point 0 where x is signed."""
        if self.signed:
            return -self.quant_max * scale, self.quant_max * scale
        return -zero_point * scale, (self.quant_max - zero_point) * scale

    def _fit_channels(self, weight: Tensor) -> None:
        super()._fit_channels(weight)
        self._follows = self._momentum is None

    def _hold(self, scale: Tensor) -> None:
        held = self._buffers.get("zero_point")
        zero = held if held is not None and held.numel() == 1 else scale.new_zeros(1)
        self.register_buffer("scale", scale)
        # Not of an integer dtype: averages of models would truncate it, or raise.
        self.register_buffer("zero_point", zero.reshape(1).expand(scale.shape).clone())
        if self._momentum is not None:
            low, high = self._range_of(scale, self.zero_point)
            self.register_buffer("low", low)
            self.register_buffer("high", high)

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        return self._of_seen(self._seen(x))

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        others = self._others(x)
        if self.axis is None and type(x) in (Tensor, nn.Parameter):
            low, high = torch.aminmax(x)  # one pass for both; DTensors have no rule for it
        else:
            low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        return {"min": low.reshape(-1), "max": high.reshape(-1)}

    def _of_seen(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        low, high = seen["min"], seen["max"]
        averages = {} if self._momentum is None else {"low": low, "high": high}
        empty = (low == 0) & (high == 0)
        low, high = torch.where(empty, low.amin(), low), torch.where(empty, high.amax(), high)
        if self.signed:
            return {"scale": torch.maximum(-low, high).abs() / self.quant_max, **averages}
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / self.quant_max
        zero_point = torch.round(-low / scale.clamp(min=LEAST_STEP)).clamp(0, self.quant_max)
        return {"scale": scale, "zero_point": zero_point, **averages}

    @torch.no_grad()
    def _follow(self, x: Tensor, momentum: float, known: Tensor | None) -> None:
        """Moves the averages; where the scale was not `known` before, x has set them just now."""
        if x.numel() == 0:
            return
        now = self._seen(x.detach())
        low, high = now["min"].to(self.low.dtype), now["max"].to(self.high.dtype)
        moves = low.isfinite().all() & high.isfinite().all()
        moves = moves if known is None else moves & known
        self.low.copy_(torch.where(moves, self.low + momentum * (low - self.low), self.low))
        self.high.copy_(torch.where(moves, self.high + momentum * (high - self.high), self.high))
        wide = torch.promote_types(self.low.dtype, torch.float32)  # the least scale of 16 bits is another
        found = self._of_seen({"min": self.low.to(wide), "max": self.high.to(wide)})
        self._usable(found)
        for key in ("scale", "zero_point"):
            if key in found:
                held = getattr(self, key)
                held.copy_(torch.where(moves, found[key].to(held.dtype), held))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A state without moving averages starts them at its range; one with them loads where nothing moves."""
        shapes_of_now(self, state_dict, prefix)
        scale, averages = state_dict.get(prefix + "scale"), (prefix + "low", prefix + "high")
        if self._momentum is None:
            for key in averages:
                state_dict.pop(key, None)
        elif scale is not None and averages[0] not in state_dict:
            zero_point = state_dict.get(prefix + "zero_point", torch.zeros_like(scale))
            state_dict.update(zip(averages, self._range_of(scale, zero_point.to(scale)), strict=True))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self._momentum is None else f", momentum={self._momentum}")

    @property
    def _looks_on(self) -> bool:
        return self._momentum is not None

    def _quantize(self, x: Tensor) -> Tensor:
        known = None
        if not self._settled and not self._host_knows(keeps_whole(x)):
            known = self.initialized > 0
            self._initialize(x)
        moves = self._momentum is not None and self.training and not self._frozen
        if moves and (torch.compiler.is_compiling() or not within_backward()):
            self._follow(x, self._momentum or 0.0, known)
        if not self._enabled:
            return x
        scale, zero_point = held_by(self, "scale"), _whole(held_by(self, "zero_point"))
        return functional.fake_quantize(x, scale, zero_point, self.quant_min, self.quant_max, self.axis)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        found: dict[str, Any] = {"scale": self.scale, "zero_point": _whole(self.zero_point)}
        found |= {"quant_min": self.quant_min, "quant_max": self.quant_max, "axis": self.axis}
        return functional.fake_quantize, found if self.group_size is None else {**found, "group_size": self.group_size}

    def _repeats(self) -> bool:
        return self._momentum is None and super()._repeats()


def _whole(zero_point: Tensor) -> Tensor | int:
    """The zero point in use: an integer, which is added after the rounding. An average of models may lie between them.

    A number where the host has it, which is the quickest for the operator.
    """
    plain = type(zero_point) is Tensor and zero_point.is_cpu and zero_point.numel() == 1
    if plain and not (torch.compiler.is_compiling() or dispatch_modes() or functorch_active() or jit_tracing()):
        number = zero_point.item()
        if math.isfinite(number):
            return round(number)
    return zero_point.round().int()
