"""Quantizers with straight-through gradients."""

from ste_ops.quantize.rounding import ceil, clamp, floor, round, stochastic_round, trunc
from ste_ops.quantize.scaled import bitnet_activation, bitnet_weight, dorefa_weight, magnitude_aware_sign, xnor_weight
from ste_ops.quantize.sparse import sr_ste
from ste_ops.quantize.uniform import dorefa_activation, fake_quantize, lsq, pact

__all__ = [
    "bitnet_activation",
    "bitnet_weight",
    "ceil",
    "clamp",
    "dorefa_activation",
    "dorefa_weight",
    "fake_quantize",
    "floor",
    "lsq",
    "magnitude_aware_sign",
    "pact",
    "round",
    "sr_ste",
    "stochastic_round",
    "trunc",
    "xnor_weight",
]
