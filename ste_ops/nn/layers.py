"""Torch's linear and convolution layers on quantized weights and inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._fx import one_node
from ste_ops.nn import _binary, _kept, _tape
from ste_ops.nn._first_batch import FirstBatch
from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn._quantized_class import QUANTIZED, become, check_float
from ste_ops.nn._tensor_parallel import became_distributed, distribute_quantizers
from ste_ops.nn.binarize import say_place
from ste_ops.nn.codes import Codes, codes_of
from ste_ops.nn.quantizer import function_of

Quantize = Callable[[Tensor], Tensor]
"""A layer takes these as quantizers: a module, or a function such as `ste_ops.sign`."""

_Layer = TypeVar("_Layer", bound="QuantLayer")


class QuantLayer(nn.Module):
    """Base of the four layers: it holds the quantizers, and makes a quantized layer of a float one.

    Both quantizers may be assigned anew, a module or a function or None, as at construction. A weight that is loaded
    without the scale of its quantizer, as of a float checkpoint (``load_state_dict(..., strict=False)``), sets it anew;
    a scale of the inputs that is not loaded stays, and a warning says which.
    """

    weight: Tensor
    weight_quantizer: Quantize | None
    input_quantizer: Quantize | None
    output_scale: Tensor
    output_bias: Tensor
    _folded = False  # whether these two hold a norm that stood behind the layer
    _sign_input: FirstBatch | None = None  # where the input quantizer is the function `sign`, which keeps no state

    def __init__(
        self,
        *args: Any,
        weight_quantizer: Quantize | None = None,
        input_quantizer: Quantize | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._attach(weight_quantizer, input_quantizer)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("weight_quantizer", "input_quantizer"):
            if name == "weight":
                self._refuse_fusion()
            super().__setattr__(name, value)
            return
        check_quantizer(type(self).__name__, name, value)
        self._modules.pop(name, None)  # torch takes no function in a module's place
        super().__setattr__(name, value)
        if name == "weight_quantizer":
            fit_to(value, self)
        else:
            self._input_is("the input quantizer of a " + type(self).__name__)

    def _refuse_fusion(self) -> None:
        """Of torch's `fuse_conv_bn_eval` and `fuse_linear_bn_eval`: nothing else tells of them."""
        if sys._getframe(2).f_globals.get("__name__") == "torch.nn.utils.fusion" and (
            self._folded or self.weight_quantizer is not None
        ):
            raise TypeError(
                f"{type(self).__name__}: torch would multiply the norm into the float weight, which is quantized "
                "afterwards; ste_ops.nn.fold_batch_norm_(model, *example_inputs) folds it into the output"
            )

    def _input_is(self, place: str) -> None:
        """Says what a sign of the input stands in, which is for its warning."""
        quantizer = self.input_quantizer
        self._sign_input = FirstBatch(place) if function_of(quantizer) is functional.sign else None
        say_place(quantizer, place)

    def _attach(self, weight_quantizer: Quantize | None, input_quantizer: Quantize | None) -> None:
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        modules = super().named_modules(memo, prefix, remove_duplicate)
        weight = self._parameters.get("weight")
        for name, module in modules:
            yield name, module
            if module is self and became_distributed(self, weight):
                distribute_quantizers(self)
                return

    @classmethod
    def from_float(
        cls: type[_Layer],
        layer: nn.Module,
        weight_quantizer: Quantize | None = None,
        input_quantizer: Quantize | None = None,
    ) -> _Layer:
        """A quantized layer on the same Parameter objects, so that an optimizer made before still moves them.

        Hooks, buffers, parametrizations and the training flag come along; `layer` stays as it is.

        Raises:
            TypeError: layer is neither of the class that this one derives from nor of a subclass with the same
                ``forward``.
        """
        check_float(cls.__name__, layer, cls)
        copy = type(layer).__new__(type(layer))
        # The dicts of parameters, buffers, submodules and hooks are the copy's own; what is in them is shared.
        copy.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in layer.__dict__.items()}
        become(copy)
        quantized: Any = copy
        quantized._attach(weight_quantizer, input_quantizer)
        return quantized

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, quantizer in self._modules.items():
            if isinstance(quantizer, UniformQuantizer) and name in ("weight_quantizer", "input_quantizer"):
                quantizer._left_out(self, state_dict, prefix, name, missing_keys=args[2])

    def quantized_weight(self) -> Tensor:
        """The weights that the layer computes with."""
        quantizer = self._quantizer("weight_quantizer")
        return self.weight if quantizer is None else quantizer(self.weight)

    def weight_codes(self) -> Codes:
        """The integers of the weights that the layer computes with, and their scale and zero point, as `Codes`.

        Raises:
            TypeError: the layer has no weight quantizer, or one that does not put out integers times a scale, as
                `SRSTE`, or whose weights are computed otherwise.
            RuntimeError: the scale of the weights is not set yet.
            ValueError: the quantizer is disabled, or a weight is NaN or infinite.

        Example:
            >>> import torch, ste_ops
            >>> layer = ste_ops.nn.QuantLinear(3, 2, weight_quantizer=ste_ops.nn.XNORWeight())
            >>> codes = layer.weight_codes()
            >>> codes.bits, codes.scale.shape, codes.values.abs().unique()
            (1, torch.Size([2, 1]), tensor([1], dtype=torch.int8))
        """
        caller = f"{type(self).__name__}.weight_codes"
        quantizer = self._quantizer("weight_quantizer")
        if quantizer is None or not self._quantizes_by_quantizer:
            got = "none" if quantizer is None else "a quantized_weight of its own"
            raise TypeError(f"{caller}: the layer must have a weight quantizer that makes its weights, got {got}")
        if isinstance(quantizer, UniformQuantizer) and not quantizer._settled and not self.weight.is_meta:
            with torch.no_grad():
                quantizer(self.weight)  # its first use, which finds the scale
        return codes_of(caller, quantizer, self.weight)

    def input_codes(self, x: Tensor) -> Codes:
        """The integers that the layer makes of an input, and their scale and zero point, as `Codes`.

        Raises: as `weight_codes`, of the input quantizer.

        Example:
            >>> import torch, ste_ops
            >>> layer = ste_ops.nn.QuantLinear(3, 2, input_quantizer=ste_ops.nn.PACT(1.5, bits=2))
            >>> layer.input_codes(torch.tensor([0.2, 0.6, 9.0])).values
            tensor([0, 1, 3], dtype=torch.int8)
        """
        caller = f"{type(self).__name__}.input_codes"
        quantizer = self._quantizer("input_quantizer")
        if quantizer is None:
            raise TypeError(f"{caller}: the layer must have an input quantizer, got none")
        return codes_of(caller, quantizer, x)

    def _quantizer(self, name: str) -> Quantize | None:
        """That attribute, which `nn.Module` looks for in several places where it is a module."""
        module: Any = self._modules.get(name)
        return getattr(self, name) if module is None else module

    def _computed(self, x: Tensor, compute: Callable[[Tensor, Tensor], Tensor], padded: bool = False) -> Tensor:
        """`compute` of the quantized input and weight; `padded` where it pads with what is in the input."""
        out = self._of_quantized(x, compute, padded)
        return self._scaled(out) if self._folded else out

    def _scaled(self, out: Tensor) -> Tensor:
        """What `fold_batch_norm_` made of a norm behind the layer; channels are last of what is linear."""
        behind = len(getattr(self, "kernel_size", ()))
        shape = (-1, *[1] * behind)
        scale, bias = self.output_scale.reshape(shape), self.output_bias.reshape(shape)
        return torch.addcmul(bias, out, scale).to(out.dtype)

    def _fold(self, scale: Tensor, bias: Tensor) -> None:
        """From now on the output is multiplied by scale, channel by channel, and bias added in the place of its own."""
        self.register_buffer("output_scale", scale)
        self.register_buffer("output_bias", bias)
        self.register_parameter("bias", None)
        self._folded = True

    def _of_quantized(self, x: Tensor, compute: Callable[[Tensor, Tensor], Tensor], padded: bool) -> Tensor:
        if _kept.keeps(self, x):
            return _kept.apply(self, x, compute, padded)
        tape = _tape.current()
        if tape is not None and (self.input_quantizer is not None or self.weight_quantizer is not None):
            return tape.layer(self, x, compute, padded)
        return compute(self._quantized_input(x), self.quantized_weight())

    @property
    def _quantizes_by_quantizer(self) -> bool:
        """Whether the quantized weight is what the quantizer makes of the weight."""
        return type(self).quantized_weight is QuantLayer.quantized_weight and "quantized_weight" not in vars(self)

    def _uses(self, x: Tensor) -> int:
        """For about how many outputs each element of the weight is used: rows, or places of a convolution."""
        layer: Any = self
        inputs = layer.in_channels * math.prod(layer.stride) if hasattr(layer, "stride") else layer.in_features
        return x.numel() // max(int(inputs), 1)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product, by counted bits where both are signs."""
        layer: Any = self
        return _binary.product(layer, x, weight, layer._conv_forward)

    def _quantized_input(self, x: Tensor) -> Tensor:
        if self._sign_input is not None:
            self._sign_input.look(self, x, "sign")
        quantizer = self._quantizer("input_quantizer")
        return x if quantizer is None else quantizer(x)

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        for key in ("weight_quantizer", "input_quantizer"):
            quantizer = getattr(self, key)
            if quantizer is not None and not isinstance(quantizer, nn.Module):  # modules are shown as submodules
                parts.append(f"{key}={getattr(quantizer, '__qualname__', repr(quantizer))}")
        return ", ".join(parts)


