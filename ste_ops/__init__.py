"""Native straight-through estimators, gradient clipping and weighted sampling for PyTorch."""

__version__ = "0.1.0"

from ste_ops import data, reference, surrogate, testing
from ste_ops._library import build_info
from ste_ops.binarize import heaviside, sign, ternary
from ste_ops.clip import (
    ClipResult,
    clip_grad_agc_,
    clip_grad_norm_,
    clip_grad_value_,
    clip_gradient_norm,
    clip_gradient_value,
    clip_grads_with_norm_,
    clip_per_sample_,
    fold_grad_clip_,
    get_total_norm,
)
from ste_ops.quantize import (
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
from ste_ops.sampling import (
    AliasTable,
    SumTree,
    bernoulli_ste,
    categorical_ste,
    check_deferred_errors,
    multinomial,
    residual_resample,
    stratified_resample,
    subset_ste,
    systematic_resample,
)

# isort: split
# The modules look the operators up in this one, so they come last.
from ste_ops import nn

__all__ = [
    "AliasTable",
    "ClipResult",
    "SumTree",
    "__version__",
    "bernoulli_ste",
    "bitnet_activation",
    "bitnet_weight",
    "build_info",
    "categorical_ste",
    "ceil",
    "check_deferred_errors",
    "clamp",
    "clip_grad_agc_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_gradient_norm",
    "clip_gradient_value",
    "clip_grads_with_norm_",
    "clip_per_sample_",
    "data",
    "dorefa_activation",
    "dorefa_weight",
    "fake_quantize",
    "floor",
    "fold_grad_clip_",
    "get_total_norm",
    "heaviside",
    "lsq",
    "magnitude_aware_sign",
    "multinomial",
    "nn",
    "pact",
    "reference",
    "residual_resample",
    "round",
    "sign",
    "sr_ste",
    "stochastic_round",
    "stratified_resample",
    "subset_ste",
    "surrogate",
    "systematic_resample",
    "ternary",
    "testing",
    "trunc",
    "xnor_weight",
]
