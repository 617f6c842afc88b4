"""`dequantize_`: a quantized model on float layers again, in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations

from ste_ops.nn import _attach
from ste_ops.nn._norms import owners_of
from ste_ops.nn._quantized_class import become_float, float_class, unquantized_class
from ste_ops.nn.codes import check_set
from ste_ops.nn.layers import QuantLayer

_Model = TypeVar("_Model", bound=nn.Module)


def dequantize_(model: _Model, bake: bool = False) -> _Model:
    """Takes the quantizers off a model again, in place: the inverse of `quantize_`.

    The layers stay the same objects with the same Parameters, hooks and flags, and get back the class that they had;
    so do those that `quantize_` reached by its `also`. Quantizers that stand in no layer, as a `Sign` between two of
    them, stay: they are part of the model. With `bake` the Parameters hold the quantized weights afterwards, which are
    what the layers computed with, rounded as they were; the quantizers of inputs are gone either way.

    Args:
        model: any module, also a layer itself.
        bake: True writes the quantized weights into the Parameters; default: they hold the float weights.

    Returns:
        model.

    Raises:
        TypeError: model is no module, or a layer is of a class of the user's that derives from a quantized one.
        ValueError: nothing in model is quantized, or with `bake` the weights of a layer are shared with another module,
            or are computed by another parametrization too; or `fold_batch_norm_` put a norm into the output of a layer.
            The model is then unchanged.
        RuntimeError: with `bake`, the scale of a weight is not set yet.

    Example:
        >>> import torch, ste_ops
        >>> layer = torch.nn.Linear(3, 2)
        >>> weight = layer.weight
        >>> ste_ops.nn.dequantize_(ste_ops.nn.quantize_(layer, ste_ops.nn.Sign()), bake=True)
        Linear(in_features=3, out_features=2, bias=True)
        >>> layer.weight is weight, layer.weight.detach().abs().unique()
        (True, tensor([1.]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"dequantize_: model must be a module, got {type(model).__name__}")
    found = {name: layer for name, layer in model.named_modules() if _is_quantized(layer)}
    if not found:
        raise ValueError("dequantize_: model must have a quantized layer, got none")
    owners = owners_of(model)
    # Everything is looked at, and may fail, before anything changes.
    changes = [_change(name, layer, bake, owners) for name, layer in found.items()]
    for change in changes:
        change()
    for module in model.modules():
        module.__dict__.pop("_left_float", None)
        if isinstance(module, nn.TransformerEncoderLayer):
            _back_to_fast_path(module)
    return model


def _is_quantized(layer: nn.Module) -> bool:
    return isinstance(layer, QuantLayer) or _attach.is_attached(layer)


def _change(name: str, layer: Any, bake: bool, owners: dict[int, int]) -> Callable[[], None]:
    if not isinstance(layer, QuantLayer):
        return _detached(name, layer, bake, owners)
    if unquantized_class(float_class(layer)) is None:
        raise TypeError(
            f"dequantize_: {name!r} is of the class {float_class(layer).__name__}, which derives from a quantized one; "
            "only classes that quantize_ or from_float made have a float class"
        )
    if layer._folded:
        raise ValueError(
            f"dequantize_: a norm was folded into the output of {name!r}, for which a float layer has no place; call "
            "dequantize_ before fold_batch_norm_"
        )
    weight = None
    if bake and layer._quantizer("weight_quantizer") is not None:
        check_set(f"dequantize_: {name!r}", layer.weight_quantizer)
        _check_own(name, layer, "weight", owners)
        weight = _no_graph(layer.quantized_weight)

    def change() -> None:
        if weight is not None:
            _write(layer.weight, weight)
        for key in ("weight_quantizer", "input_quantizer"):
            layer._modules.pop(key, None)
            layer.__dict__.pop(key, None)
        layer.__dict__.pop("_sign_input", None)
        become_float(layer)

    return change


def _detached(name: str, layer: nn.Module, bake: bool, owners: dict[int, int]) -> Callable[[], None]:
    """Of a module that `also` named."""
    weights: dict[str, Tensor] = {}
    for key, quantizer in _attach.weight_quantizers(layer).items() if bake else ():
        check_set(f"dequantize_: {name!r}", quantizer)
        held = _attach.parametrizations(layer)[key]
        if len(held) > 1 or not hasattr(held, "original"):
            raise ValueError(
                f"dequantize_: {name}.{key} is parametrized otherwise too, so nothing can be baked into it"
            )
        _check_own(name, held, "original", owners)
        weights[key] = _no_graph(partial(getattr, layer, key))

    def change() -> None:
        restored = []
        for key in _attach.weight_quantizers(layer):
            held = _attach.parametrizations(layer)[key]
            if key in weights:
                _write(held.original, weights[key])
            if len(held) == 1:
                remove_parametrizations(layer, key, leave_parametrized=False)
                restored.append(key)
            else:
                for place in reversed([i for i, p in enumerate(held) if isinstance(p, _attach.QuantizedWeight)]):
                    del held[place]
        # Torch puts them behind the biases, and an optimizer's state knows parameters by their order.
        for key in [key for key in layer._parameters if key not in restored] if restored else ():
            layer._parameters[key] = layer._parameters.pop(key)
        _attach.detach_input(layer)

    return change


def _check_own(name: str, holder: nn.Module, key: str, owners: dict[int, int]) -> None:
    parameter = holder._parameters.get(key)
    if parameter is None:
        raise ValueError(f"dequantize_: the weight of {name!r} is computed, so nothing can be baked into it")
    if owners[id(parameter)] > 1:
        raise ValueError(
            f"dequantize_: the weight of {name!r} is another module's too, which would get the quantized one; "
            "bake=False, or give the layer a copy"
        )


@torch.no_grad()
def _no_graph(computed: Callable[[], Tensor]) -> Tensor:
    return computed().detach()


@torch.no_grad()
def _write(parameter: Tensor, weight: Tensor) -> None:
    parameter.copy_(weight)


def _back_to_fast_path(encoder: nn.TransformerEncoderLayer) -> None:
    """Undoes what `quantize_` set, once nothing within is quantized."""
    if any(_is_quantized(module) for module in encoder.modules()):
        return
    activation: Any = encoder.activation
    if activation is nn.functional.relu or isinstance(activation, nn.ReLU):
        encoder.activation_relu_or_gelu = 1
    elif activation is nn.functional.gelu or isinstance(activation, nn.GELU):
        encoder.activation_relu_or_gelu = 2
