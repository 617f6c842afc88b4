"""Quantizers with straight-through gradients."""

from ste_ops.quantize.rounding import ceil, clamp, floor, round, stochastic_round, trunc
from ste_ops.quantize.sparse import sr_ste
from ste_ops.quantize.uniform import dorefa_activation, fake_quantize, lsq, pact

__all__ = [
    "ceil",
    "clamp",
    "dorefa_activation",
    "fake_quantize",
    "floor",
    "lsq",
    "pact",
    "round",
    "sr_ste",
    "stochastic_round",
    "trunc",
]
