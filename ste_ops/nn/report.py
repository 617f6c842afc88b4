"""`summary`: what of a model is quantized and how, and why the rest stayed float."""

from __future__ import annotations

import functools
import inspect
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ste_ops import functional
from ste_ops._checks import is_integer, is_number
from ste_ops.nn import _attach
from ste_ops.nn._quantized_class import float_class, layer_of
from ste_ops.nn.binarize import Heaviside, Sign, Ternary
from ste_ops.nn.layers import Quantize, QuantLayer, is_operator
from ste_ops.nn.packed import PackedLayer
from ste_ops.nn.quantizer import Quantizer
from ste_ops.nn.scaled import BitNetWeight, MagnitudeAwareSign, XNORWeight
from ste_ops.nn.threshold import ChannelThreshold

_VECTORS = "no matrix of weights"
_TERNARY = math.log2(3)
# The quantizers that do not say their bits themselves.
_BITS: dict[Any, float] = {
    **dict.fromkeys((Sign, Heaviside, ChannelThreshold, XNORWeight, MagnitudeAwareSign), 1),
    **dict.fromkeys((functional.sign, functional.heaviside, functional.bernoulli_ste), 1),
    **dict.fromkeys((functional.xnor_weight, functional.magnitude_aware_sign), 1),
    **dict.fromkeys((Ternary, BitNetWeight, functional.ternary, functional.bitnet_weight), _TERNARY),
}


@dataclass(frozen=True)
class Row:
    """A module of a `Summary` that has weights of its own.

    Attributes:
        name: its name in the model, ``""`` for the model itself.
        type: its class.
        weight, input: the quantizers in words, None where there is none.
        bits: of weight and input, None where there is no quantizer at all. A quantizer whose bits are unknown, as a
            function of the user's, has None; three values are 1.58 bits.
        scale_set: whether the scales of weight and input are set; None where there is none to be set, or where it
            cannot be asked, as on the meta device.
        weights: how many numbers its matrices have.
        reason: why the weights stayed float, or what else of the module did; None if all of it is quantized.
    """

    name: str
    type: str
    weight: str | None
    input: str | None
    bits: tuple[float | None, float | None] | None
    scale_set: tuple[bool | None, bool | None] | None
    weights: int
    reason: str | None

    @property
    def quantized(self) -> bool:
        """Whether the weights or the input are."""
        return self.bits is not None


_COLUMNS = ("name", "type", "weight", "input", "bits", "scale set", "stayed float")


