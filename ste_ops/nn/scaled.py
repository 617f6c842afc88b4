"""Quantizers of weights and tokens, which take nothing but their input."""

from __future__ import annotations

from torch import Tensor

from ste_ops import functional
from ste_ops.nn.quantizers import Quantizer, check_integer, check_number


class XNORWeight(Quantizer):
    """`ste_ops.xnor_weight`: sign(w) times mean(abs(w)) of each output channel (dim 0); the mean is differentiated.

    Source: XNOR-Net (Rastegari et al., arXiv:1603.05279).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.XNORWeight()(torch.tensor([[-1.0, 3.0], [0.5, 0.5]]))
        tensor([[-2.0000,  2.0000],
                [ 0.5000,  0.5000]])
    """

    def forward(self, w: Tensor) -> Tensor:
        return functional.xnor_weight(w)


class MagnitudeAwareSign(Quantizer):
    """`ste_ops.magnitude_aware_sign`: as `XNORWeight`, with the mean taken as a constant in the backward.

    Source: Bi-Real Net (Liu et al., arXiv:1808.00278); Larq's ``MagnitudeAwareSign``.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.MagnitudeAwareSign()(torch.tensor([[-1.0, 3.0], [0.5, 0.5]]))
        tensor([[-2.0000,  2.0000],
                [ 0.5000,  0.5000]])
    """

    def forward(self, w: Tensor) -> Tensor:
        return functional.magnitude_aware_sign(w)


class BitNetWeight(Quantizer):
    """`ste_ops.bitnet_weight`: -1, 0 or 1 times mean(abs(w)) over all of w; the gradient passes.

    Source: BitNet b1.58 (Ma et al., arXiv:2402.17764).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.BitNetWeight()(torch.tensor([-4.0, 0.5, 1.5]))
        tensor([-2.,  0.,  2.])
    """

    def forward(self, w: Tensor) -> Tensor:
        return functional.bitnet_weight(w)


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
        self.bits = check_integer("BitNetActivation", "bits", bits, 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.bitnet_activation(x, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class SRSTE(Quantizer):
    """`ste_ops.sr_ste`: the n largest of every m weights along dim 1, the others 0; those decay in the backward.

    Args:
        n: how many of a group are kept, an integer >= 1.
        m: the size of a group, an integer >= n; it divides the size of dim 1.
        decay: the strength of the pull of the pruned weights to 0, a finite number >= 0; default 2e-4.

    Source: SR-STE (Zhou et al., arXiv:2102.04010).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.SRSTE(1, 2)(torch.tensor([[-1.0, 3.0, 0.5, 0.1]]))
        tensor([[0.0000, 3.0000, 0.5000, 0.0000]])
    """

    def __init__(self, n: int = 2, m: int = 4, decay: float = 2e-4) -> None:
        super().__init__()
        self.n = check_integer("SRSTE", "n", n, 1)
        self.m = check_integer("SRSTE", "m", m, self.n)
        self.decay = check_number("SRSTE", "decay", decay, zero=True)

    def forward(self, w: Tensor) -> Tensor:
        return functional.sr_ste(w, self.n, self.m, self.decay)

    def extra_repr(self) -> str:
        return f"n={self.n}, m={self.m}, decay={self.decay}"
