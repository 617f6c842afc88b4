"""Into what a batch norm folds: the layer that made its input, or the steps that take its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ste_ops import functional
from ste_ops._torch import has_forward_hooks
from ste_ops.functional.quantize._law import bound
from ste_ops.functional.quantize._threshold import found
from ste_ops.nn._quantized_class import float_class, layer_of, unquantized_class
from ste_ops.nn._watch import Call, Taker, Watch, has_memory
from ste_ops.nn.binarize import Heaviside, Sign
from ste_ops.nn.layers import QuantLayer
from ste_ops.nn.quantizer import is_as_written
from ste_ops.nn.threshold import ChannelThreshold

_STEPS = (functional.sign, functional.heaviside)
# Of these the output does not fall where the input rises, in every arithmetic, and they have no channels of their own.
_RISING = (nn.Hardtanh, nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Step:
    """A step behind a norm: the module that stands for itself, or the layer whose input quantizer it is."""

    layer: QuantLayer | None
    quantizer: Any
    between: tuple[nn.Module, ...]  # what runs between the norm and it

    @property
    def operator(self) -> Callable[[Tensor], Tensor]:
        held = self.quantizer
        operator: Any = held._operator() if isinstance(held, (Sign, Heaviside)) else bound(held)
        return lambda x: operator[0](x, **operator[1])  # type: ignore[no-any-return]


class Unfit(Exception):
    """Why a norm does not fold; the reason is its message."""


def step_of(quantizer: Any) -> bool:
    if isinstance(quantizer, (Sign, Heaviside)):
        return type(quantizer) in (Sign, Heaviside) and is_as_written(quantizer) and quantizer.enabled
    return not isinstance(quantizer, nn.Module) and bound(quantizer)[0] in _STEPS


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel, in float64."""
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    factor = factor if norm.weight is None else factor * norm.weight.detach().double()
    return factor, (0.0 if norm.bias is None else norm.bias.detach().double()) - norm.running_mean.double() * factor


def the_call(norm: Any, watch: Watch) -> Call:
    """The one call of a norm that is nothing but its affine map."""
    calls = watch.of(norm)
    if norm.training:
        raise Unfit("is in training mode")
    if norm.running_mean is None or norm.running_var is None:
        raise Unfit("uses the statistics of each batch")
    if has_forward_hooks(norm) or "forward" in vars(norm) or is_parametrized(norm):
        raise Unfit("has hooks, parametrizations or a forward of its own")
    if len(calls) != 1 or calls[0].made is None:
        raise Unfit(f"runs {len(calls)} times in a forward" if calls else "does not run with these inputs")
    held = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if not all(bool(p.isfinite().all()) for p in held if p is not None):
        raise Unfit("holds a NaN or an infinity")
    return calls[0]


def layer_before(norm: Any, call: Call, watch: Watch, owners: dict[int, int]) -> nn.Module:
    """The layer whose output the norm takes, and nobody else."""
    makers = list(watch.makers(call.given))
    maker = next((made for made in makers if _is_layer(made.module)), None)
    if maker is None or maker.made is None:
        raise Unfit("follows no Linear, Conv1d, Conv2d or Conv3d" if makers else "takes what no module made")
    layer: Any = maker.module
    name = type(layer).__name__
    others = [taker for taker in maker.takers if taker.modules[-1] is not norm]
    if others or maker.made.data_ptr() in watch.outputs or _memory(maker.made) in watch.outputs:
        raise Unfit(f"the output of its {name} goes to {_name(others[0]) if others else 'the output of the model'} too")
    if len(watch.of(layer)) != 1:
        raise Unfit(f"its {name} runs {len(watch.of(layer))} times in a forward")
    if has_forward_hooks(layer) or "forward" in vars(layer) or layer.training:
        raise Unfit(f"its {name} has hooks or a forward of its own, or is in training mode")
    dims = 2 + (len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0)
    if maker.made.dim() != dims or maker.made.shape[1] != norm.num_features:
        raise Unfit(f"its channels are not those of its {name}")
    if isinstance(layer, QuantLayer):
        if layer._folded:
            raise Unfit(f"its {name} holds a norm already")
    else:
        held = layer._parameters.get("weight"), layer._parameters.get("bias")
        if is_parametrized(layer) or held[0] is None or any(owners.get(id(p), 0) > 1 for p in held if p is not None):
            raise Unfit(f"the weight of its {name} is computed, or another module's too")
        if not has_memory(held[0]):
            raise Unfit(f"the weight of its {name} is of {type(held[0]).__name__}, and not of floats")
    return layer  # type: ignore[no-any-return]


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, QuantLayer):
        return unquantized_class(float_class(module)) is not None
    return layer_of(float_class(module)) is not None


