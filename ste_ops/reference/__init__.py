"""The pure-Python reference of every operator: slow, obvious, and what decides NaN, zeros, bounds and ties.

The same names and signatures as `ste_ops`, in plain torch operations.
"""

from ste_ops.reference.binarize import heaviside, sign, ternary
from ste_ops.reference.clip import (
    clip_grad_agc_,
    clip_grad_norm_,
    clip_grad_value_,
    clip_gradient_norm,
    clip_gradient_value,
    clip_grads_with_norm_,
    clip_per_sample_,
    get_total_norm,
)
from ste_ops.reference.quantize import (
    bitnet_activation,
    bitnet_weight,
    ceil,
    clamp,
    dorefa_activation,
    dorefa_weight,
    fake_quantize,
    floor,
    lsq,
    magnitude_aware_sign,
    pact,
    round,
    sr_ste,
    stochastic_round,
    trunc,
    xnor_weight,
)
from ste_ops.reference.sampling import AliasTable, bernoulli_ste, categorical_ste, multinomial, subset_ste

__all__ = [
    "AliasTable",
    "bernoulli_ste",
    "bitnet_activation",
    "bitnet_weight",
    "categorical_ste",
    "ceil",
    "clamp",
    "clip_grad_agc_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_gradient_norm",
    "clip_gradient_value",
    "clip_grads_with_norm_",
    "clip_per_sample_",
    "dorefa_activation",
    "dorefa_weight",
    "fake_quantize",
    "floor",
    "get_total_norm",
    "heaviside",
    "lsq",
    "magnitude_aware_sign",
    "multinomial",
    "pact",
    "round",
    "sign",
    "sr_ste",
    "stochastic_round",
    "subset_ste",
    "ternary",
    "trunc",
    "xnor_weight",
]
