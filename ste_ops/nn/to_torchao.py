"""`to_torchao_`: quantized weights as tensors of torchao, in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ste_ops.nn._affine import Affine, affine
from ste_ops.nn._chosen import check_module, has_quantized_weights, unskipped
from ste_ops.nn._norms import owners_of
from ste_ops.nn._quantized_class import become_float, float_class, unquantized_class
from ste_ops.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from ste_ops.nn.packed import PackedConv2d, PackedLayer, PackedLinear

_Model = TypeVar("_Model", bound=nn.Module)

_MOST_BITS = 8
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_UNPACKED: dict[type[nn.Module], type[QuantLayer]] = {PackedLinear: QuantLinear, PackedConv2d: QuantConv2d}
_OF_PACKED = ("codes", "format", "panels", "scale", "zero_point", "offset")


def to_torchao_(model: _Model, skip: Collection[str] = (), tensor: str = "IntxUnpackedToInt8Tensor") -> _Model:
    """Makes the weights of quantized and of packed layers tensors of torchao, in place, for what works with these.

    A layer gets back torch's class and its weight is a Parameter of a tensor that holds integers, scales and zero
    points. Where it has an input quantizer, or a norm was folded into it, it stays a quantized layer without a weight
    quantizer. Bias, hooks and input quantizers stay. Weights of a packed layer get the dtype of its bias, without one
    float32.

    Both kinds of tensors make of their integers the weights that the layer computed with, bit for bit
    (``layer.weight.dequantize()``), or the layer is refused.

    - ``"IntxUnpackedToInt8Tensor"``: weights of 1 to 8 bits, an int8 each, of linear layers and Conv2d; scales and zero
      points of the tensor, of channels or of groups. Torch multiplies by the weights that it makes, so the output has
      the bits of the float product too.
    - ``"Int8Tensor"``: linear layers with a zero point of 0. torchao multiplies by the integers and the sum by the
      scale, except for groups, so the last bits of the output differ. It ignores zero points in that product: what has
      any is refused, and so is float16 without groups, in which its sums of integers become infinite.

    Args:
        model: any module, also a layer itself. Layers without a weight quantizer stay as they are.
        skip: names of layers, or of modules with all that is in them, to be left as they are.
        tensor: the class of torchao, as above.

    Returns:
        model.

    Raises:
        ImportError: torchao is not installed, or has no such class.
        TypeError: model is no module, or a weight quantizer does not put out integers times a scale (and a zero point),
            as `DoReFaWeight` of more than one bit, `LSQPlus` and `SRSTE`; or groups are no blocks of a convolution's
            weights.
        ValueError: no layer is left, torchao has nothing for a layer (Conv1d, Conv3d, more than 8 bits, float64), its
            weight is another module's too, or tensor or skip name what there is not. The model is then unchanged.
        RuntimeError: the scale of a weight is not set yet.

    Source: torchao 0.18, https://docs.pytorch.org/ao/stable/api_reference/api_ref_quantization.html.

    Example:
        >>> import torch, ste_ops
        >>> layer = ste_ops.nn.QuantLinear(64, 32, weight_quantizer=ste_ops.nn.LSQ(4, axis=0)).eval()
        >>> x = torch.randn(3, 64)
        >>> expected, weight = layer(x), layer.weight_codes().dequantize()
        >>> layer = ste_ops.nn.to_torchao_(layer)  # doctest: +SKIP
        >>> type(layer), type(layer.weight)  # doctest: +SKIP
        (<class 'torch.nn.modules.linear.Linear'>, <class 'torchao.quantization.IntxUnpackedToInt8Tensor'>)
        >>> torch.equal(layer.weight.dequantize(), weight), torch.equal(layer(x), expected)  # doctest: +SKIP
        (True, True)
    """
    check_module("to_torchao_", model)
    if tensor not in _MADE:
        raise ValueError(f"to_torchao_: tensor must be one of {', '.join(map(repr, _MADE))}, got {tensor!r}")
    cls = _class(tensor)
    found = unskipped("to_torchao_", model, skip)
    chosen = {n: layer for n, layer in found.items() if isinstance(layer, PackedLayer) or has_quantized_weights(layer)}
    if not chosen:
        raise ValueError(
            "to_torchao_: model must have a packed layer or one with a weight quantizer, which skip leaves, got none"
        )
    owners = owners_of(model)
    for name, layer in chosen.items():
        if owners.get(id(layer._parameters.get("weight")), 1) > 1:
            raise ValueError(
                f"to_torchao_: the weight of {name!r} must be its own, got another module's too, which would go on "
                "with the float one; give the layer a copy, or name it in skip"
            )
    # Everything is made, and may fail, before anything changes.
    changes = [_change(f"to_torchao_: {name!r}", layer, tensor, cls) for name, layer in chosen.items()]
    for change in changes:
        change()
    return model


def _class(tensor: str) -> Any:
    try:
        import torchao
        import torchao.quantization as of_torchao
    except ImportError as error:
        raise ImportError("to_torchao_: torchao must be installed (pip install torchao), got none") from error
    if not hasattr(of_torchao, tensor):
        raise ImportError(f"to_torchao_: torchao must have {tensor}, as 0.18 has, got torchao {torchao.__version__}")
    return getattr(of_torchao, tensor)


@torch.no_grad()
def _change(caller: str, layer: Any, tensor: str, cls: Any) -> Callable[[], None]:
    _check(caller, layer, tensor)
    of = _packed if isinstance(layer, PackedLayer) else _quantized
    held, expected = of(layer, _MOST_BITS if tensor == "Int8Tensor" else 1)
    if isinstance(held, str):
        raise TypeError(f"{caller}: the weights must be integers, less a zero point, times a scale, but {held}")
    if held.bits > _MOST_BITS:
        raise ValueError(f"{caller}: weights must have {_MOST_BITS} bits at most, got {held.bits}")
    if expected.dtype not in _DTYPES:
        raise ValueError(f"{caller}: weights must be float32, float16 or bfloat16 for torchao, got {expected.dtype}")
    made = _MADE[tensor](caller, cls, held, expected.dtype)
    if not torch.equal(made.dequantize(), expected):
        raise ValueError(f"{caller}: torchao makes other numbers of its integers than the layer computes with")
    weight = nn.Parameter(made, requires_grad=False)

    def change() -> None:
        if isinstance(layer, PackedLayer):
            _unpack(layer)
        for attributes in (layer._modules, layer.__dict__):
            attributes.pop("weight_quantizer", None)
        layer.weight_quantizer = None
        layer.weight = weight
        if layer.input_quantizer is None and not layer._folded:
            for key in ("weight_quantizer", "input_quantizer", "_sign_input", "_folded"):
                layer.__dict__.pop(key, None)
            become_float(layer)

    return change


def _check(caller: str, layer: Any, tensor: str) -> None:
    kinds = (nn.Linear,) if tensor == "Int8Tensor" else (nn.Linear, nn.Conv2d)
    known = isinstance(layer, PackedLayer) or (
        isinstance(layer, QuantLayer) and unquantized_class(float_class(layer)) is not None
    )
    if not (known and isinstance(layer, kinds)):
        names, got = " and ".join(kind.__name__ for kind in kinds), float_class(layer).__name__
        raise ValueError(
            f"{caller}: {tensor} is for quantized and packed {names}, got {got}, which skip leaves as it is"
        )
    if isinstance(layer, QuantLayer) and (is_parametrized(layer, "weight") or layer._parameters.get("weight") is None):
        raise ValueError(f"{caller}: the weight must be a Parameter, got one that is computed of others")
    if any(t.is_meta for t in (*layer.parameters(), *layer.buffers())):
        raise ValueError(f"{caller}: the layer must hold numbers, got tensors on the meta device")
    shape = layer._form.shape if isinstance(layer, PackedLayer) else tuple(layer.weight.shape)
    if math.prod(shape) == 0:
        raise ValueError(f"{caller}: the layer must have weights, got shape {shape}")


def _quantized(layer: Any, bits: int) -> tuple[Affine | str, Tensor]:
    codes = layer.weight_codes()
    return affine(codes.values, codes._law, codes.group_size, bits), codes.dequantize()


def _packed(layer: Any, bits: int) -> tuple[Affine | str, Tensor]:
    form, bias, scale = layer._form, layer._parameters.get("bias"), layer._held("scale")
    wide = torch.float32 if scale is None else scale.dtype
    law = layer._law(0, form.shape[0], wide)
    return affine(layer._integers(), law, form.group_size, bits), layer.unpacked(wide if bias is None else bias.dtype)


def _unpack(layer: Any) -> None:
    """A quantized layer again, without a weight."""
    quantizer = layer.input_quantizer
    for name in _OF_PACKED:
        layer._buffers.pop(name, None)
        layer._non_persistent_buffers_set.discard(name)
    for attributes in (layer._modules, layer.__dict__):
        attributes.pop("input_quantizer", None)
    for key in ("_form", "_of_signs"):
        layer.__dict__.pop(key, None)
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer._parameters.update({"weight": None, **others})
    layer.__class__ = next(cls for packed, cls in _UNPACKED.items() if isinstance(layer, packed))
    layer.input_quantizer = quantizer


def _intx(caller: str, cls: Any, held: Affine, dtype: torch.dtype) -> Any:
    zero = held.zero_point
    whole = torch.equal(zero.round(), zero) and bool((zero >= -128).all() & (zero <= 127).all())
    return cls(
        qdata=held.q,
        # In float32 also for weights of 16 bits: the product is then rounded once, as in the kernels here.
        scale=held.scale.float(),
        zero_point=zero.to(torch.int8) if whole else zero.float(),
        target_dtype=getattr(torch, f"int{held.bits}"),
        block_size=held.block,
        dtype=dtype,
        activation_quantization=None,
    )


def _int8(caller: str, cls: Any, held: Affine, dtype: torch.dtype) -> Any:
    zero = held.zero_point
    if bool(zero.any()):
        got = float(zero[zero != 0][0])
        raise ValueError(
            f"{caller}: the zero points must be 0 for Int8Tensor, whose product leaves them out, got {got:g} of signed "
            "integers; IntxUnpackedToInt8Tensor takes others"
        )
    if held.block[0] not in (1, held.q.shape[0]) or (held.block[0] != 1 and held.block[1] != held.q.shape[1]):
        raise ValueError(f"{caller}: Int8Tensor has scales of the tensor, of channels or of groups, got of columns")
    if dtype == torch.float16 and held.block[1] == held.q.shape[1]:
        raise ValueError(
            f"{caller}: Int8Tensor's sums of integers pass the largest float16 and become infinite; weights "
            "must be float32 or bfloat16, or have groups, got float16; IntxUnpackedToInt8Tensor takes it"
        )
    return cls(held.q, held.scale.float(), list(held.block), dtype)


_MADE: dict[str, Callable[[str, Any, Affine, torch.dtype], Any]] = {
    "IntxUnpackedToInt8Tensor": _intx,
    "Int8Tensor": _int8,
}
"""Of each class of torchao what makes one."""
