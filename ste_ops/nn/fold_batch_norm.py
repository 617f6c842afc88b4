"""`fold_batch_norm_`: the batch norms of a trained model in the layers before them, or in the steps behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ste_ops.nn._norms import Step, Unfit, affine, layer_before, owners_of, steps_behind, the_call, thresholds
from ste_ops.nn._watch import Watch
from ste_ops.nn.codes import check_set
from ste_ops.nn.layers import QuantLayer
from ste_ops.nn.quantizer import Quantizer

_Model = TypeVar("_Model", bound=nn.Module)
_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
_NAME = "_ste_ops_folded"


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm of a model.

    Attributes:
        name: its name in the model.
        into: ``"threshold"``, ``"scale"``, ``"weights"``, or None where it was left.
        places: the names of the steps or of the layer that have it now.
        reason: why it was left; None where it was not.
    """

    name: str
    into: str | None
    places: tuple[str, ...] = ()
    reason: str | None = None


class Folded:
    """What `fold_batch_norm_` did. It prints as a table; `rows` holds the same as data, a `FoldedNorm` for each."""

    def __init__(self, rows: tuple[FoldedNorm, ...]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[FoldedNorm]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def left(self) -> tuple[FoldedNorm, ...]:
        """The norms that are still there."""
        return tuple(row for row in self.rows if row.into is None)

    def __repr__(self) -> str:
        cells = [("norm", "into", "of", "left, since it")]
        cells += [(r.name, r.into or "-", ", ".join(r.places) or "-", r.reason or "") for r in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(line.rstrip() for line in lines)


def fold_batch_norm_(model: _Model, *example_inputs: Any, untrained: bool = False) -> _Model:
    """Folds the batch norms of a trained model into what stands around them, in place.

    The model runs once with the example inputs, and every operation is seen; so a norm is found wherever its forward
    calls it. The first of these that fits is taken:

    - into a *threshold*, where nothing but steps take the norm's output: the module `Sign` or `Heaviside`, or the
      operator as a layer's input quantizer. Norm and step are then one comparison for each channel
      (`ChannelThreshold`), with the same result for every float, infinities and NaN included, a factor that is negative
      or 0 too: the bound is bisected over all floats with the arithmetic of the model's device and of the input's
      dtype. A `Hardtanh` or ReLU between them is part of it.
    - into the *scale* of the quantized layer before it. Its float weight stays as it is, and so do its codes: to
      multiply it would quantize other numbers. The layer multiplies its output by a factor and adds a summand for each
      channel, its bias within, in one pass (the buffers ``output_scale`` and ``output_bias``).
    - into the *weights* and the bias of the float layer before it, as `torch.nn.utils.fusion.fuse_conv_bn_eval` does.

    The last two round otherwise than the norm. Layers are Linear, Conv1d, Conv2d and Conv3d. A norm that is folded
    becomes `torch.nn.Identity`, and is gone from the `state_dict`; a layer's bias goes into the summand. It is for a
    model that is no longer trained. A norm is left, with the reason in `folded`, if it is in training mode or has no
    running statistics, is called twice or not at all, if the layer before it runs twice, or if its output or the
    layer's goes elsewhere too.

    Args:
        model: any module in eval mode.
        *example_inputs: what the model is called with, of the dtype in use. Numbers do not matter.
        untrained: True for a model into which the state of a folded one is loaded afterwards: its scales need not be
            set.

    Returns:
        `model` itself; `folded` says what became of each norm.

    Raises:
        TypeError: model is no module, or no input is given.
        ValueError: model has no batch norm.
        RuntimeError: model is in training mode or on the meta device, or the scale of one of its quantizers is not set
            yet.

    Example:
        >>> import torch, ste_ops
        >>> from torch import nn
        >>> from ste_ops.nn import QuantLinear, Sign, XNORWeight
        >>> binary = dict(weight_quantizer=XNORWeight(), input_quantizer=Sign())
        >>> layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), QuantLinear(8, 8, **binary), nn.BatchNorm1d(8), nn.ReLU()]
        >>> model = ste_ops.nn.fold_batch_norm_(nn.Sequential(*layers).eval(), torch.randn(2, 4))
        >>> ste_ops.nn.folded(model)
        norm  into       of                 left, since it
        ----  ---------  -----------------  --------------
        1     threshold  2.input_quantizer
        3     scale      2
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold_batch_norm_: model must be a torch.nn.Module, got {type(model).__name__}")
    if not example_inputs:
        raise TypeError("fold_batch_norm_: example_inputs must be what the model is called with, got none")
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _NORMS)}
    if not norms:
        raise ValueError("fold_batch_norm_: model must have a batch norm, got none")
    if model.training:
        raise RuntimeError("fold_batch_norm_: model must be in eval mode, got training mode; call eval() before")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise RuntimeError("fold_batch_norm_: model must hold numbers, since it runs, got one on the meta device")
    for name, module in () if untrained else model.named_modules():
        if isinstance(module, Quantizer) and module.enabled:
            check_set(f"fold_batch_norm_: {name!r}", module)
    watch, owners = Watch(model, example_inputs), owners_of(model)
    names = {module: name for name, module in model.named_modules()}
    planned = [_plan(name, norm, model, watch, owners, names) for name, norm in norms.items()]
    for _, change in planned:
        change()
    vars(model)[_NAME] = Folded(tuple(row for row, _ in planned))
    return model


def folded(model: nn.Module) -> Folded:
    """What `fold_batch_norm_` made of each batch norm of a model, and why it left one.

    Raises:
        ValueError: `fold_batch_norm_` was not called on it.
    """
    report: Folded | None = vars(model).get(_NAME)
    if report is None:
        raise ValueError(f"folded: fold_batch_norm_ must have been called on this {type(model).__name__}, it was not")
    return report


def _plan(
    name: str, norm: Any, model: nn.Module, watch: Watch, owners: dict[int, int], names: dict[nn.Module, str]
) -> tuple[FoldedNorm, Callable[[], None]]:
    try:
        call = the_call(norm, watch)
        try:
            steps = steps_behind(call, watch)
            made = thresholds(norm, call, steps)
        except Unfit:
            layer: Any = layer_before(norm, call, watch, owners)
        else:
            return _into_steps(name, norm, model, steps, made, names)
    except Unfit as unfit:
        return FoldedNorm(name, None, reason=str(unfit)), lambda: None

    def change() -> None:
        factor, summand = affine(norm)
        with torch.no_grad():
            bias = summand if layer.bias is None else summand + layer.bias.detach().double() * factor
            if isinstance(layer, QuantLayer):
                layer._fold(factor.to(norm.running_var.dtype), bias.to(norm.running_var.dtype))
            else:
                _write(layer, factor, bias)
        _replace(model, norm, nn.Identity())

    return FoldedNorm(name, "scale" if isinstance(layer, QuantLayer) else "weights", (names[layer],)), change


def _write(layer: Any, factor: torch.Tensor, bias: torch.Tensor) -> None:
    """Into the Parameters of a float layer, which stay the same objects."""
    weight = layer.weight
    weight.copy_(weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1)))
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(bias)


def _into_steps(
    name: str,
    norm: nn.Module,
    model: nn.Module,
    steps: list[Step],
    made: list[Any],
    names: dict[nn.Module, str],
) -> tuple[FoldedNorm, Callable[[], None]]:
    places = []
    for step in steps:
        quantizer: Any = step.quantizer
        places.append(names[quantizer] if step.layer is None else names[step.layer] + ".input_quantizer")

    def change() -> None:
        for step, threshold in zip(steps, made, strict=True):
            if step.layer is None:
                _replace(model, step.quantizer, threshold)
            else:
                step.layer.input_quantizer = threshold
            for module in step.between:
                _replace(model, module, nn.Identity())
        _replace(model, norm, nn.Identity())

    return FoldedNorm(name, "threshold", tuple(place.lstrip(".") for place in places)), change


def _replace(model: nn.Module, old: Any, new: nn.Module) -> None:
    """In every module that holds it, under every name."""
    new.train(old.training)
    for parent in model.modules():
        for key, held in parent._modules.items():
            if held is old:
                parent._modules[key] = new
