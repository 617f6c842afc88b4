"""Nested tensors, jagged ones too, are refused by name: the kernels walk over one memory with strides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ste_ops


def _with_gradient(grad: Tensor) -> Tensor:
    parameter = torch.nn.Parameter(grad.detach().clone())
    parameter.grad = grad.detach()
    return parameter


def _sgd(grad: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD([_with_gradient(grad)], lr=0.1, fused=True)


# Every public function and class of a tensor, with the argument that its error names.
CALLS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "heaviside": ("x", ste_ops.heaviside),
    "sign": ("x", ste_ops.sign),
    "ternary": ("x", ste_ops.ternary),
    "pack_bits": ("x", ste_ops.pack_bits),
    "unpack_bits": ("bits", lambda bits: ste_ops.unpack_bits(bits, 8)),
    "binary_linear": ("x", lambda x: ste_ops.binary_linear(x, torch.ones(2, 3))),
    "binary_conv1d": ("input", lambda input: ste_ops.binary_conv1d(input, torch.ones(2, 3, 1))),
    "binary_conv2d": ("input", lambda input: ste_ops.binary_conv2d(input, torch.ones(2, 3, 1, 1))),
    "round": ("x", ste_ops.round),
    "floor": ("x", ste_ops.floor),
    "ceil": ("x", ste_ops.ceil),
    "trunc": ("x", ste_ops.trunc),
    "clamp": ("x", lambda x: ste_ops.clamp(x, -1.0, 1.0)),
    "stochastic_round": ("x", ste_ops.stochastic_round),
    "fake_quantize": ("x", lambda x: ste_ops.fake_quantize(x, 0.5, 0, -4, 3)),
    "lsq": ("x", lambda x: ste_ops.lsq(x, torch.ones(1), -4, 3)),
    "lsq_plus": ("x", lambda x: ste_ops.lsq_plus(x, torch.ones(1), torch.zeros(1), -4, 3)),
    "pact": ("x", lambda x: ste_ops.pact(x, torch.ones(1), 4)),
    "dorefa_activation": ("x", lambda x: ste_ops.dorefa_activation(x, 4)),
    "dorefa_weight": ("w", lambda w: ste_ops.dorefa_weight(w, 4)),
    "xnor_weight": ("w", ste_ops.xnor_weight),
    "magnitude_aware_sign": ("w", ste_ops.magnitude_aware_sign),
    "bitnet_weight": ("w", ste_ops.bitnet_weight),
    "bitnet_activation": ("x", ste_ops.bitnet_activation),
    "sr_ste": ("w", lambda w: ste_ops.sr_ste(w, 2, 4)),
    "clip_gradient_value": ("x", lambda x: ste_ops.clip_gradient_value(x, 1.0)),
    "clip_gradient_norm": ("x", lambda x: ste_ops.clip_gradient_norm(x, 1.0)),
    "clip_grad_norm_": (r"gradients\[0\]", lambda grad: ste_ops.clip_grad_norm_([_with_gradient(grad)], 1.0)),
    "clip_grad_value_": (r"gradients\[0\]", lambda grad: ste_ops.clip_grad_value_([_with_gradient(grad)], 1.0)),
    "clip_grad_agc_": (r"gradients\[0\]", lambda grad: ste_ops.clip_grad_agc_([_with_gradient(grad)])),
    "clip_grads_with_norm_": (
        r"gradients\[0\]",
        lambda grad: ste_ops.clip_grads_with_norm_([_with_gradient(grad)], 1.0, torch.ones(())),
    ),
    "get_total_norm": (r"gradients\[0\]", lambda grad: ste_ops.get_total_norm([grad])),
    "fold_grad_clip_": (r"gradients\[0\]", lambda grad: ste_ops.fold_grad_clip_(_sgd(grad), 1.0)),
    "clip_per_sample_": (r"grad_samples\[0\]", lambda grad: ste_ops.clip_per_sample_([grad], 1.0)),
    "bernoulli_ste": ("p", ste_ops.bernoulli_ste),
    "categorical_ste": ("logits", ste_ops.categorical_ste),
    "subset_ste": ("logits", lambda logits: ste_ops.subset_ste(logits, 1)),
    "multinomial": ("weights", lambda weights: ste_ops.multinomial(weights, 1)),
    "AliasTable": ("weights", ste_ops.AliasTable),
    "SumTree": ("weights", ste_ops.SumTree),
    "systematic_resample": ("weights", lambda weights: ste_ops.systematic_resample(weights, 2)),
    "stratified_resample": ("weights", lambda weights: ste_ops.stratified_resample(weights, 2)),
    "residual_resample": ("weights", lambda weights: ste_ops.residual_resample(weights, 2)),
}
# They take no tensor of a user's.
WITHOUT = {"ClipResult", "check_deferred_errors", "sr_ste_decay_"}  # of parameters and their masks
# Where a second argument is a tensor too.
OTHERS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "binary_linear": ("weight", lambda weight: ste_ops.binary_linear(torch.ones(2, 3), weight)),
    "binary_linear, scale": (
        "scale",
        lambda scale: ste_ops.binary_linear(torch.ones(2, 3), torch.ones(2, 3), scale=scale),
    ),
    "fake_quantize": ("scale", lambda scale: ste_ops.fake_quantize(torch.ones(3), scale, 0, -4, 3)),
    "fake_quantize, zero_point": ("zero_point", lambda zero: ste_ops.fake_quantize(torch.ones(3), 0.5, zero, -4, 3)),
    "lsq": ("scale", lambda scale: ste_ops.lsq(torch.ones(3), scale, -4, 3)),
    "lsq_plus": ("offset", lambda offset: ste_ops.lsq_plus(torch.ones(3), torch.ones(1), offset, -4, 3)),
    "pact": ("alpha", lambda alpha: ste_ops.pact(torch.ones(3), alpha, 4)),
    "SumTree.update": ("weights", lambda weights: ste_ops.SumTree(torch.ones(3)).update(torch.arange(2), weights)),
}


def nested(layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own nested tensors a prototype
        return torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(4, 3)], layout=layout)


def test_every_operator_has_a_row():
    assert set(CALLS) | WITHOUT == {*ste_ops.functional.__all__, "round"}


# Torch itself takes no gradient of the older layout.
_OF_GRADIENTS = {name for name, (argument, _) in CALLS.items() if argument.startswith("gradients")} - {"get_total_norm"}


@pytest.mark.parametrize(
    ("name", "layout", "word"),
    [(name, torch.jagged, "jagged") for name in CALLS]
    + [(name, torch.strided, "nested") for name in CALLS if name not in _OF_GRADIENTS],
)
def test_a_nested_tensor_is_refused_by_name(name, layout, word):
    argument, call = CALLS[name]
    with pytest.raises(TypeError, match=rf"{name}: {argument} must be a dense tensor, got a {word} one"):
        call(nested(layout))


@pytest.mark.parametrize(("layout", "word"), [(torch.jagged, "jagged"), (torch.strided, "nested")])
@pytest.mark.parametrize("name", OTHERS)
def test_a_nested_parameter_is_refused_by_name(name, layout, word):
    argument, call = OTHERS[name]
    operator = name.split(",")[0]
    with pytest.raises(TypeError, match=rf"{operator}: {argument} must be a dense tensor, got a {word} one"):
        call(nested(layout))


def test_the_values_of_a_jagged_tensor_are_quantized():
    jagged = nested(torch.jagged)
    out = torch.nested.nested_tensor_from_jagged(ste_ops.sign(jagged.values()), jagged.offsets())
    assert torch.equal(out.values(), torch.ones(6, 3))
