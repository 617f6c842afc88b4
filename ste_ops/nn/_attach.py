"""Quantizers on modules that have no quantized class: the weights by a parametrization, the inputs by a hook."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, register_parametrization

from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn.binarize import say_place
from ste_ops.nn.layers import Quantize, fit_to


@dataclass(frozen=True)
class Places:
    """What of a module can be quantized, and what of it stays float however it is asked for."""

    weights: tuple[str, ...]  # names of parameters; with a dot, of a submodule's
    inputs: tuple[str, ...] = ("input",)  # of forward's arguments
    stays: str = ""


_TRANSPOSED = Places(("weight",))
_EMBEDDING = Places(("weight",), (), "its input stays as it is: indices")
_CELL = Places(("weight_ih", "weight_hh"), stays="its state stays float")

PLACES: dict[type[nn.Module], Places] = {
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.Embedding: _EMBEDDING,
    nn.EmbeddingBag: _EMBEDDING,
    nn.Bilinear: Places(("weight",), ("input1", "input2")),
    nn.RNNCell: _CELL,
    nn.LSTMCell: _CELL,
    nn.GRUCell: _CELL,
    nn.MultiheadAttention: Places(
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"),
        ("query", "key", "value"),
        "the input of out_proj stays float: torch computes both in one function",
    ),
    nn.Linear: Places(("weight",)),
    nn.Conv1d: Places(("weight",)),
    nn.Conv2d: Places(("weight",)),
    nn.Conv3d: Places(("weight",)),
}


def places_of(layer: nn.Module, weights: Sequence[str] | None = None) -> Places:
    """Those of the module's class or of the nearest one that it derives from, else its matrices called weight.

    A forward of its own may call its first argument otherwise; that one is then the input.
    """
    known = next((PLACES[cls] for cls in type(layer).__mro__ if cls in PLACES), None)
    if known is None:
        known = Places(tuple(name for name in matrices(layer) if "weight" in name))
    named = known.weights if weights is None else tuple(weights)
    parameters = list(inspect.signature(type(layer).forward).parameters)[1:]
    inputs = known.inputs
    if not set(inputs) <= set(parameters):
        inputs = tuple(parameters[:1])
    return Places(tuple(name for name in named if _held(layer, name) is not None), inputs, known.stays)


def matrices(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of its own that have two dimensions or more.

    A parametrized one is what it is computed from, the largest part of it: to compute it could change it, as the power
    iteration of a spectral norm does.
    """
    own: dict[str, Any] = dict(module._parameters.items())
    for name, held in parametrizations(module).items():
        own[name] = max((p for p in held.parameters(recurse=False)), key=Tensor.numel, default=None)
    return {
        name: p for name, p in own.items() if p is not None and not is_lazy(p) and p.dim() > 1 and p.is_floating_point()
    }


def refusal(layer: nn.Module) -> str | None:
    """Why neither weights nor inputs of such a module can be quantized, or None."""
    if any(p is not None and is_lazy(p) for p in layer._parameters.values()):
        return "it has no sizes yet; quantize_ comes after a first batch"
    if isinstance(layer, nn.RNNBase):
        cell = {"LSTM": "LSTMCell", "GRU": "GRUCell"}.get(type(layer).__name__, "RNNCell")
        return f"torch keeps its last weights in a list that no copy of the model takes; loop over {cell}"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        if layer.sparse:
            return "its gradient is sparse, which no quantizer takes; make it with sparse=False"
        if layer.max_norm is not None:
            return "max_norm writes into the weight that it is given, which would be the quantized copy"
    return None


class QuantizedWeight(nn.Module):
    """The parametrization: holds the quantizer of a weight."""

    quantizer: Quantize

    def __init__(self, quantizer: Quantize) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, weight: Tensor) -> Tensor:
        return self.quantizer(weight)

    def extra_repr(self) -> str:
        return "" if isinstance(self.quantizer, nn.Module) else f"quantizer={name_of(self.quantizer)}"


def name_of(quantizer: object) -> str:
    return getattr(quantizer, "__qualname__", repr(quantizer))


def parametrizations(module: nn.Module) -> dict[str, ParametrizationList]:
    held: Any = module.parametrizations if is_parametrized(module) else nn.ModuleDict()
    return dict(held.items())


