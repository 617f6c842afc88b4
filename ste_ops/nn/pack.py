"""`pack_`: a trained model on layers that hold their weights in a few bits, in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops.functional.quantize._codes import bytes_for, bytes_of, levels_of
from ste_ops.functional.quantize._groups import rows_of_groups
from ste_ops.functional.quantize._law import Law, law_of, widen
from ste_ops.nn._chosen import check_module, has_quantized_weights, unskipped
from ste_ops.nn._quantized_class import float_class, unquantized_class
from ste_ops.nn.codes import Codes, check_set, name_of, operator_of
from ste_ops.nn.layers import QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from ste_ops.nn.packed import Form, PackedConv1d, PackedConv2d, PackedConv3d, PackedLayer, PackedLinear
from ste_ops.nn.quantizer import Quantizer, function_of
from ste_ops.nn.rounding import StochasticRound

_Model = TypeVar("_Model", bound=nn.Module)

_PACKED: dict[type[nn.Module], type[PackedLayer]] = {
    QuantLinear: PackedLinear,
    QuantConv1d: PackedConv1d,
    QuantConv2d: PackedConv2d,
    QuantConv3d: PackedConv3d,
}
_MOST_BITS = 8
_WITH_ZERO = functional.fake_quantize
_WITHOUT_A_RANGE = (functional.round, functional.floor, functional.ceil, functional.trunc)


def pack_(model: _Model, skip: Collection[str] = (), state_dict: Mapping[str, Any] | None = None) -> _Model:
    """Turns the quantized layers of a trained model into packed ones, in place, for inference.

    A layer stays the same object with its hooks, its bias and its input quantizer; its float weights are gone, and in
    their place are buffers: the integers in 1, 2, 4 or 8 bits, and what they are multiplied by (`PackedLayer`). The
    output is that of the trained layer in eval mode, bit for bit. Linear layers, Conv1d and Conv2d with signs on both
    sides run on `binary_linear` and `binary_conv2d`: there a factor (`XNORWeight`) multiplies the exact integer once,
    and a bias is added to it once, where a float product rounds each of its sums.

    The `state_dict` holds nothing but tensors, so ``safetensors.torch.save_file(model.state_dict(), path)`` stores it,
    and ``torch.save`` does. It is read into a model that the same code made, `quantize_` and `fold_batch_norm_`
    included: ``pack_(model, state_dict=load_file(path))``. That takes a model that is not trained, and one on the meta
    device; nothing is read of its weights and scales. A state of another format version, of other bits or sizes is
    refused. The integers are bytes, whose order no machine changes; of the other tensors the file says it.

    Args:
        model: any module, also a layer itself. Layers without a weight quantizer stay as they are.
        skip: names of layers, or of modules with all that is in them, to be left as they are.
        state_dict: of a packed model, which is loaded; default: weights and scales are those of model.

    Returns:
        model.

    Raises:
        TypeError: model is no module, or a weight quantizer does not put out integers times a scale, as `SRSTE`.
        ValueError: no layer is left to pack, a weight has more than 8 bits, a layer is of a class of the user's, or
            skip names what model does not hold. The model is then unchanged.
        RuntimeError: the scale of a weight or an input is not set yet, or the state does not fit.

    Example:
        >>> import torch, ste_ops
        >>> def make():
        ...     layers = [torch.nn.Linear(64, 64), torch.nn.Hardtanh(), torch.nn.Linear(64, 64)]
        ...     return ste_ops.nn.quantize_(torch.nn.Sequential(*layers), ste_ops.nn.Sign(), skip=["0"]).eval()
        >>> model, x = make(), torch.randn(2, 64)
        >>> expected = model(x)
        >>> packed = ste_ops.nn.pack_(model)
        >>> packed.state_dict()["2.codes"].shape  # 4096 weights
        torch.Size([512])
        >>> other = ste_ops.nn.pack_(make(), state_dict=packed.state_dict())
        >>> torch.equal(packed(x), expected), torch.equal(other(x), expected)
        (True, True)
    """
    check_module("pack_", model)
    found = unskipped("pack_", model, skip)
    chosen = {name: layer for name, layer in found.items() if has_quantized_weights(layer)}
    if not chosen:
        raise ValueError("pack_: model must have a layer with a weight quantizer, which skip leaves, got none")
    # Everything is made, and may fail, before anything changes.
    changes = [_change(f"pack_: {name!r}", layer, state_dict is None) for name, layer in chosen.items()]
    if state_dict is None:
        _check_scales(model)
    for change in changes:
        change()
    if state_dict is not None:
        held: list[Tensor] = [*model.parameters(), *model.buffers()]
        model.load_state_dict(state_dict, assign=any(tensor.is_meta for tensor in held))
    return model


def _check_scales(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) and module.enabled:
            check_set(f"pack_: {name!r}", module)


def _change(caller: str, layer: Any, trained: bool) -> Callable[[], None]:
    own = next((cls for cls in type(layer).__mro__ if cls in _PACKED), None)
    if own is None or unquantized_class(float_class(layer)) is None:
        raise ValueError(
            f"{caller}: Linear and Conv1d to Conv3d have a packed class, {type(layer).__name__} has none; skip leaves "
            "it as it is, and dequantize_(bake=True) leaves the quantized weights as floats"
        )
    trained = trained and not layer.weight.is_meta
    codes = layer.weight_codes() if trained else None
    law, group_size = (codes._law, codes.group_size) if codes is not None else _untrained(caller, layer)
    if function_of(layer.weight_quantizer) in _WITHOUT_A_RANGE or isinstance(layer.weight_quantizer, StochasticRound):
        raise TypeError(f"{caller}: the integers of the weights must have a range, got {_words(layer)}, which has none")
    if law.bits > _MOST_BITS:
        raise ValueError(f"{caller}: weights must have {_MOST_BITS} bits at most, got {law.bits} ({_words(layer)})")
    with_zero = operator_of(caller, layer.weight_quantizer, layer.weight, trained=False)[0] is _WITH_ZERO
    if with_zero and law.zero_point is None and law.scale is not None:
        law.zero_point = torch.zeros_like(law.scale)[:1]  # which of another state need not be 0
    form = _form(law, layer.weight, group_size)
    buffers = {"codes": _bytes(codes, form, layer.weight), "format": _tensor(form, layer.weight)}
    buffers |= {name: getattr(law, name).reshape(-1) for name in PackedLayer._names if getattr(law, name) is not None}

    def change() -> None:
        quantizer, bias, folded = layer.input_quantizer, layer.bias, layer._folded
        for held in (layer._parameters, layer._modules, layer.__dict__):
            for key in ("weight", "weight_quantizer", "parametrizations", "input_quantizer", "_sign_input", "_folded"):
                held.pop(key, None)
        layer.__class__ = _PACKED[own]
        layer._form, layer._folded, layer.input_quantizer, layer.bias = form, folded, quantizer, bias
        for name, tensor in buffers.items():
            layer.register_buffer(name, tensor.detach().clone())
        layer._count()

    return change


def _words(layer: Any) -> str:
    return name_of(layer.weight_quantizer)


def _untrained(caller: str, layer: Any) -> tuple[Law, int | None]:
    """The law of its weights, of which the numbers do not matter."""
    quantizer: Any = layer.weight_quantizer
    function, arguments = operator_of(caller, quantizer, layer.weight, trained=False)
    group_size = arguments.get("group_size")
    wide = widen(layer.weight.detach())
    law = law_of(function, wide if group_size is None else rows_of_groups(caller, wide, group_size), **arguments)
    if law is None:
        raise TypeError(f"{caller}: the weights must be integers times a scale, got {name_of(quantizer)}")
    return law, group_size


def _form(law: Law, weight: Tensor, group_size: int | None) -> Form:
    axis = None if law.axis is None else law.axis % weight.dim()
    steps = law.steps or 0
    return Form(tuple(weight.shape), law.low, law.high, law.stride, steps, law.span, axis, group_size)


def _bytes(codes: Codes | None, form: Form, weight: Tensor) -> Tensor:
    if codes is None:
        size = bytes_for(math.prod(form.shape), form.bits)
        return torch.zeros(size, dtype=torch.uint8, device=weight.device)
    integers = codes.values.float()
    levels = levels_of(integers, form.low, form.high)
    assert levels is not None
    return bytes_of(integers, levels[:: form.stride].contiguous(), form.bits)


def _tensor(form: Form, weight: Tensor) -> Tensor:
    return torch.tensor(form.numbers(), dtype=torch.int32, device=weight.device)