def steps_behind(call: Call, watch: Watch, between: tuple[nn.Module, ...] = ()) -> list[Step]:
    """The steps that take what a norm made; raises where anything else does."""
    if call.made is None or _memory(call.made) in watch.outputs:
        raise Unfit("is an output of the model")
    if not call.takers:
        raise Unfit("nothing takes its output")
    steps: list[Step] = []
    for taker in call.takers:
        inner = taker.modules[-1]
        outer = taker.modules[-2] if len(taker.modules) > 1 else None
        of_inner: Any = getattr(inner, "input_quantizer", None)
        if type(inner) in _RISING and inner not in between:
            steps += _behind_rising(inner, watch, between)
        elif isinstance(outer, QuantLayer) and outer.input_quantizer is inner and step_of(inner):
            steps.append(Step(outer, inner, between))
        elif isinstance(inner, QuantLayer) and step_of(of_inner):
            steps.append(Step(inner, of_inner, between))
        elif step_of(inner):
            steps.append(Step(None, inner, between))
        else:
            raise Unfit(f"its output goes to {_name(taker)}")
    unique = {(id(step.layer), id(step.quantizer)): step for step in steps}
    for step in unique.values():
        module: Any = step.quantizer if step.layer is None else step.layer
        if len(watch.of(module)) != 1 or (step.layer is not None and unquantized_class(float_class(module)) is None):
            raise Unfit(f"the {type(module).__name__} behind it runs more than once, or has a class of its own")
    return list(unique.values())


def _behind_rising(module: nn.Module, watch: Watch, between: tuple[nn.Module, ...]) -> list[Step]:
    calls, name = watch.of(module), type(module).__name__
    if len(calls) != 1 or has_forward_hooks(module):
        raise Unfit(f"the {name} behind it runs more than once, or has hooks")
    if getattr(module, "inplace", False):
        raise Unfit(f"the {name} behind it writes in place")
    return steps_behind(calls[0], watch, (*between, module))


def thresholds(norm: nn.Module, call: Call, steps: list[Step]) -> list[ChannelThreshold]:
    """For each step the comparison that norm and step are, on every float."""
    x = call.given
    if not _is_dense(x):
        raise Unfit("its input has gaps in memory, where torch rounds a norm otherwise")
    shape = (1, -1, *[1] * (x.dim() - 2))
    made = []
    for step in steps:

        def stepped(x: Tensor, step: Step = step) -> Tensor:
            x = norm(x)
            for module in step.between:
                x = module(x)
            return step.operator(x)

        with torch.no_grad():
            channels = x.new_zeros(x.shape[1])
            pair = found(lambda values: (stepped(values.reshape(shape)) == 1).reshape(-1), channels)
            of_layer: Any = step.quantizer
            low = -1 if bound(of_layer)[0] is functional.sign or isinstance(of_layer, Sign) else 0
            made.append(ChannelThreshold(pair[0], pair[1], low).train(norm.training))
            if not torch.equal(made[-1](x), stepped(x)):
                raise Unfit("torch rounds it otherwise than channel by channel")
    return made


def owners_of(model: nn.Module) -> dict[int, int]:
    """In how many modules a parameter stands."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return counts


def _is_dense(x: Tensor) -> bool:
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.is_contiguous() or (x.dim() in layouts and x.is_contiguous(memory_format=layouts[x.dim()]))


def _name(taker: Taker) -> str:
    operation = taker.operation.removesuffix(".default")
    return f"{operation} in {type(taker.modules[-1]).__name__}" if taker.modules else operation


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