class QuantLinear(QuantLayer, nn.Linear):
    """`torch.nn.Linear` on quantized weights and inputs, which are the float ones wherever no quantizer is given.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        weight_quantizer: a module or a function that takes the weights (out_features, in_features) and returns as many;
            None leaves them as they are.
        input_quantizer: the same for the input, of shape (*, in_features).

    Shapes: (*, in_features) to (*, out_features). The bias is added as it is. Gradients reach weights and input through
    their quantizers. A quantizer that is a module becomes a submodule, its parameters and buffers with it; the same
    module in two layers shares them.

    For the backward the layer keeps codes of its quantized input, 1, 2, 4 or 8 bits an element, or nothing where the
    scale is learned, and nothing of its quantized weight, whose quantizer runs once more. A weight that is changed in
    place before the backward is refused, and a scale that is not learned. docs/memory.md says where floats are kept
    instead.

    Under `torch.distributed.tensor.parallel` the quantizers follow the weight: a scale for each channel along a sharded
    dimension is sharded with it, anything else is on every rank, and the numbers are those of one process.

    Raises:
        TypeError: a quantizer is neither callable nor None, or is a class.

    Example:
        >>> import torch, ste_ops
        >>> lsq = ste_ops.nn.LSQ(2, axis=0)
        >>> layer = ste_ops.nn.QuantLinear(3, 2, weight_quantizer=lsq, input_quantizer=ste_ops.sign)
        >>> layer
        QuantLinear(
          in_features=3, out_features=2, bias=True, input_quantizer=sign
          (weight_quantizer): LSQ(bits=2, signed=True, axis=0)
        )
        >>> layer(torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        return self._computed(input, self._product)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return _binary.product(self, x, weight, nn.functional.linear)


class QuantConv1d(QuantLayer, nn.Conv1d):
    """`torch.nn.Conv1d` on quantized weights and inputs; see `QuantConv2d`.

    Example:
        >>> import torch, ste_ops
        >>> layer = ste_ops.nn.QuantConv1d(2, 4, 3, weight_quantizer=ste_ops.nn.DoReFaWeight(2))
        >>> layer(torch.randn(1, 2, 8)).shape
        torch.Size([1, 4, 6])
    """

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        return self._computed(input, self._product, self.padding_mode != "zeros")


class QuantConv2d(QuantLayer, nn.Conv2d):
    """`torch.nn.Conv2d` on quantized weights and inputs.

    The input is quantized before it is padded. Zero padding therefore puts zeros between the -1 and +1 of a binary
    input, a third value that a binary kernel has to treat apart; `padding_mode` ``"replicate"``, ``"reflect"`` or
    ``"circular"`` pads with quantized values, and so does `torch.nn.ConstantPad2d` before a layer with ``padding=0``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            in `torch.nn.Conv2d`.
        weight_quantizer: a module or a function that takes the weights and returns as many, of shape (out_channels,
            in_channels / groups, *kernel_size); None leaves them as they are.
        input_quantizer: the same for the input.

    Shapes, bias, gradients, sharing and errors as in `torch.nn.Conv2d` and `QuantLinear`.

    Example:
        >>> import torch, ste_ops
        >>> sign = ste_ops.nn.Sign()
        >>> layer = ste_ops.nn.QuantConv2d(1, 4, 3, bias=False, weight_quantizer=sign, input_quantizer=sign)
        >>> layer
        QuantConv2d(
          1, 4, kernel_size=(3, 3), stride=(1, 1), bias=False
          (weight_quantizer): Sign(Clip(threshold=1.0))
          (input_quantizer): Sign(Clip(threshold=1.0))
        )
        >>> layer.quantized_weight().unique().detach()
        tensor([-1.,  1.])
    """

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        return self._computed(input, self._product, self.padding_mode != "zeros")


class QuantConv3d(QuantLayer, nn.Conv3d):
    """`torch.nn.Conv3d` on quantized weights and inputs; see `QuantConv2d`.

    Example:
        >>> import torch, ste_ops
        >>> layer = ste_ops.nn.QuantConv3d(1, 2, 3, padding=1, weight_quantizer=ste_ops.nn.XNORWeight())
        >>> layer(torch.randn(1, 1, 4, 4, 4)).shape
        torch.Size([1, 2, 4, 4, 4])
    """

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        return self._computed(input, self._product, self.padding_mode != "zeros")


def fit_to(quantizer: Quantize | None, layer: nn.Module, name: str = "weight") -> None:
    """Tells a quantizer with a scale which weight it is for."""
    if isinstance(quantizer, UniformQuantizer):
        quantizer._attach_to(layer, name)


def is_operator(function: Any) -> bool:
    """Whether it is an operator or a surrogate of ste_ops, also with arguments set: none of them takes a layer."""
    return str(getattr(function_of(function), "__module__", "")).split(".")[0] == __name__.split(".")[0]


def check_quantizer(name: str, argument: str, quantizer: object) -> None:
    if isinstance(quantizer, type):
        raise TypeError(
            f"{name}: {argument} must be a module, a function or None, got the class {quantizer.__name__}; "
            f"an instance is expected, as {quantizer.__name__}(...)"
        )
    if quantizer is not None and not callable(quantizer):
        raise TypeError(f"{name}: {argument} must be a module, a function or None, got {quantizer!r}")


QUANTIZED.update(
    {
        nn.Linear: QuantLinear,
        nn.Conv1d: QuantConv1d,
        nn.Conv2d: QuantConv2d,
        nn.Conv3d: QuantConv3d,
    }
)
