"""The operations that a recomputed model runs once more: the same numbers come out of the same input, fast.

What is not here is kept as autograd keeps it: products, reductions, draws, attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ste_ops._torch import schema_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """`output` is the place of the tensor among what the operation returns, None where it returns one.

    ``product`` marks a layer's own operation, which runs again for binary inputs alone, and ``windows`` a max-pool,
    whose second tensor holds indices. What ``widens`` may take less memory than what comes out.
    """

    function: Callable[..., Any]
    output: int | None = None
    arguments: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    product: bool = False
    inplace: bool = False
    windows: bool = False
    widens: bool = False


# Elementwise. Those in place run again as the one that returns a tensor.
_ELEMENTWISE = (
    "relu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu softplus mish threshold _prelu_kernel "
    "neg abs exp log log1p expm1 sqrt rsqrt reciprocal sin cos erf pow clamp clamp_min clamp_max maximum minimum "
    "add sub mul div rsub where clone _to_copy"
)
_MADE_OF_SOME = (
    "cat constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"
)
_NORMS = "native_layer_norm native_group_norm _fused_rms_norm max_pool2d_with_indices"
# Their fourth and fifth arguments are running statistics, which move once: in training they are left out.
_BATCH_NORMS = "native_batch_norm cudnn_batch_norm miopen_batch_norm"
_PRODUCTS = "convolution addmm mm"
_COUNTED = "binary_linear binary_conv2d"
_OURS = (
    "sign heaviside heaviside_from_zero ternary xnor_weight magnitude_aware_sign dorefa_weight dorefa_activation lsq "
    "lsq_masked lsq_plus lsq_plus_masked pact fake_quantize bitnet_activation bitnet_weight clamp round floor ceil "
    "trunc stochastic_round sr_ste"
)
# The backward of these reads sizes and strides of what they saved first, and no number.
_SHAPE_ONLY = "max_pool2d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"


def _without_running_statistics(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*args[:3], None, None, *args[5:]) if args[5] else args


@functools.cache
def rule_of(function: Any) -> Rule | None:
    """What to do to have the output of an operation once more; None where it is not done."""
    namespace, name, overload = str(function).split(".")
    if namespace == "ste_ops":
        if name in _COUNTED.split():
            return Rule(function, product=True)
        several = len(schema_of(function).returns) > 1
        return Rule(function, 0 if several else None) if name in _OURS.split() else None
    if namespace != "aten":
        return None
    mutates = schema_of(function).is_mutable
    if name in _BATCH_NORMS.split():
        return Rule(function, 0, _without_running_statistics)
    if name in _NORMS.split():
        return Rule(function, 0, windows=name.startswith("max_pool"))
    if name in _PRODUCTS.split() and overload == "default":
        return Rule(function, product=True)
    if not mutates:
        runs = name in _ELEMENTWISE.split() or name in _MADE_OF_SOME.split()
        return Rule(function, widens=name == "_to_copy") if runs else None
    returns = _that_returns(function, name) if name.endswith("_") and name[:-1] in _ELEMENTWISE.split() else None
    return None if returns is None else Rule(returns, inplace=True)


def _that_returns(function: Any, name: str) -> Any:
    """The operation that takes the same as one in place; as overloads the two may have other names."""
    taken = _arguments(function)
    packet = getattr(aten, name[:-1])
    return next((each for each in (getattr(packet, o) for o in packet.overloads()) if _arguments(each) == taken), None)


def _arguments(function: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in schema_of(function).arguments]


@functools.cache
def _name(function: Any) -> str:
    return str(str(function).split(".")[1])


@functools.cache
def _written(function: Any) -> tuple[tuple[int, str], ...]:
    arguments = enumerate(schema_of(function).arguments)
    if _name(function) in _BATCH_NORMS.split():
        return (3, "running_mean"), (4, "running_var")  # of which their schemas say nothing
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments that an operation writes to."""
    if _name(function) in _BATCH_NORMS.split() and not args[5]:
        return  # which takes them as they are
    for place, name in _written(function):
        given = args[place] if place < len(args) else kwargs.get(name)
        for x in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(x, Tensor):
                yield x


def _reads_shape_only(function: Any) -> bool:
    namespace, name, _ = str(function).split(".")
    return namespace == "aten" and name in _SHAPE_ONLY.split()


class Known(NamedTuple):
    """An operation, and whether its backward reads of its input the sizes alone, and whether it writes to something."""

    function: Any
    rule: Rule | None
    reads_shape_only: bool
    writes: bool


_known: dict[int, Known] = {}


def known(function: Any) -> Known:
    """By identity: to hash an operation takes longer than all else that is asked of most."""
    found = _known.get(id(function))
    if found is None:
        found = Known(function, rule_of(function), _reads_shape_only(function), bool(_written(function)))
        _known[id(function)] = found
    return found
