"""Reference of the quantizers."""

from ste_ops.reference.quantize.offset import lsq_plus
from ste_ops.reference.quantize.rounding import ceil, clamp, floor, stochastic_round, trunc
from ste_ops.reference.quantize.rounding import round as round
from ste_ops.reference.quantize.scaled import (
    bitnet_activation,
    bitnet_weight,
    dorefa_weight,
    magnitude_aware_sign,
    xnor_weight,
)
from ste_ops.reference.quantize.sparse import sr_ste, sr_ste_decay_
from ste_ops.reference.quantize.uniform import dorefa_activation, fake_quantize, lsq, pact

# `round` is left out: a star import must not hide Python's own.
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
    "lsq_plus",
    "magnitude_aware_sign",
    "pact",
    "sr_ste",
    "sr_ste_decay_",
    "stochastic_round",
    "trunc",
    "xnor_weight",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "round"])
