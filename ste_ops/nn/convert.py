"""`quantize_`: an existing float model on quantized layers, in place."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ste_ops.nn import _attach
from ste_ops.nn._quantized_class import become, check_own_forward, float_class, layer_of
from ste_ops.nn.layers import Quantize, QuantLayer, check_quantizer, is_operator

Factory = Callable[[Any], Quantize | None]
"""Takes a layer and returns its quantizer, or None to leave that side of it as it is."""

Also = Collection[type[nn.Module]] | Mapping[type[nn.Module], Sequence[str]]

_Model = TypeVar("_Model", bound=nn.Module)


def quantize_(
    model: _Model,
    weight: nn.Module | Factory | None = None,
    input: nn.Module | Factory | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    skip: Collection[str] = (),
    also: Also = (),
) -> _Model:
    """Makes the Linear, Conv1d, Conv2d and Conv3d layers of a float model quantized ones, in place.

    The layers stay the same objects with the same Parameters, hooks, parametrizations, device, dtype and flags; only
    their class changes (`QuantLinear`, ...) and the quantizers are added. An optimizer made before still moves the
    weights; the parameters of the quantizers (LSQ's steps, PACT's alphas) are new, so make it afterwards if there are
    any. A layer that the model holds under two names is quantized once. What became of each layer, and why one stayed
    float, `summary` prints.

    A subclass that has not changed ``forward`` is quantized as its class. Other modules are left alone unless `also`
    names them, for what a forward of its own does with the weights only its author knows: right is what takes
    ``self.weight`` as it is; where a forward standardizes it, it standardizes the quantized one. They keep their class;
    `torch.nn.utils.parametrize` quantizes the weights and a forward pre-hook the inputs. Their weights are then
    saved as ``parametrizations.weight.original``, and a float model's state loads too. Like all that is parametrized,
    such a model is saved by its `state_dict` and not whole. Known are ConvTranspose1d, ConvTranspose2d,
    ConvTranspose3d, Bilinear, Embedding, EmbeddingBag (weights alone), RNNCell, LSTMCell, GRUCell (not the state) and
    MultiheadAttention (query, key, value and all projections; not the input of the last one). Of any other module the
    matrices whose names have "weight" in them are taken, and its first argument. Output channels need not be dimension
    0 there: of a ConvTranspose and of Hugging Face's ``Conv1D`` they are dimension 1.

    Args:
        model: any module, also a layer itself, before it is wrapped or sharded.
        weight: a quantizer module, copied for each layer; an operator of `ste_ops`, such as `ste_ops.sign` or a
            `functools.partial` of one; or a function of the layer that returns its quantizer, ``lambda layer: LSQ(4,
            axis=0)``, and so for a function of yours ``lambda layer: mine``. None leaves the weights as they are.
        input: the same for the layers' inputs.
        filter_fn: takes a layer and its name in the model, ``"layer1.0.conv1"``, and says whether to quantize it;
            default: every one.
        skip: names of layers, or of modules with all that is in them, to be left as they are. The first and the last
            layer often are: ``skip=("conv1", "fc")``.
        also: classes of other modules to quantize, subclasses included: ``also=[nn.Embedding, Conv2dSame]``; or with
            the names of their weights, ``also={Router: ["gate"]}``.

    Returns:
        model.

    Raises:
        TypeError: weight or input is neither a module nor a function of the layer, a layer has a forward of its own, or
            also names no class of modules.
        ValueError: neither is given, no layer is left to quantize, a chosen layer is quantized already, skip names what
            the model does not hold, or a module that also names cannot be quantized. The model is then unchanged.
        RuntimeError: the model is wrapped in `DistributedDataParallel` or sharded already.

    Example:
        >>> import torch, ste_ops
        >>> from torch import nn
        >>> block = [nn.BatchNorm1d(8), nn.Hardtanh(), nn.Linear(8, 8)]
        >>> model = nn.Sequential(nn.Linear(4, 8), *block, nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> model = ste_ops.nn.quantize_(model, ste_ops.nn.XNORWeight(), ste_ops.nn.Sign(), skip=["0", "5"])
        >>> model[3]
        QuantLinear(
          in_features=8, out_features=8, bias=True
          (weight_quantizer): XNORWeight()
          (input_quantizer): Sign(Clip(threshold=1.0))
        )
        >>> for row in ste_ops.nn.summary(model).rows:
        ...     print(row.name, row.type, row.bits, row.reason)
        0 Linear None skip names '0'
        1 BatchNorm1d None no matrix of weights
        3 QuantLinear (1, 1) None
        4 BatchNorm1d None no matrix of weights
        5 Linear None skip names '5'
    """
    if weight is None and input is None:
        raise ValueError("quantize_: weight or input must be given, got neither")
    for argument, given in (("weight", weight), ("input", input)):
        check_quantizer("quantize_", argument, given)
    _refuse_wrapped(model)
    choice = _Choice(model, filter_fn, skip, also)
    # Everything is made, and may fail, before anything changes.
    attach = [
        _native(name, layer, weight, input) if native else _attached(name, layer, weight, input, choice)
        for name, layer, native in choice.chosen
    ]
    for change in attach:
        change()
    for layer, reason in choice.left.items():
        layer.__dict__["_left_float"] = reason  # for `summary`
    _leave_fast_path(model)
    return model


class _Choice:
    """The layers to quantize under their first names, and why others that could be are left."""

    def __init__(
        self,
        model: nn.Module,
        filter_fn: Callable[[nn.Module, str], bool] | None,
        skip: Collection[str],
        also: Also,
    ) -> None:
        _check_names(model, skip, also)
        self.also = also
        self.skipped = {module: name for name in skip for module in model.get_submodule(name).modules()}
        self.chosen: list[tuple[str, nn.Module, bool]] = []
        self.left: dict[nn.Module, str] = {}
        owned = _attach.owned(model)
        for name, layer in model.named_modules():
            native = layer_of(float_class(layer)) is not None
            if layer in owned or not (native or isinstance(layer, QuantLayer) or self.named(layer)):
                continue
            if layer in self.skipped:
                self.left[layer] = f"skip names {self.skipped[layer]!r}"
            elif filter_fn is not None and not filter_fn(layer, name):
                self.left[layer] = "filter_fn leaves it"
            else:
                self._take(name, layer, native)
        if not self.chosen:
            raise ValueError(
                "quantize_: the model must have a Linear, Conv1d, Conv2d or Conv3d, or a module that also names, which "
                "skip and filter_fn leave, got none"
            )

    def named(self, layer: nn.Module) -> type[nn.Module] | None:
        """The class by which `also` means the layer."""
        return next((cls for cls in type(layer).__mro__ if cls in self.also), None)

    def _take(self, name: str, layer: nn.Module, native: bool) -> None:
        if isinstance(layer, QuantLayer) or _attach.is_attached(layer):
            raise ValueError(
                f"quantize_: {name!r} is quantized already ({type(layer).__name__}); leave it out by skip or filter_fn"
            )
        reason = None if native else _attach.refusal(layer)
        if reason is not None:
            raise ValueError(f"quantize_: {name!r} ({type(layer).__name__}), which also names, stays float: {reason}")
        if native:
            check_own_forward(f"quantize_: {name!r}", layer)
        self.chosen.append((name, layer, native))


def _check_names(model: nn.Module, skip: Collection[str], also: Also) -> None:
    if isinstance(skip, str):
        raise TypeError(f"quantize_: skip must be a collection of names, got the string {skip!r}")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    unknown = [name for name in skip if name not in names]
    if unknown:
        raise ValueError(f"quantize_: skip must name modules of the model, got {unknown}; it has {names[1:]}")
    if isinstance(also, (type, str)) or not all(isinstance(c, type) and issubclass(c, nn.Module) for c in also):
        raise TypeError(f"quantize_: also must be a collection of classes of modules, got {also!r}")


def _refuse_wrapped(model: nn.Module) -> None:
    """Data-parallel wrappers know the parameters that they found, and none that come later."""
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__module__.startswith("torch.") and cls.__name__ in _WRAPPERS:
                raise RuntimeError(
                    f"quantize_: the model is wrapped in {cls.__name__}, which would not see the parameters of the "
                    f"quantizers; quantize_ comes first, then {_WRAPPERS[cls.__name__]}, then the optimizer"
                )
    tensors: Any = sys.modules.get("torch.distributed.tensor")
    for name, parameter in () if tensors is None else model.named_parameters():
        if isinstance(parameter, tensors.DTensor):
            raise RuntimeError(
                f"quantize_: the parameter {name!r} is sharded (a DTensor), and its quantizer would not be; quantize_ "
                "comes first, then fully_shard or parallelize_module, then the optimizer"
            )


_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel(model)",
    "FullyShardedDataParallel": "FullyShardedDataParallel(model)",
    "FSDPModule": "fully_shard(model)",
}


def _native(
    name: str, layer: nn.Module, weight: nn.Module | Factory | None, input: nn.Module | Factory | None
) -> Callable[[], None]:
    of = layer.weight
    quantizers = _make("weight", weight, layer, of), _make("input", input, layer, of)

    def change() -> None:
        become(layer)
        quantized: Any = layer
        quantized._attach(*quantizers)
        quantized._input_is(f"the input quantizer of {name!r}")

    return change


def _attached(
    name: str,
    layer: nn.Module,
    weight: nn.Module | Factory | None,
    input: nn.Module | Factory | None,
    choice: _Choice,
) -> Callable[[], None]:
    cls = choice.named(layer)
    given = choice.also[cls] if cls is not None and isinstance(choice.also, Mapping) else None
    places = _attach.places_of(layer, given)
    if not places.weights or (given is not None and set(given) != set(places.weights)):
        raise ValueError(
            f"quantize_: also must say which parameters of {name!r} are its weights, as "
            f"also={{{float_class(layer).__name__}: {list(_attach.matrices(layer))}}}, got {given or 'none'}"
        )
    quantizers: dict[str, Quantize] = {}
    for key in places.weights:
        owner = layer.get_submodule(key.rpartition(".")[0])
        if owner in choice.skipped and owner is not layer:
            choice.left[owner] = f"skip names {choice.skipped[owner]!r}"
        else:
            made = _make("weight", weight, layer, layer.get_parameter(key))
            quantizers |= {} if made is None else {key: made}
    of_input = _make("input", input, layer, layer.get_parameter(places.weights[0])) if places.inputs else None
    if not quantizers and of_input is None:
        choice.left[layer] = places.stays or "weight and input return no quantizer for it"

    def change() -> None:
        for key, quantizer in quantizers.items():
            _attach.attach_weight(layer, key, quantizer)
        if of_input is not None:
            _attach.attach_input(layer, places.inputs, of_input, f"the input quantizer of {name!r}")

    return change


def _make(argument: str, given: nn.Module | Factory | None, layer: Any, weight: Any) -> Quantize | None:
    made: Any
    if given is None or isinstance(given, nn.Module):
        made = copy.deepcopy(given)
    else:
        made = given if is_operator(given) else given(layer)
    check_quantizer("quantize_", argument, made)
    if isinstance(made, nn.Module):
        # Scales stay in float32 beside 16-bit weights.
        made.to(weight.device, torch.float64 if weight.dtype == torch.float64 else None).train(layer.training)
    return made


def _leave_fast_path(model: nn.Module) -> None:
    """In evaluation torch's TransformerEncoderLayer hands the bare weights to a fused kernel, past the quantizers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(m, QuantLayer) or _attach.is_attached(m) for m in module.modules()
        ):
            module.activation_relu_or_gelu = 0  # one of the conditions of that path; nothing else reads it
