"""Quantization switched off and on, and scales held, over a whole model while it trains."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn.layers import QuantLayer
from ste_ops.nn.quantizer import Quantizer

_Model = TypeVar("_Model", bound=nn.Module)


def disable_quantization(model: _Model) -> _Model:
    """Makes every quantizer of a model pass its input on as it is, until `enable_quantization`.

    For a delayed start (some epochs in float), or a look at the float model. `FakeQuantize` with `momentum` follows
    what it sees meanwhile. A scale that was found otherwise, and not given or frozen, is found again when quantization
    starts after training without it: of weights from the weights, of inputs from the next batch or by `calibrate`,
    which several processes need. Where the model only evaluated meanwhile, scales stay. The `state_dict` keeps it for
    `LSQ`, `LSQPlus` and `FakeQuantize`; call this again after loading where there are other quantizers.

    Args:
        model: any module, also a quantizer or a layer itself.

    Returns:
        model.

    Raises:
        ValueError: the model has no quantizer, or a layer has a function as one (`ste_ops.sign`), which cannot be
            disabled; its module (`Sign`) can.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.randn(3, 4)
        >>> layer = torch.nn.Linear(4, 2)
        >>> expected = layer(x)
        >>> layer = ste_ops.nn.quantize_(layer, weight=ste_ops.nn.LSQ(2), input=ste_ops.nn.Sign())
        >>> torch.equal(ste_ops.nn.disable_quantization(layer)(x), expected)
        True
        >>> torch.equal(ste_ops.nn.enable_quantization(layer)(x), expected)
        False
    """
    for quantizer in _quantizers("disable_quantization", model):
        quantizer.disable()
    return model


def enable_quantization(model: _Model) -> _Model:
    """Makes every quantizer of a model quantize, as they do from the beginning; see `disable_quantization`.

    Args:
        model: as there.

    Returns:
        model.

    Raises:
        ValueError: as there.

    Example:
        >>> import torch, ste_ops
        >>> sign = ste_ops.nn.disable_quantization(ste_ops.nn.Sign())
        >>> sign.enabled, ste_ops.nn.enable_quantization(sign).enabled
        (False, True)
    """
    for quantizer in _quantizers("enable_quantization", model):
        quantizer.enable()
    return model


def freeze_scales(model: _Model) -> _Model:
    """Holds every scale of a model, of `LSQ`, `LSQPlus` and `FakeQuantize`, until `unfreeze_scales`.

    Learned steps get no gradient, and moving averages stay. One that is not set yet is found once. The `state_dict`
    keeps it.

    Args:
        model: any module, also a quantizer or a layer itself.

    Returns:
        model.

    Raises:
        ValueError: the model has no quantizer with a scale.

    Example:
        >>> import torch, ste_ops
        >>> lsq = ste_ops.nn.freeze_scales(ste_ops.nn.LSQ(4, scale=0.5))
        >>> lsq(torch.randn(5, requires_grad=True)).sum().backward()
        >>> lsq.scale.grad is None
        True
    """
    for quantizer in _with_scale("freeze_scales", model):
        quantizer.freeze()
    return model


def unfreeze_scales(model: _Model) -> _Model:
    """Lets every scale of a model be learned, or follow what it sees, again; see `freeze_scales`.

    Args:
        model: as there.

    Returns:
        model.

    Raises:
        ValueError: as there.

    Example:
        >>> import ste_ops
        >>> lsq = ste_ops.nn.freeze_scales(ste_ops.nn.LSQ(4))
        >>> ste_ops.nn.unfreeze_scales(lsq).frozen
        False
    """
    for quantizer in _with_scale("unfreeze_scales", model):
        quantizer.unfreeze()
    return model


def _quantizers(function: str, model: nn.Module) -> list[Quantizer]:
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer):
            for key in ("weight_quantizer", "input_quantizer"):
                quantizer = getattr(layer, key)
                if quantizer is not None and not isinstance(quantizer, nn.Module):
                    raise ValueError(
                        f"{function}: {name or 'the model'} has the function "
                        f"{getattr(quantizer, '__name__', repr(quantizer))} as {key}; a module is expected, which can "
                        "be disabled"
                    )
    found = [module for module in model.modules() if isinstance(module, Quantizer)]
    if not found:
        raise ValueError(f"{function}: model must hold a quantizer of ste_ops.nn, got none")
    return found


def _with_scale(function: str, model: nn.Module) -> list[UniformQuantizer]:
    found = [module for module in model.modules() if isinstance(module, UniformQuantizer)]
    if not found:
        raise ValueError(f"{function}: model must hold a quantizer with a scale, LSQ or FakeQuantize, got none")
    return found