class Summary:
    """What `summary` found. It prints as a table; `rows` holds the same as data, a `Row` for each module with weights.

    Modules with vectors alone, as BatchNorm, are in `rows` and are counted in one line of the table; so are quantizers
    that stand in no layer, whose classes `alone` has.
    """

    def __init__(self, rows: tuple[Row, ...], alone: tuple[str, ...] = ()) -> None:
        self.rows = rows
        self.alone = alone

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        shown = [row for row in self.rows if row.reason != _VECTORS]
        cells = [_COLUMNS, *(_cells(row) for row in shown)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        total = sum(row.weights for row in shown)
        done = sum(row.weights for row in shown if row.weight is not None)
        share = f", {done / total:.1%} of {total:,} weights" if total else ""
        count = sum(row.weight is not None for row in shown)
        lines.append(f"{count} of {len(shown)} modules have quantized weights{share}")
        vectors = Counter(row.type for row in self.rows if row.reason == _VECTORS)
        for words, counts in (("with vectors alone", vectors), ("quantizers in no layer", Counter(self.alone))):
            if counts:
                lines.append(f"{words}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        return "\n".join(line.rstrip() for line in lines)


def summary(model: nn.Module) -> Summary:
    """Says of each module of a model that has weights how it is quantized, or why it stayed float.

    It can be called at any time, before `quantize_` too, and sees the model as it is then: quantizers that were
    assigned by hand, scales that a first batch has set since. What `quantize_` was told, as ``skip``, stays with the
    modules, in copies too. Reading whether scales are set waits for the device.

    Args:
        model: any module, also a wrapped or sharded one.

    Returns:
        A `Summary`: printed it is a table, and ``rows`` is the same as data.

    Raises:
        TypeError: model is no module.

    Example:
        >>> import torch, ste_ops
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 2))
        >>> model = ste_ops.nn.quantize_(model, ste_ops.nn.XNORWeight(), ste_ops.nn.LSQ(4), skip=["3"])
        >>> ste_ops.nn.summary(model)
        name  type         weight        input                     bits  scale set  stayed float
        ----  -----------  ------------  ------------------------  ----  ---------  -------------------------
        0     Embedding    -             -                         -/-   -/-        also=[Embedding] takes it
        2     QuantLinear  XNORWeight()  LSQ(bits=4, signed=True)  1/4   -/no
        3     Linear       -             -                         -/-   -/-        skip names '3'
        1 of 3 modules have quantized weights, 38.1% of 84 weights
        with vectors alone: 1 LayerNorm
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"summary: model must be a module, got {type(model).__name__}")
    inside = {part for module in model.modules() for held in _held_quantizers(module) for part in held.modules()}
    owned = _attach.owned(model)
    rows, alone = [], []
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, Quantizer):
            alone.append(type(module).__name__)
        elif isinstance(module, PackedLayer):
            rows.append(_packed_row(name, module))
        elif isinstance(module, QuantLayer) or _attach.is_attached(module) or _has_parameters(module):
            rows.append(_row(name, module, owned))
    return Summary(tuple(rows), tuple(alone))


def _held_quantizers(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, QuantLayer):
        held = [module.weight_quantizer, module.input_quantizer]
    elif isinstance(module, PackedLayer):
        held = [module.input_quantizer]
    else:
        held = [_attach.input_quantizer(module)]
    return [*(q for q in held if isinstance(q, nn.Module)), *_attach.parametrizations(module).values()]


def _has_parameters(module: nn.Module) -> bool:
    return any(p is not None for p in module._parameters.values()) or bool(_attach.parametrizations(module))


def _packed_row(name: str, layer: PackedLayer) -> Row:
    form, quantizer = layer._form, layer.input_quantizer
    return Row(
        name=name,
        type=type(layer).__name__,
        weight=f"packed, {form.bits} bit" + "s" * (form.bits > 1),
        input=None if quantizer is None else _in_words(quantizer),
        bits=(form.bits, _bits(quantizer)),
        scale_set=(None, _is_set([quantizer])),
        weights=math.prod(form.shape),
        reason=None,
    )


def _row(name: str, module: nn.Module, owned: dict[nn.Module, nn.Module]) -> Row:
    if isinstance(module, QuantLayer):
        of_weight: list[Quantize | None] = [module.weight_quantizer]
        of_input = module.input_quantizer
    else:
        of_weight, of_input = [*_attach.weight_quantizers(module).values()], _attach.input_quantizer(module)
    found: list[Quantize] = [quantizer for quantizer in of_weight if quantizer is not None]
    first = found[0] if found else None
    handed_over = _of_torchao(module)
    quantized = first is not None or of_input is not None or handed_over is not None
    matrices = _attach.matrices(module)
    return Row(
        name=name,
        type=float_class(module).__name__,
        weight=" and ".join(dict.fromkeys(map(_in_words, found))) or handed_over,
        input=None if of_input is None else _in_words(of_input),
        bits=(_bits(first), _bits(of_input)) if quantized else None,
        scale_set=(_is_set(found), _is_set([of_input])) if quantized else None,
        weights=sum(matrix.numel() for matrix in matrices.values()),
        reason=None if handed_over else _reason(module, first is not None, of_input is not None, matrices, owned),
    )


def _of_torchao(module: nn.Module) -> str | None:
    """The class of the tensor that `to_torchao_`, or torchao itself, made of the weight."""
    cls = type(module._parameters.get("weight"))
    return cls.__name__ if cls.__module__.split(".")[0] == "torchao" else None


def _reason(
    module: nn.Module, weight: bool, input: bool, matrices: dict[str, Tensor], owned: dict[nn.Module, nn.Module]
) -> str | None:
    if weight:
        return None if isinstance(module, QuantLayer) or module in owned else _attach.places_of(module).stays or None
    if isinstance(module, QuantLayer) or input:
        return "its weights have no quantizer"
    if "_left_float" in module.__dict__:
        return module.__dict__["_left_float"]
    if _attach.refusal(module) is not None:
        return _attach.refusal(module)
    if not matrices:
        return _VECTORS
    cls = float_class(module).__name__
    if module in owned:
        owner = float_class(owned[module]).__name__
        return f"{owner} reads its weights itself; also=[{owner}] takes them"
    if layer_of(float_class(module)) is not None:
        return "no quantizer was given to it"
    if not _attach.places_of(module).weights:
        names = list(matrices)
        return f"what its forward does with {', '.join(names)} is not known; also={{{cls}: {names}}} takes them"
    own = "a forward of its own; " if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) else ""
    return f"{own}also=[{cls}] takes it"


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _in_words(quantizer: Quantize) -> str:
    if isinstance(quantizer, nn.Module):
        inner = "..." if next(quantizer.children(), None) is not None else quantizer.extra_repr()
        return f"{type(quantizer).__name__}({inner})"
    if isinstance(quantizer, functools.partial):
        given = [*map(repr, quantizer.args), *(f"{key}={value!r}" for key, value in quantizer.keywords.items())]
        return f"{_attach.name_of(quantizer.func)}({', '.join(given)})"
    return _attach.name_of(quantizer)


def _bits(quantizer: Any) -> float | None:
    bits = getattr(quantizer, "bits", None)
    if is_number(bits):
        return bits
    if isinstance(quantizer, nn.Module):
        return next((_BITS[cls] for cls in type(quantizer).__mro__ if cls in _BITS), None)
    function = quantizer.func if isinstance(quantizer, functools.partial) else quantizer
    if isinstance(function, Hashable) and function in _BITS:
        return _BITS[function]
    if not is_operator(function):
        return None
    # What is set of an operator of this package: its bits, or the range of its integers.
    set_to: dict[str, Any] = {name: p.default for name, p in inspect.signature(quantizer).parameters.items()}
    low: Any = set_to.get("quant_min")
    high: Any = set_to.get("quant_max")
    if is_integer(low) and is_integer(high):
        return math.log2(high - low + 1)
    return set_to["bits"] if is_integer(set_to.get("bits")) else None


def _is_set(quantizers: Sequence[Any]) -> bool | None:
    flags = [getattr(quantizer, "initialized", None) for quantizer in quantizers]
    tensors = [flag for flag in flags if isinstance(flag, Tensor) and not flag.is_meta]
    return all(bool((flag >= 1).all()) for flag in tensors) if tensors else None


def _cells(row: Row) -> tuple[str, ...]:
    names = row.name or "(model)", row.type, row.weight or "-", row.input or "-"
    bits, is_set = row.bits or (None, None), row.scale_set or (None, None)
    widths = ("-" if held == "-" else "?" if n is None else f"{n:.3g}" for held, n in zip(names[2:], bits, strict=True))
    return *names, "/".join(widths), "/".join(_SET[flag] for flag in is_set), row.reason or ""


_SET = {True: "yes", False: "no", None: "-"}
