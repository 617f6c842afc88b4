"""The scale of a uniform quantizer, which is given or found from the first tensor that the module sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._checks import checked_integer
from ste_ops.nn.quantizer import Quantizer


class UniformQuantizer(Quantizer):
    """A scale for the tensor, or one for each channel along `axis`; set from the first tensor unless given.

    Whether it is set lies in the buffer `initialized`, so that it is saved, and found on the device without the host
    asking for it. What the host knows for itself, `_settled`, only saves the pass over x after the first forward:
    without it (a DataParallel replica loses it) the same scale comes out, more slowly.
    """

    scale: Tensor
    initialized: Tensor
    quant_min: int
    quant_max: int
    # A layer's weights, which have no batch.
    _of_weight = False

    def __init__(self, bits: int, signed: bool, axis: int | None, channels: int | None, scale: Any) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(signed, bool):
            raise TypeError(f"{name}: signed must be True or False, got {signed!r}")
        self.bits, self.signed = checked_integer(name, "bits", bits, 2 if signed else 1), signed
        self.quant_min, self.quant_max = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
            raise TypeError(f"{name}: axis must be None or an integer, got {axis!r}")
        if channels is not None and axis is None:
            raise ValueError(f"{name}: channels is the size of x along axis, got channels={channels!r} without axis")
        if channels is not None:
            checked_integer(name, "channels", channels, 1)
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
        self._of_weight = True
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
