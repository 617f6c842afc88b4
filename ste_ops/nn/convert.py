"""`quantize_`: an existing float model on quantized layers, in place."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import nn

from ste_ops.nn.layers import QUANTIZED, Quantize, QuantLayer, become, check_float, check_quantizer, float_class

Factory = Callable[[Any], Quantize | None]
"""Takes a layer and returns its quantizer, or None to leave that side of it as it is."""

_Model = TypeVar("_Model", bound=nn.Module)


def quantize_(
    model: _Model,
    weight: nn.Module | Factory | None = None,
    input: nn.Module | Factory | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    skip: Collection[str] = (),
) -> _Model:
    """Makes the Linear, Conv1d, Conv2d and Conv3d layers of a float model quantized ones, in place.

    The layers stay the same objects with the same Parameters, hooks, parametrizations, device, dtype and flags; only
    their class changes (`QuantLinear`, ...) and the quantizers are added. An optimizer made before still moves the
    weights; the parameters of the quantizers (LSQ's steps, PACT's alphas) are new, so make it afterwards if there are
    any. Subclasses of those layers are left alone: their forward is their own. A layer that the model holds under two
    names is quantized once.

    Args:
        model: any module, also a layer itself.
        weight: a quantizer module, copied for each layer; an operator of `ste_ops`, such as `ste_ops.sign` or a
            `functools.partial` of one; or a function of the layer that returns its quantizer, ``lambda layer: LSQ(4,
            axis=0)``, and so for a function of yours ``lambda layer: mine``. None leaves the weights as they are.
        input: the same for the layers' inputs.
        filter_fn: takes a layer and its name in the model, ``"layer1.0.conv1"``, and says whether to quantize it;
            default: every one.
        skip: names of layers, or of modules with all that is in them, to be left as they are. The first and the last
            layer often are: ``skip=("conv1", "fc")``.

    Returns:
        model.

    Raises:
        TypeError: weight or input is neither a module nor a function of the layer, or a layer has a forward of its own.
        ValueError: neither is given, no layer is left to quantize, a chosen layer is quantized already, or skip names
            what the model does not hold. The model is then unchanged.

    Example:
        >>> import torch, ste_ops
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> ste_ops.nn.quantize_(model, weight=ste_ops.nn.XNORWeight(), input=ste_ops.nn.Sign(), skip=["0"])
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): QuantLinear(
            in_features=8, out_features=2, bias=True
            (weight_quantizer): XNORWeight()
            (input_quantizer): Sign(Clip(threshold=1.0))
          )
        )
    """
    if weight is None and input is None:
        raise ValueError("quantize_: weight or input must be given, got neither")
    for argument, given in (("weight", weight), ("input", input)):
        check_quantizer("quantize_", argument, given)
    chosen = _choose(model, filter_fn, skip)
    # Everything is made, and may fail, before anything changes.
    quantizers = {
        name: (_make("weight", weight, layer), _make("input", input, layer)) for name, layer in chosen.items()
    }
    for name, layer in chosen.items():
        become(layer, QUANTIZED[float_class(layer)])
        quantized: Any = layer
        quantized._attach(*quantizers[name])
        quantized._input_is(f"the input quantizer of {name!r}")
    _leave_fast_path(model)
    return model


def _choose(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None, skip: Collection[str]
) -> dict[str, nn.Module]:
    """The layers to quantize under their first names."""
    if isinstance(skip, str):
        raise TypeError(f"quantize_: skip must be a collection of names, got the string {skip!r}")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    unknown = [name for name in skip if name not in names]
    if unknown:
        raise ValueError(f"quantize_: skip must name modules of the model, got {unknown}; it has {names[1:]}")
    skipped = {module for name in skip for module in model.get_submodule(name).modules()}
    chosen = {}
    for name, layer in model.named_modules():
        if float_class(layer) not in QUANTIZED and not isinstance(layer, QuantLayer):
            continue
        if layer in skipped or (filter_fn is not None and not filter_fn(layer, name)):
            continue
        if isinstance(layer, QuantLayer):
            raise ValueError(
                f"quantize_: {name!r} is quantized already ({type(layer).__name__}); leave it out by skip or filter_fn"
            )
        check_float(f"quantize_: {name!r}", layer, QUANTIZED[float_class(layer)])
        chosen[name] = layer
    if not chosen:
        raise ValueError(
            "quantize_: the model must have a Linear, Conv1d, Conv2d or Conv3d that skip and filter_fn leave, got none"
        )
    return chosen


def _is_quantizer(function: Any) -> bool:
    """Whether it is an operator or a surrogate of ste_ops, also with arguments set: none of them takes a layer."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", "")).split(".")[0] == __name__.split(".")[0]


def _make(argument: str, given: nn.Module | Factory | None, layer: Any) -> Quantize | None:
    made: Any
    if given is None or isinstance(given, nn.Module):
        made = copy.deepcopy(given)
    else:
        made = given if _is_quantizer(given) else given(layer)
    check_quantizer("quantize_", argument, made)
    if isinstance(made, nn.Module):
        # Scales stay in float32 beside 16-bit weights.
        dtype = torch.float64 if layer.weight.dtype == torch.float64 else None
        made.to(layer.weight.device, dtype).train(layer.training)
    return made


def _leave_fast_path(model: nn.Module) -> None:
    """In evaluation torch's TransformerEncoderLayer hands the bare weights to a fused kernel, past the quantizers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, QuantLayer) for m in module.children()):
            module.activation_relu_or_gelu = 0  # one of the conditions of that path; nothing else reads it
