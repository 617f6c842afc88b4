"""N:M sparsity as a module."""

from __future__ import annotations

from torch import Tensor

from ste_ops import functional
from ste_ops._checks import checked_finite, checked_integer
from ste_ops.nn.quantizer import Quantizer


class SRSTE(Quantizer):
    """`ste_ops.sr_ste`: the n largest of every m weights along dim 1, the others 0; those decay in the backward.

    Args:
        n: how many of a group are kept, an integer >= 1.
        m: the size of a group, an integer >= n; it divides the size of dim 1.
        decay: the strength of the pull of the pruned weights to 0, a finite number >= 0; default 2e-4. Each backward
            adds it, so a scaled loss divides it and accumulation multiplies it: there take 0, and `add_decay_`.

    Source: SR-STE (Zhou et al., arXiv:2102.04010).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.SRSTE(1, 2)(torch.tensor([[-1.0, 3.0, 0.5, 0.1]]))
        tensor([[0.0000, 3.0000, 0.5000, 0.0000]])
    """

    def __init__(self, n: int = 2, m: int = 4, decay: float = 2e-4) -> None:
        super().__init__()
        self.n = checked_integer("SRSTE", "n", n, 1)
        self.m = checked_integer("SRSTE", "m", m, self.n)
        self.decay = checked_finite("SRSTE", "decay", decay, zero=True)

    def _quantize(self, w: Tensor) -> Tensor:
        return functional.sr_ste(w, self.n, self.m, self.decay)

    def add_decay_(self, w: Tensor, decay: float = 2e-4) -> None:
        """`ste_ops.sr_ste_decay_` of weights that this module prunes: the decay once, before ``optimizer.step()``.

        Example:
            >>> import torch, ste_ops
            >>> sparse = ste_ops.nn.SRSTE(2, 4, decay=0)
            >>> layer = ste_ops.nn.QuantLinear(8, 3, weight_quantizer=sparse)
            >>> (layer(torch.ones(2, 8)).sum() * 65536).backward()  # as a GradScaler multiplies
            >>> _ = layer.weight.grad.div_(65536)
            >>> sparse.add_decay_(layer.weight)
        """
        if self.decay:
            raise RuntimeError(f"SRSTE: decay must be 0 for add_decay_, or it would count twice, got {self.decay}")
        functional.sr_ste_decay_(w, self.n, self.m, decay)

    def extra_repr(self) -> str:
        return f"n={self.n}, m={self.m}, decay={self.decay}"
