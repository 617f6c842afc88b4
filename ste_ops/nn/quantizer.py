"""The base class of the quantizers, and the least step that a learned scale is taken as."""

from __future__ import annotations

from torch import nn

# What a learned step or bound is taken as where the optimizer pushed it lower; `eps` of torch's observers.
LEAST_STEP = 2.0**-23


class Quantizer(nn.Module):
    """Base of the quantizers here: from a tensor of any shape and strides to one of the same shape and dtype.

    What an operator does to NaN, zeros and ties, its gradient and what it keeps for the backward, is on the page of the
    operator, the function in `ste_ops` that a class names. Layers of `ste_ops.nn` take any module or function as a
    quantizer; nothing has to be derived from this class.
    """
