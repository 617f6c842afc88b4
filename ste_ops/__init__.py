"""Native straight-through estimators, gradient clipping and weighted sampling for PyTorch."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ste_ops import data, functional, nn, surrogate
from ste_ops._library import build_info
from ste_ops._names import show_public_names as _show_public_names
from ste_ops._patch import patch_torch
from ste_ops.functional import (
    AliasTable,
    ClipResult,
    SumTree,
    bernoulli_ste,
    binary_conv1d,
    binary_conv2d,
    binary_linear,
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
    lsq_plus,
    magnitude_aware_sign,
    multinomial,
    pack_bits,
    pact,
    residual_resample,
    sign,
    sr_ste,
    sr_ste_decay_,
    stochastic_round,
    stratified_resample,
    subset_ste,
    systematic_resample,
    ternary,
    trunc,
    unpack_bits,
    xnor_weight,
)
from ste_ops.functional import round as round

if _TYPE_CHECKING:
    from ste_ops import onnx, reference, testing

__version__ = "0.1.0"

# `round` is left out: a star import must not hide Python's own.
__all__ = ["__version__", "build_info", "data", "nn", "onnx", "patch_torch", "reference", "surrogate", "testing"]
__all__ += functional.__all__


if not _TYPE_CHECKING:  # a checker would take any name to be there

    def __getattr__(name: str) -> _Any:
        # What judges or exports the rest is loaded when it is asked for: nothing here leans on it.
        if name in ("onnx", "reference", "testing"):
            return _import_module(f"ste_ops.{name}")
        raise AttributeError(f"module 'ste_ops' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "round"])


_show_public_names("ste_ops")