def weight_quantizers(module: nn.Module) -> dict[str, Quantize]:
    """Of each weight of the module's own that was given one here."""
    return {
        name: parametrization.quantizer
        for name, held in parametrizations(module).items()
        for parametrization in held
        if isinstance(parametrization, QuantizedWeight)
    }


def is_attached(module: nn.Module) -> bool:
    return bool(weight_quantizers(module)) or _hook_of(module) is not None


def input_quantizer(module: nn.Module) -> Quantize | None:
    of_layer: Any = module
    return None if _hook_of(module) is None else of_layer.input_quantizer


def attach_weight(layer: nn.Module, name: str, quantizer: Quantize) -> None:
    owner, _, own = name.rpartition(".")
    module = layer.get_submodule(owner)
    fit_to(quantizer, module, own)
    register_parametrization(module, own, QuantizedWeight(quantizer))
    if isinstance(quantizer, UniformQuantizer) and len(parametrizations(module)[own]) == 1:
        quantizer._watch(parametrizations(module)[own], "original")
    module.register_load_state_dict_pre_hook(_take_float_weights)


def attach_input(layer: nn.Module, inputs: tuple[str, ...], quantizer: Quantize, place: str) -> None:
    parameters = list(inspect.signature(type(layer).forward).parameters)[1:]
    of_layer: Any = layer  # also a function
    of_layer.input_quantizer = quantizer
    say_place(quantizer, place)
    hook = partial(_quantize_inputs, places=tuple((parameters.index(name), name) for name in inputs))
    layer.register_forward_pre_hook(hook, with_kwargs=True)


def detach_input(layer: nn.Module) -> None:
    hook = _hook_of(layer)
    for key in [key for key, held in layer._forward_pre_hooks.items() if held is hook]:
        del layer._forward_pre_hooks[key]
        layer._forward_pre_hooks_with_kwargs.pop(key, None)
    if hook is not None:
        delattr(layer, "input_quantizer")


def _quantize_inputs(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: tuple[tuple[int, str], ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What is one tensor stays one: attention looks whether query, key and value are."""
    given, named = list(args), dict(kwargs)
    seen: list[tuple[Any, Any]] = []
    for index, name in places:
        holder: Any = given if index < len(given) else named
        key: Any = index if index < len(given) else name
        if holder is named and name not in named:
            continue
        x = holder[key]
        made = next((after for before, after in seen if before is x), None)
        if made is None:
            made = layer.input_quantizer(x)
            seen.append((x, made))
        holder[key] = made
    return tuple(given), named


def _hook_of(module: nn.Module) -> Callable[..., Any] | None:
    hooks = module._forward_pre_hooks.values()
    return next((hook for hook in hooks if getattr(hook, "func", None) is _quantize_inputs), None)


def _take_float_weights(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _: Any,
    strict: bool,
    missing_keys: list[str],
    *others: Any,
) -> None:
    """A float model's state names a weight as it was before it was parametrized, and has no scale for it."""
    for name, held in parametrizations(module).items():
        parametrized = f"{prefix}parametrizations.{name}"
        plain, original = f"{prefix}{name}", f"{parametrized}.original"
        if plain in state_dict and original not in state_dict and hasattr(held, "original"):
            state_dict[original] = state_dict.pop(plain)
        for place, parametrization in enumerate(held):
            quantizer = getattr(parametrization, "quantizer", None)
            left_out = original in state_dict and f"{parametrized}.{place}.quantizer.scale" not in state_dict
            if isinstance(quantizer, UniformQuantizer) and quantizer._given is None and left_out:
                quantizer.reset_parameters()  # the next forward finds it
    of_input = input_quantizer(module)
    if isinstance(of_input, UniformQuantizer):
        of_input._left_out(module, state_dict, prefix, "input_quantizer", missing_keys)


def _held(layer: nn.Module, name: str) -> Tensor | None:
    owner, _, own = name.rpartition(".")
    found = getattr(layer.get_submodule(owner), own, None)
    return found if isinstance(found, Tensor) else None


def owned(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Modules whose forward is never called, since another one reads their weights: they go with that one."""
    return {m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
