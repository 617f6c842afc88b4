"""Quantizers with straight-through gradients."""

from ste_ops.quantize.scaled import bitnet_activation, bitnet_weight, dorefa_weight, magnitude_aware_sign, xnor_weight
from ste_ops.quantize.sparse import sr_ste

__all__ = [
    "bitnet_activation",
    "bitnet_weight",
    "dorefa_weight",
    "magnitude_aware_sign",
    "sr_ste",
    "xnor_weight",
]
