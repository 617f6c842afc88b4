"""Each operator with its translation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ste_ops._library import ops
from ste_ops.onnx._refused import REFUSED, refusal
from ste_ops.onnx._translate import qdq, scaled, steps, uniform

TRANSLATED: dict[str, Callable[..., Any]] = {
    "heaviside": steps.heaviside,
    "heaviside_from_zero": steps.heaviside_from_zero,
    "sign": steps.sign,
    "ternary": steps.ternary,
    "binarize_held": steps.binarize_held,
    "round": steps.round,
    "floor": steps.floor,
    "ceil": steps.ceil,
    "trunc": steps.trunc,
    "clamp": steps.clamp,
    "fake_quantize": uniform.fake_quantize,
    "lsq": uniform.lsq,
    "lsq_masked": uniform.lsq_masked,
    "lsq_plus": uniform.lsq_plus,
    "lsq_plus_masked": uniform.lsq_plus_masked,
    "pact": uniform.pact,
    "dorefa_activation": uniform.dorefa_activation,
    "mean_magnitude": scaled.mean_magnitude,
    "xnor_weight": scaled.xnor_weight,
    "dorefa_weight": scaled.dorefa_weight,
    "bitnet_weight": scaled.bitnet_weight,
    "bitnet_activation": scaled.bitnet_activation,
    "sr_ste": scaled.sr_ste,
}

BY_INTEGERS: dict[str, Callable[..., Any]] = {
    "fake_quantize": qdq.fake_quantize,
    "lsq": qdq.lsq,
    "lsq_masked": qdq.lsq_masked,
    "lsq_plus": qdq.lsq_plus,
    "lsq_plus_masked": qdq.lsq_plus_masked,
    "pact": qdq.pact,
    "dorefa_activation": qdq.dorefa_activation,
}


def _refusing(operator: str) -> Callable[..., NoReturn]:
    def refuse(*arguments: Any) -> NoReturn:
        raise NotImplementedError(refusal(operator))

    refuse.__name__ = operator
    return refuse


def table(by_integers: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    refused = {operator: _refusing(operator) for operator in REFUSED}
    chosen = {**TRANSLATED, **(BY_INTEGERS if by_integers else {}), **refused}
    return {getattr(ops, operator): translate for operator, translate in chosen.items()}
