"""Quantizers onto equal steps: `LSQ` on a learned scale, `PACT` and `DoReFaActivation` from 0 to a bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._checks import checked_finite, checked_width
from ste_ops.functional.quantize.uniform import in_use, learned_bound, learned_step
from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn._processes import keeps_whole
from ste_ops.nn.quantizer import Quantizer, held_by, save_in_use, shapes_of_now


class LSQ(UniformQuantizer):
    """`ste_ops.lsq`: rounded to multiples of a learned step, its scale.

    Unless given, the step becomes ``2 * mean(abs(x)) / sqrt(quant_max)`` of a layer's weights when the module becomes
    their quantizer (and of what they are at their first use, so they may be initialized in between), and elsewhere of
    the first tensor that the module sees, or of the batches that `calibrate` is given. The step is a parameter from the
    beginning, 0 until then, so an optimizer made before the first forward holds it; the buffer ``initialized``, kept in
    the `state_dict`, says by 1 or 0 whether it is set. This asks nothing of the host and breaks no graph; under
    `torch.compile` the search of a first tensor stays in the graph until ``train()`` or ``eval()`` is called, where the
    host looks whether it can be left out. Before `torch.export` or `vmap`, run one batch. In `DataParallel` the step is
    found from the first device's part of the batch. Several processes would each find another step for their
    activations, and ``fully_shard`` keeps nothing that a forward writes into a parameter: there a step that is not set
    is refused, and `calibrate` sets it alike on all of them.

    A tensor that is empty, all zero or not finite sets no step: its own call takes the step of its finite elements, and
    the next tensor is the first again. A channel of zeros beside others gets the step of the whole tensor.

    The optimizer may push a step to 0 or below, where it means nothing. It is then taken as 2^-23, and its gradient
    still passes, so that it can come back. `state_dict` holds the step in use; what is deployed is read there.

    ``freeze()`` leaves the step as it is: it gets no gradient, so an optimizer passes it over, until ``unfreeze()``.
    `DistributedDataParallel` then needs ``find_unused_parameters``, as for one that is disabled (see `Quantizer`).

    Args:
        bits: an integer, >= 2 if signed, else >= 1, at most 24. The integers run from -2^(bits-1) to 2^(bits-1) - 1,
            or 0 to 2^bits - 1.
        signed: True for weights, False for what comes from a ReLU; default True.
        axis: a step for each channel along it; default: one for the tensor.
        channels: the size of x along `axis`. A layer of `ste_ops.nn` sets it for its weights.
        scale: where the step starts, a number or one for each channel; default: found as above. `reset_parameters`
            takes it again, and forgets one that was found.
        grad_scale: multiplies the gradient of the step; default ``1 / sqrt(N * quant_max)``, N being the elements that
            share a step: of the weights, where a layer of `ste_ops.nn` has it as its weight quantizer, and of one
            sample elsewhere, dimension 0 being the batch (section 2.2 of the paper). With ``axis=0`` there is no batch.
        group_size: None, or how many neighbours of an output channel of weights have a step of their own; it divides
            the weights of a channel, which are taken in row-major order. `channels` are then the groups.

    Attributes:
        scale: the step, a parameter of shape ``(1,)`` or ``(channels,)``.
        bits, signed: may be assigned; the range follows, and the scale stays until `reset_parameters`.
        quant_min, quant_max: the range of the integers.

    Source: LSQ (Esser et al., arXiv:1902.08153).

    Example:
        >>> import torch, ste_ops
        >>> lsq = ste_ops.nn.LSQ(bits=2)
        >>> lsq(torch.tensor([-3.0, 0.2, 0.6, 0.2])).detach()  # the step is 2 * mean = 2
        tensor([-4.,  0.,  0.,  0.])
        >>> lsq.scale.detach(), lsq.initialized
        (tensor([2.]), tensor([1.]))
    """

    def __init__(
        self,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        channels: int | None = None,
        scale: Any = None,
        grad_scale: float | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__(bits, signed, axis, channels, scale, group_size)
        self.grad_scale = None if grad_scale is None else checked_finite("LSQ", "grad_scale", grad_scale)

    def _hold(self, scale: Tensor) -> None:
        self.scale = nn.Parameter(scale.detach())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            save_in_use(destination, prefix + "scale", self.initialized)

    def _mean(self, x: Tensor) -> Tensor:
        others, magnitude = self._others(x), x.abs()
        return (magnitude.mean(others) if others else magnitude).reshape(-1)

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        return self._of_mean(self._mean(x))

    def _of_mean(self, mean: Tensor) -> dict[str, Tensor]:
        return {"scale": torch.where(mean == 0, mean.mean(), mean) * (2 / math.sqrt(self.quant_max))}

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        mean = self._mean(x).double()
        return {"sum": mean * (x.numel() // mean.numel()), "count": torch.full_like(mean, x.numel() // mean.numel())}

    def _of_seen(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._of_mean((seen["sum"] / seen["count"]).float())

    def _quantize(self, x: Tensor) -> Tensor:
        if not self._settled and not self._host_knows(keeps_whole(x)):
            self._initialize(x)
        scale = held_by(self, "scale")
        if self._frozen:
            scale = scale.detach()
        of_sample = not self._of_weight
        return learned_step(x, scale, self.quant_min, self.quant_max, self.axis, self.grad_scale, of_sample)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        low, high, step = self.quant_min, self.quant_max, in_use(self.scale.detach())
        found = {"scale": step, "quant_min": low, "quant_max": high, "axis": self.axis, "grad_scale": 1.0}
        return functional.lsq, found if self.group_size is None else {**found, "group_size": self.group_size}


class PACT(Quantizer):
    """`ste_ops.pact`: x clipped to [0, alpha] in 2^bits - 1 steps, with alpha learned. It stands in a ReLU's place.

    Args:
        alpha: where `alpha` starts, a finite number > 0; default 10. Above most activations is the safe side: nothing
            is clipped at first, and the paper shrinks alpha with an L2 penalty, the optimizer's ``weight_decay``. Where
            it is pushed to 0 or below, it is taken as 2^-23, in `state_dict` too, and its gradient still passes.
        bits: an integer >= 1, which must be given. The order is that of `ste_ops.pact`.

    Attributes:
        alpha: a parameter of shape ``(1,)``.

    Source: PACT (Choi et al., arXiv:1805.06085).

    Example:
        >>> import torch, ste_ops
        >>> pact = ste_ops.nn.PACT(alpha=1.5, bits=2)
        >>> y = pact(torch.tensor([-1.0, 0.4, 2.0]))
        >>> y.detach()
        tensor([0.0000, 0.5000, 1.5000])
        >>> y.sum().backward()
        >>> pact.alpha.grad  # from the one element above alpha
        tensor([1.])
    """

    def __init__(self, alpha: float = 10.0, bits: int | None = None) -> None:
        super().__init__()
        if bits is None:
            raise TypeError(f"PACT: bits must be given, as in PACT(bits=4) or PACT(10.0, 4), got alpha={alpha!r} alone")
        self.bits = checked_width("PACT", bits)
        self._given = checked_finite("PACT", "alpha", alpha)
        self.alpha = nn.Parameter(torch.full((1,), self._given))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Takes the alpha that was given, as the constructor does."""
        self.alpha.fill_(self._given)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            save_in_use(destination, prefix + "alpha")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        shapes_of_now(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _quantize(self, x: Tensor) -> Tensor:
        return learned_bound(x, held_by(self, "alpha"), self.bits)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.pact, {"alpha": in_use(self.alpha.detach()), "bits": self.bits}

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class DoReFaActivation(Quantizer):
    """`ste_ops.dorefa_activation`: x clipped to [0, 1] in 2^bits - 1 steps; the gradient passes on [0, 1].

    Args:
        bits: an integer >= 1.

    Source: DoReFa-Net (Zhou et al., arXiv:1606.06160, eq. 11).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.DoReFaActivation(bits=1)(torch.tensor([-1.0, 0.4, 0.6, 3.0]))
        tensor([0., 0., 1., 1.])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = checked_width("DoReFaActivation", bits)

    def _quantize(self, x: Tensor) -> Tensor:
        return functional.dorefa_activation(x, self.bits)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.dorefa_activation, {"bits": self.bits}

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
