"""Native straight-through estimators, gradient clipping and weighted sampling for PyTorch."""

__version__ = "0.1.0"

from ste_ops import data, reference, surrogate, testing
from ste_ops._library import build_info
from ste_ops.binarize import heaviside, sign, ternary
from ste_ops.clip import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from ste_ops.clip_agc import clip_grad_agc_
from ste_ops.clip_fold import fold_grad_clip_
from ste_ops.clip_gradient import clip_gradient_norm, clip_gradient_value
from ste_ops.clip_result import ClipResult
from ste_ops.clip_samples import clip_per_sample_
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
from ste_ops.sampling import AliasTable, bernoulli_ste, check_deferred_errors, multinomial

# isort: split
# The modules look the operators up in this one, so they come last.
from ste_ops import nn

__all__ = [
    "AliasTable",
    "ClipResult",
    "__version__",
    "bernoulli_ste",
    "bitnet_activation",
    "bitnet_weight",
    "build_info",
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
    "round",
    "sign",
    "sr_ste",
    "stochastic_round",
    "surrogate",
    "ternary",
    "testing",
    "trunc",
    "xnor_weight",
]
