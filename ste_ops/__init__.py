"""Native straight-through estimators, gradient clipping and weighted sampling for PyTorch."""

from ste_ops import data, functional, nn, reference, surrogate, testing
from ste_ops._library import build_info
from ste_ops._names import show_public_names as _show_public_names
from ste_ops.functional import (
    AliasTable,
    ClipResult,
    SumTree,
    bernoulli_ste,
    bitnet_activation,
    bitnet_weight,
    categorical_ste,
    ceil,
    check_deferred_errors,
    clamp,
    clip_grad_agc_,
    clip_grad_norm_,
    clip_grad_value_,
    clip_gradient_norm,
    clip_gradient_value,
    clip_grads_with_norm_,
    clip_per_sample_,
    dorefa_activation,
    dorefa_weight,
    fake_quantize,
    floor,
    fold_grad_clip_,
    get_total_norm,
    heaviside,
    lsq,
    magnitude_aware_sign,
    multinomial,
    pact,
    residual_resample,
    sign,
    sr_ste,
    stochastic_round,
    stratified_resample,
    subset_ste,
    systematic_resample,
    ternary,
    trunc,
    xnor_weight,
)
from ste_ops.functional import round as round

__version__ = "0.1.0"

# `round` is left out: a star import must not hide Python's own.
__all__ = ["__version__", "build_info", "data", "nn", "reference", "surrogate", "testing"]
__all__ += functional.__all__


def __dir__() -> list[str]:
    return sorted([*__all__, "round"])


_show_public_names("ste_ops")
