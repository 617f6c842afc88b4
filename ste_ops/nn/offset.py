"""The quantizer on equal steps whose step and offset are both learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._checks import checked_finite, is_number
from ste_ops.functional.quantize.offset import learned_offset
from ste_ops.functional.quantize.uniform import in_use
from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn._processes import keeps_whole
from ste_ops.nn.quantizer import as_numbers, fill, held_by, save_in_use


class LSQPlus(UniformQuantizer):
    """`ste_ops.lsq_plus`: rounded to multiples of a learned step, its scale, counted from a learned offset.

    For activations that are negative in part, as those of Swish, H-swish or GELU: the grid may begin where they do, so
    no level is spent on what never comes. Unless given, scale and offset are those of the first tensor that the module
    sees. Of activations the grid spans the range: ``scale = (max - min) / (quant_max - quant_min)`` and ``offset = min
    - quant_min * scale``; of numbers that are all the same, the range from 0 to them. Of a layer's weights ``scale =
    max(abs(mean - 3 std), abs(mean + 3 std)) / 2^(bits - 1)``, the variance being the mean square around the mean, and
    offset 0. What is said of the first tensor, and of a step that is pushed to 0 or below, at `LSQ` holds here too.

    Args:
        bits: an integer, >= 2 if signed, else >= 1, at most 24. The integers run from -2^(bits-1) to 2^(bits-1) - 1,
            or 0 to 2^bits - 1.
        signed: which of the two; with an offset either can hold any range. Default True.
        axis: a step and an offset for each channel along it; default: one for the tensor.
        channels: the size of x along `axis`. A layer of `ste_ops.nn` sets it for its weights.
        scale: where the step starts, a number or one for each channel; default: found as above. `reset_parameters`
            takes it again, and forgets one that was found.
        offset: where the offset starts, a number or one for each channel; default 0. Only together with `scale`.
        grad_scale: multiplies the gradients of step and offset; default ``1 / sqrt(N * quant_max)``, N being the
            elements that share them: of the weights, where a layer of `ste_ops.nn` has it as its weight quantizer, and
            of one sample elsewhere, dimension 0 being the batch. With ``axis=0`` there is no batch.

    Attributes:
        scale, offset: parameters of shape ``(1,)`` or ``(channels,)``.
        bits, signed: may be assigned; the range follows, and scale and offset stay until `reset_parameters`.
        quant_min, quant_max: the range of the integers.

    Source: LSQ+ (Bhalgat et al., arXiv:2004.09576, section 3). The paper goes on from the range of activations by
    minimizing the squared error over the first batches; here training itself does, from the first batch on. The weights
    there have no offset at all, as with ``module.offset.requires_grad_(False)`` here.

    Example:
        >>> import torch, ste_ops
        >>> quantize = ste_ops.nn.LSQPlus(bits=2, signed=False)
        >>> quantize(torch.tensor([-0.5, 0.1, 0.6, 2.5])).detach()  # steps of 1 from -0.5
        tensor([-0.5000,  0.5000,  0.5000,  2.5000])
        >>> quantize.scale.detach(), quantize.offset.detach()
        (tensor([1.]), tensor([-0.5000]))
    """

    offset: Tensor

    def __init__(
        self,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        channels: int | None = None,
        scale: Any = None,
        offset: Any = None,
        grad_scale: float | None = None,
    ) -> None:
        super().__init__(bits, signed, axis, channels, scale)
        self._offsets = [0.0]
        if offset is not None:
            self._offsets = self._checked_offset(offset, scale)
        self.grad_scale = None if grad_scale is None else checked_finite("LSQPlus", "grad_scale", grad_scale)
        self.reset_parameters()

    def _checked_offset(self, offset: Any, scale: Any) -> list[float]:
        numbers, shape = as_numbers(offset)
        if not all(is_number(number) and math.isfinite(number) for number in numbers):
            raise ValueError(f"LSQPlus: offset must be finite numbers, got {offset!r}")
        if scale is None:
            raise ValueError(f"LSQPlus: offset is given together with scale, got {offset!r} alone")
        if len(numbers) != 1 and shape != self.scale.shape:
            raise ValueError(
                f"LSQPlus: offset must be one number or have the shape of scale, {tuple(self.scale.shape)}, got {shape}"
            )
        return numbers

    def _hold(self, scale: Tensor) -> None:
        held = self._parameters.get("offset")
        offset = held.detach() if held is not None and held.numel() == 1 else scale.new_zeros(1)
        self.scale = nn.Parameter(scale.detach())
        self.offset = nn.Parameter(offset.expand(scale.shape).clone())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Takes scale and offset that were given, or forgets those that were found; see `LSQ.reset_parameters`."""
        super().reset_parameters()
        fill(self.offset, self._offsets)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            save_in_use(destination, prefix + "scale", self.initialized)

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        return self._of_seen(self._seen(x))

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        others = self._others(x)
        if self._of_weight:
            wide = x.double()
            total, squares = ((w.sum(others) if others else w).reshape(-1) for w in (wide, wide.square()))
            return {
                "sum": total,
                "squares": squares,
                "count": torch.full_like(total, x.numel() // total.numel()),
            }
        low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        return {"min": low.reshape(-1), "max": high.reshape(-1)}

    def _of_seen(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        if "sum" in seen:
            reach, whole = _reach(**seen), _reach(**{key: value.sum() for key, value in seen.items()})
            scale = (torch.where(reach == 0, whole, reach) / 2 ** (self.bits - 1)).float()
            return {"scale": scale, "offset": torch.zeros_like(scale)}
        low, high = _with_a_width(seen["min"], seen["max"])
        whole_low, whole_high = _with_a_width(seen["min"].amin(), seen["max"].amax())
        point = low == high
        low, high = torch.where(point, whole_low, low), torch.where(point, whole_high, high)
        scale = (high - low) / (self.quant_max - self.quant_min)
        return {"scale": scale, "offset": low - self.quant_min * scale}

    def _quantize(self, x: Tensor) -> Tensor:
        if not self._settled and not self._host_knows(keeps_whole(x)):
            self._initialize(x)
        scale, offset = held_by(self, "scale"), held_by(self, "offset")
        if self._frozen:
            scale, offset = scale.detach(), offset.detach()
        low, high, of_sample = self.quant_min, self.quant_max, not self._of_weight
        return learned_offset(x, scale, offset, low, high, self.axis, self.grad_scale, of_sample)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        found: dict[str, Any] = {"scale": in_use(self.scale.detach()), "offset": self.offset.detach()}
        found |= {"quant_min": self.quant_min, "quant_max": self.quant_max, "axis": self.axis, "grad_scale": 1.0}
        return functional.lsq_plus, found


def _reach(sum: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """The larger of abs(mean - 3 std) and abs(mean + 3 std)."""
    mean = sum / count
    return mean.abs() + 3 * (squares / count - mean.square()).clamp(min=0).sqrt()


def _with_a_width(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range of numbers that are all the same, with 0: none but that of zeros is a point."""
    same = low == high
    return torch.where(same, low.clamp(max=0), low), torch.where(same, high.clamp(min=0), high)
