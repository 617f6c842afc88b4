"""Quantizers of weights and tokens whose scale is a statistic of the input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ste_ops import functional
from ste_ops._checks import checked_width
from ste_ops.nn._again import holds_tensors
from ste_ops.nn.quantizer import Quantizer, checked_group_size
from ste_ops.surrogate import Clip, Surrogate
from ste_ops.surrogate.base import check_surrogate

_DEFAULT = Clip(1.0)


class _ScaledSign(Quantizer):
    """A scaled sign and its `surrogate`, which may be assigned anew while training."""

    surrogate: Surrogate

    def __init__(self, surrogate: Surrogate = _DEFAULT, group_size: int | None = None) -> None:
        super().__init__()
        check_surrogate(type(self).__name__, surrogate)
        self.surrogate = surrogate
        self.group_size = checked_group_size(type(self).__name__, group_size)

    def _repeats(self) -> bool:
        return not holds_tensors(self.surrogate)

    def extra_repr(self) -> str:
        parts = [] if self.surrogate == _DEFAULT else [repr(self.surrogate)]
        return ", ".join(parts + ([] if self.group_size is None else [f"group_size={self.group_size}"]))


class XNORWeight(_ScaledSign):
    """`ste_ops.xnor_weight`: sign(w) times mean(abs(w)) of each output channel (dim 0); the mean is differentiated.

    Args:
        surrogate: of the sign, one of `ste_ops.surrogate`; default ``Clip(1.0)``. Another may be assigned while
            training.
        group_size: None, or how many neighbours of an output channel have a scale of their own, as in the operator.

    Source: XNOR-Net (Rastegari et al., arXiv:1603.05279).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.XNORWeight()(torch.tensor([[-1.0, 3.0], [0.5, 0.5]]))
        tensor([[-2.0000,  2.0000],
                [ 0.5000,  0.5000]])
    """

    def _quantize(self, w: Tensor) -> Tensor:
        return functional.xnor_weight(w, self.surrogate, self.group_size)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.xnor_weight, _of_groups(self)


class MagnitudeAwareSign(_ScaledSign):
    """`ste_ops.magnitude_aware_sign`: as `XNORWeight`, with the mean taken as a constant in the backward.

    Args:
        surrogate: of the sign, as in `XNORWeight`.
        group_size: None, or how many neighbours of an output channel have a scale of their own, as in the operator.

    Source: Bi-Real Net (Liu et al., arXiv:1808.00278); Larq's ``MagnitudeAwareSign``.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.MagnitudeAwareSign()(torch.tensor([[-1.0, 3.0], [0.5, 0.5]]))
        tensor([[-2.0000,  2.0000],
                [ 0.5000,  0.5000]])
    """

    def _quantize(self, w: Tensor) -> Tensor:
        return functional.magnitude_aware_sign(w, self.surrogate, self.group_size)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.magnitude_aware_sign, _of_groups(self)


class DoReFaWeight(Quantizer):
    """`ste_ops.dorefa_weight`: tanh(w) over its largest magnitude, in [-1, 1] in 2^bits - 1 steps; 1 bit: scaled signs.

    Args:
        bits: an integer >= 1.
        group_size: None, or how many neighbours of an output channel have a scale of their own, as in the operator.

    Source: DoReFa-Net (Zhou et al., arXiv:1606.06160, eq. 7 to 9).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.DoReFaWeight(bits=1)(torch.tensor([-1.0, 0.5, 3.0]))
        tensor([-1.5000,  1.5000,  1.5000])
    """

    def __init__(self, bits: int, group_size: int | None = None) -> None:
        super().__init__()
        self.bits = checked_width("DoReFaWeight", bits)
        self.group_size = checked_group_size("DoReFaWeight", group_size)

    def _quantize(self, w: Tensor) -> Tensor:
        return functional.dorefa_weight(w, self.bits, self.group_size)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.dorefa_weight, {"bits": self.bits, **_of_groups(self)}

    def _repeats(self) -> bool:
        return True

    def extra_repr(self) -> str:
        return f"bits={self.bits}" + ("" if self.group_size is None else f", group_size={self.group_size}")


class BitNetWeight(Quantizer):
    """`ste_ops.bitnet_weight`: -1, 0 or 1 times mean(abs(w)) over all of w; the gradient passes.

    Args:
        group_size: None, or how many neighbours of an output channel have a scale of their own, as in the operator.

    Source: BitNet b1.58 (Ma et al., arXiv:2402.17764).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.BitNetWeight()(torch.tensor([-4.0, 0.5, 1.5]))
        tensor([-2.,  0.,  2.])
    """

    def __init__(self, group_size: int | None = None) -> None:
        super().__init__()
        self.group_size = checked_group_size("BitNetWeight", group_size)

    def _quantize(self, w: Tensor) -> Tensor:
        return functional.bitnet_weight(w, self.group_size)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.bitnet_weight, _of_groups(self)

    def _repeats(self) -> bool:
        return True

    def extra_repr(self) -> str:
        return "" if self.group_size is None else f"group_size={self.group_size}"


def _of_groups(quantizer: Any) -> dict[str, Any]:
    return {} if quantizer.group_size is None else {"group_size": quantizer.group_size}


class BitNetActivation(Quantizer):
    """`ste_ops.bitnet_activation`: each token (the last dimension) in steps of its largest magnitude; straight through.

    Args:
        bits: an integer >= 2; default 8.

    Source: BitNet b1.58 (Ma et al., arXiv:2402.17764).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.BitNetActivation(bits=3)(torch.tensor([[3.0, -1.4], [0.3, 0.14]]))
        tensor([[ 3.0000, -1.0000],
                [ 0.3000,  0.1000]])
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = checked_width("BitNetActivation", bits, 2)

    def _quantize(self, x: Tensor) -> Tensor:
        return functional.bitnet_activation(x, self.bits)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.bitnet_activation, {"bits": self.bits}

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
