"""Quantizers with a step that is given, or found from the first tensor they see: `FakeQuantize` and `LSQ`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops.nn.quantizers import LEAST_STEP, Quantizer, check_integer, check_number


class _Uniform(Quantizer):
    """A scale for the tensor, or one for each channel along `axis`; set from the first tensor unless given.

    Whether it is set lies in the buffer `initialized`, so that it is saved, and found on the device without the host
    asking for it. What the host knows for itself, `_settled`, only saves the pass over x after the first forward:
    without it (a DataParallel replica loses it) the same scale comes out, more slowly.
    """

    scale: Tensor
    initialized: Tensor
    quant_min: int
    quant_max: int

    def __init__(self, bits: int, signed: bool, axis: int | None, channels: int | None, scale: Any) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(signed, bool):
            raise TypeError(f"{name}: signed must be True or False, got {signed!r}")
        self.bits, self.signed = check_integer(name, "bits", bits, 2 if signed else 1), signed
        self.quant_min, self.quant_max = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
            raise TypeError(f"{name}: axis must be None or an integer, got {axis!r}")
        if channels is not None and axis is None:
            raise ValueError(f"{name}: channels is the size of x along axis, got channels={channels!r} without axis")
        if channels is not None:
            check_integer(name, "channels", channels, 1)
        self.axis = axis
        if scale is not None:
            self._give(scale, channels)
        else:
            # Ones, which the first forward overwrites. Without channels there are none until a layer says how many.
            self._hold(torch.ones(() if axis is None else (channels or 0,)))
        self._settled = scale is not None
        self.register_buffer("initialized", torch.tensor(self._settled))

    def _give(self, scale: Any, channels: int | None) -> None:
        name = type(self).__name__
        scale = torch.as_tensor(scale, dtype=torch.float32).detach().clone()
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise ValueError(f"{name}: scale must be finite and > 0, got {scale.tolist()}")
        shape = scale.shape if self.axis is None else (channels or scale.numel(),)
        if scale.numel() != 1 and (self.axis is None or scale.dim() != 1 or scale.shape != shape):
            expected = "one number without axis" if self.axis is None else f"one number or {shape[0]} of them"
            raise ValueError(f"{name}: scale must be {expected}, got shape {tuple(scale.shape)}")
        self._hold(scale.reshape(()) if self.axis is None else scale.expand(shape).clone())

    def _hold(self, scale: Tensor) -> None:
        raise NotImplementedError

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _fit_channels(self, weight: Tensor) -> None:
        """Takes the number of channels from a weight, where `axis` came without it; layers call this."""
        if self.axis is not None and self.scale.numel() in (0, 1):
            scale = self.scale.detach() if self.scale.numel() else self.scale.new_ones(1)
            self._hold(scale.expand(weight.shape[self.axis]).clone())

    def reset_parameters(self) -> None:
        """Forgets the scale: the next forward finds it again, as after weights were loaded that it does not fit."""
        self.initialized.fill_(False)
        self._settled = False

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        name = type(self).__name__
        # An export without Dynamo would note here what only its copies of the tensors know. With Dynamo (where torch
        # 2.11 says "exporting" in every torch.compile too) the program itself searches, in its first run.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            raise RuntimeError(f"{name}: no scale is set yet, so nothing can be exported; run one batch before")
        if self.axis is not None and self.scale.numel() == 0:
            raise RuntimeError(
                f"{name}: channels must be given with axis={self.axis}, unless it is the weight_quantizer of a layer"
            )
        for key, value in self._statistics(x.detach()).items():
            held = getattr(self, key)
            held.copy_(torch.where(self.initialized, held, value.to(held.dtype)))
        self.initialized.fill_(True)
        self._settled = True

    def _others(self, x: Tensor) -> list[int]:
        """The dimensions over which a statistic runs."""
        return [d for d in range(x.dim()) if self.axis is None or d != self.axis % x.dim()]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # Loading is the host's work anyway, so it may look.
        self._settled = not self.initialized.is_meta and bool(self.initialized)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}" + ("" if self.axis is None else f", axis={self.axis}")


class LSQ(_Uniform):
    """`ste_ops.lsq`: rounded to multiples of a learned step, its scale.

    Unless given, the step becomes ``2 * mean(abs(x)) / sqrt(quant_max)`` of the first tensor that the module sees (the
    weights, or the first batch of activations). The step is a parameter from the beginning, so an optimizer made before
    the first forward holds it; the buffer ``initialized``, kept in the `state_dict`, says whether it is set. This asks
    nothing of the host and breaks no graph; under `torch.compile` the second call compiles once more, without the
    search. Before `torch.export`, `torch.func.functional_call` or `vmap`, run one batch. So also before
    `DistributedDataParallel`, which gives every process the first one's step when it wraps the model; in `DataParallel`
    the step is found from the first device's part of the batch.

    The optimizer may push a step to 0 or below, where it means nothing. It is then taken as 2^-23 (the least, that a
    tensor of zeros starts with too), and its gradient still passes, so that it can come back.

    Args:
        bits: an integer, >= 2 if signed, else >= 1. The integers run from -2^(bits-1) to 2^(bits-1) - 1, or 0 to
            2^bits - 1.
        signed: True for weights, False for what comes from a ReLU; default True.
        axis: a step for each channel along it; default: one for the tensor.
        channels: the size of x along `axis`. A layer of `ste_ops.nn` sets it for its weights.
        scale: where the step starts, a number or one for each channel; default: found as above.
        grad_scale: multiplies the gradient of the step; default ``1 / sqrt(N * quant_max)`` for N elements a step.

    Attributes:
        scale: the step, a parameter of shape ``()`` or ``(channels,)``.
        quant_min, quant_max: the range of the integers.

    Source: LSQ (Esser et al., arXiv:1902.08153).

    Example:
        >>> import torch, ste_ops
        >>> lsq = ste_ops.nn.LSQ(bits=2)
        >>> lsq(torch.tensor([-3.0, 0.2, 0.6, 0.2])).detach()  # the step is 2 * mean = 2
        tensor([-4.,  0.,  0.,  0.])
        >>> lsq.scale.detach(), lsq.initialized
        (tensor(2.), tensor(True))
    """

    def __init__(
        self,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        channels: int | None = None,
        scale: Any = None,
        grad_scale: float | None = None,
    ) -> None:
        super().__init__(bits, signed, axis, channels, scale)
        self.grad_scale = None if grad_scale is None else check_number("LSQ", "grad_scale", grad_scale)

    def _hold(self, scale: Tensor) -> None:
        self.scale = nn.Parameter(scale.detach())

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        others, magnitude = self._others(x), x.abs().to(torch.promote_types(x.dtype, torch.float32))
        total = magnitude.sum(others) if others else magnitude
        mean = total / max(x.numel() // max(total.numel(), 1), 1)  # of an empty batch 0, not NaN
        return {"scale": (mean * (2 / math.sqrt(self.quant_max))).clamp(min=LEAST_STEP)}

    def forward(self, x: Tensor) -> Tensor:
        if not self._settled:
            self._initialize(x)
        step = functional.clamp(self.scale, LEAST_STEP, math.inf)
        return functional.lsq(x, step, self.quant_min, self.quant_max, self.axis, self.grad_scale)


class FakeQuantize(_Uniform):
    """`ste_ops.fake_quantize`: rounded to multiples of a fixed scale, and kept as floats.

    Unless given, scale and zero point come from the first tensor that the module sees: with ``signed=True`` the largest
    magnitude over ``quant_max``, with zero point 0; with ``signed=False`` the range from the minimum to the maximum, 0
    included. They stay as they are until `reset_parameters`. What is said of the first tensor at `LSQ` holds here too.

    Args:
        bits: an integer, >= 2 if signed, else >= 1; default 8. The integers run from -2^(bits-1) to 2^(bits-1) - 1,
            or 0 to 2^bits - 1.
        signed: True for weights, False for activations; default True.
        axis: a scale for each channel along it; default: one for the tensor.
        channels: the size of x along `axis`. A layer of `ste_ops.nn` sets it for its weights.
        scale: a number > 0, or one for each channel; default: found as above.
        zero_point: an integer within the range, or one for each channel; default 0. Only together with `scale`.

    Attributes:
        scale, zero_point: buffers of shape ``()`` or ``(channels,)``, float32 and int32.
        quant_min, quant_max: the range of the integers.

    Source: Jacob et al., arXiv:1712.05877; `torch.fake_quantize_per_tensor_affine`.

    Example:
        >>> import torch, ste_ops
        >>> quantize = ste_ops.nn.FakeQuantize(bits=4, scale=0.5)
        >>> quantize(torch.tensor([-9.0, 0.6, 1.3]))
        tensor([-4.0000,  0.5000,  1.5000])
        >>> quantize
        FakeQuantize(bits=4, signed=True)
    """

    zero_point: Tensor

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        axis: int | None = None,
        channels: int | None = None,
        scale: Any = None,
        zero_point: Any = 0,
    ) -> None:
        super().__init__(bits, signed, axis, channels, scale)
        zeros = torch.as_tensor(zero_point)
        if zeros.is_floating_point() or not bool(((zeros >= self.quant_min) & (zeros <= self.quant_max)).all()):
            raise ValueError(
                f"FakeQuantize: zero_point must be integers from {self.quant_min} to {self.quant_max}, "
                f"got {zero_point!r}"
            )
        if scale is None and bool(zeros.any()):
            raise ValueError(f"FakeQuantize: zero_point is given together with scale, got {zero_point!r} alone")
        if zeros.numel() != 1 and zeros.shape != self.scale.shape:
            raise ValueError(
                f"FakeQuantize: zero_point must be one integer or have the shape of scale, {tuple(self.scale.shape)}, "
                f"got {tuple(zeros.shape)}"
            )
        self.zero_point.copy_(zeros.reshape(()) if zeros.numel() == 1 else zeros)

    def _hold(self, scale: Tensor) -> None:
        held = self._buffers.get("zero_point")
        zero = held if held is not None and held.numel() == 1 else scale.new_zeros(1, dtype=torch.int32)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero.reshape(()).expand(scale.shape).clone())

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.numel() == 0:
            x = x.new_zeros([max(size, 1) for size in x.shape])
        others = self._others(x)
        low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        if self.signed:
            scale = torch.maximum(-low, high).abs() / self.quant_max
            return {"scale": scale.clamp(min=LEAST_STEP)}
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / self.quant_max).clamp(min=LEAST_STEP)
        return {"scale": scale, "zero_point": torch.round(-low / scale).clamp(0, self.quant_max)}

    def forward(self, x: Tensor) -> Tensor:
        if not self._settled:
            self._initialize(x)
        return functional.fake_quantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis)
