"""Which quantizers make of inputs signs or steps, and of weights signs times a factor: what products count as bits."""

from __future__ import annotations

from typing import Any

from torch import nn

from ste_ops import functional
from ste_ops._torch import class_of
from ste_ops.functional.quantize._law import bound
from ste_ops.nn.binarize import Heaviside, Sign
from ste_ops.nn.quantizer import Quantizer, function_of, is_as_written
from ste_ops.nn.scaled import DoReFaWeight, MagnitudeAwareSign, XNORWeight
from ste_ops.nn.threshold import ChannelThreshold

_OF_INPUTS: set[Any] = {Sign, Heaviside, ChannelThreshold, functional.sign, functional.heaviside}
_OF_WEIGHTS: set[Any] = {Sign, XNORWeight, MagnitudeAwareSign, DoReFaWeight}
_OF_WEIGHTS |= {functional.sign, functional.xnor_weight, functional.magnitude_aware_sign, functional.dorefa_weight}


def _among(quantizer: Any, kinds: set[Any]) -> Any:
    """The class or function of a quantizer that does what it is written to do; None where it is not of these."""
    if isinstance(quantizer, nn.Module):
        kind = class_of(quantizer)
        if kind not in kinds or not isinstance(quantizer, Quantizer):
            return None
        return kind if quantizer._enabled and is_as_written(quantizer) else None
    function = function_of(quantizer)
    return function if function in kinds and not getattr(quantizer, "args", ()) else None


def _argument(quantizer: Any, name: str) -> Any:
    """None where it is not given."""
    return getattr(quantizer, name, None) if isinstance(quantizer, nn.Module) else bound(quantizer)[1].get(name)


def reads(quantizer: Any) -> tuple[bool, bool] | None:
    """How a product reads what a binary input quantizer is given: whether as steps, and whether after the quantizer.

    None of a quantizer that is not binary. A sign is what the product itself takes of a number, a step likewise.
    """
    kind = _among(quantizer, _OF_INPUTS)
    if kind is None:
        return None
    if kind is ChannelThreshold:
        return quantizer.low == 0, True
    step = kind in (Heaviside, functional.heaviside)
    return step, step and _argument(quantizer, "at_zero") == 1


def has_factor(quantizer: Any) -> bool | None:
    """Whether a weight of signs has a factor; None of what makes no signs, or a factor for each of several groups."""
    kind = _among(quantizer, _OF_WEIGHTS)
    if kind is None or _argument(quantizer, "group_size") is not None:
        return None
    if kind in (DoReFaWeight, functional.dorefa_weight) and _argument(quantizer, "bits") != 1:
        return None
    return kind not in (Sign, functional.sign)
