"""Bits of the signs of tensors, and products of them as counts of differing bits."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ste_ops._checks import FLOATING, check_plain, check_tensor, is_number
from ste_ops._functions.binary_products import BinaryLinear
from ste_ops._functions.bits import PackBits, UnpackBits, packed_size
from ste_ops._fx import call_node
from ste_ops._library import ops

__all__ = ["binary_linear", "pack_bits", "unpack_bits"]


def _dim(operator: str, x: Tensor, dim: int) -> int:
    if not isinstance(dim, Integral) or isinstance(dim, bool):
        raise TypeError(f"{operator}: dim must be an int, got {dim!r}")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(f"{operator}: dim must be in [{-x.dim()}, {x.dim()}), got {dim}")
    return int(dim) % x.dim()


def pack_bits(x: Tensor, dim: int = -1) -> Tensor:
    """One bit for each number of x: 1 where x >= 0, as `sign` gives +1, and 0 elsewhere, also at NaN.

    Number i along `dim` is bit i % 8, from the lowest, of byte i // 8 along it; the spare bits of the last byte are 0.
    There is no gradient.

    Args:
        x: any shape with a dimension and any strides, float64, float32, bfloat16 or float16.
        dim: along which eight numbers become a byte.

    Returns:
        uint8, of x's shape with ceil(size / 8) along `dim`.

    Raises:
        TypeError: x is no floating tensor of those dtypes, or dim no int.
        IndexError: x has no such dimension.

    Source: the binary codes of XNOR-Net (Rastegari et al., arXiv:1603.05279, section 3.2).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.pack_bits(torch.tensor([0.5, -1.0, -0.0, 2.0, -3.0, -1.0, -1.0, -1.0, 1.0]))
        tensor([13,  1], dtype=torch.uint8)
    """
    if check_tensor("pack_bits", "x", x):
        return call_node(pack_bits, locals())
    check_plain("pack_bits", "x", x)
    return PackBits.apply(x, _dim("pack_bits", x, dim))


def unpack_bits(bits: Tensor, size: int, dim: int = -1, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `pack_bits` made of `size` numbers along a dimension, as +1 and -1.

    Args:
        bits: uint8, any strides.
        size: the numbers along `dim`, of which the bytes hold eight each.
        dim: the dimension that was packed.
        dtype: of the result: float64, float32, bfloat16 or float16.

    Returns:
        Bits' shape with `size` along `dim`, +1 for a 1 and -1 for a 0.

    Raises:
        TypeError: bits is no uint8 tensor, or dtype is none of those.
        ValueError: size does not fit the bytes.
        IndexError: bits has no such dimension.

    Source: as `pack_bits`.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.unpack_bits(torch.tensor([13, 1], dtype=torch.uint8), 9)
        tensor([ 1., -1.,  1.,  1., -1., -1., -1., -1.,  1.])
    """
    if isinstance(bits, torch.fx.Proxy):
        return call_node(unpack_bits, locals())
    if isinstance(bits, Tensor):
        check_plain("unpack_bits", "bits", bits)
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
        raise TypeError(f"unpack_bits: bits must be a uint8 tensor, got {getattr(bits, 'dtype', type(bits).__name__)}")
    if dtype not in FLOATING:
        raise TypeError(f"unpack_bits: dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    dim = _dim("unpack_bits", bits, dim)
    if packed_size(size) != bits.shape[dim] or size < 0:
        raise ValueError(
            f"unpack_bits: size must be what {bits.shape[dim]} bytes along dimension {dim} hold, got {size}"
        )
    return UnpackBits.apply(bits, size, dim, dtype)


def _check_operand(operator: str, name: str, x: Any) -> bool:
    """Floats or bits; True of a proxy of torch.fx."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        check_plain(operator, name, x)
        return False
    if isinstance(x, torch.fx.Proxy):
        return True
    if isinstance(x, Tensor) and x.dtype not in FLOATING:
        raise TypeError(f"{operator}: {name} must be floating, or uint8 of pack_bits, got {x.dtype}")
    check_tensor(operator, name, x)
    check_plain(operator, name, x)
    return False


def _numbers(operator: str, name: str, given: Any, x: Tensor, features: int, dtype: torch.dtype) -> Tensor | None:
    """scale or bias in the arithmetic of the output."""
    if given is None:
        return None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if is_number(given) and name == "scale":
        return torch.full((1,), given, dtype=wide, device=x.device)
    if isinstance(given, Tensor):
        check_plain(operator, name, given)
    if not isinstance(given, Tensor) or given.dtype not in FLOATING:
        kind = "a number or a floating tensor" if name == "scale" else "a floating tensor"
        raise TypeError(f"{operator}: {name} must be {kind}, got {getattr(given, 'dtype', type(given).__name__)}")
    if tuple(given.shape) != (features,) and not (name == "scale" and given.numel() == 1):
        beside = " or one element" if name == "scale" else ""
        raise ValueError(f"{operator}: {name} must have shape ({features},){beside}, got {tuple(given.shape)}")
    if given.device != x.device:
        raise ValueError(f"{operator}: {name} must be on {x.device} as x is, got {given.device}")
    return given.to(wide).contiguous()


def _output_dtype(operator: str, x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32 if x.dtype == torch.uint8 else x.dtype
    if dtype not in FLOATING:
        raise TypeError(f"{operator}: dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    return dtype


def _summed(operator: str, name: str, x: Tensor, dim: int, given: int | None, beside: int | None) -> int:
    """How many numbers a packed or unpacked dimension has; `beside` is what the other operand says."""
    if x.dtype != torch.uint8:
        return x.shape[dim]
    found = given if given is not None else beside
    if found is None:
        raise ValueError(f"{operator}: {name} must be given where both operands are packed")
    if packed_size(found) != x.shape[dim]:
        raise ValueError(f"{operator}: {name} must be what {x.shape[dim]} bytes hold, got {found}")
    return found


def binary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    in_features: int | None = None,
    step: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`torch.nn.functional.linear` at the signs of x and weight, times scale, plus bias: counted bits, no products.

    The sum of +1 and -1 is an integer, and below 2^24 it *equals* the float product in any order. It is multiplied by
    scale and then bias is added, in float32 (float64 for a result of float64), and the result is rounded once to its
    dtype.

    x and weight get the gradients of that product straight through the signs, scale and bias theirs; the backward
    keeps one bit for each number of x and weight, and is differentiable. Forward-mode tangents, ``torch.func`` and
    ``vmap`` compute the float product of the signs. The bits are counted by AVX-512, AVX2 or plain loops on the CPU,
    which ``STE_OPS_CPU_CAPABILITY`` (avx512, avx2, default) in the environment lowers, and by ``__popc`` on CUDA.

    Args:
        x: (*, in), floating, of which the sign counts, or uint8 of `pack_bits` along the last dimension; any strides.
        weight: (out, in), or (out, ceil(in / 8)) of bits.
        bias: (out,), or None.
        scale: a number, one element or (out,), or None for 1.
        in_features: the numbers of a row, needed where both are packed.
        step: reads x as `heaviside` does, 1 where x > 0 and 0 elsewhere; packed, a bit is that number.
        dtype: of the result; by default x's, float32 where x is packed.

    Returns:
        (*, out), contiguous.

    Raises:
        TypeError: an operand is neither floating nor uint8, or scale, bias or dtype no floating one.
        ValueError: shapes do not fit, or in_features is missing.

    Source: XNOR-Net (Rastegari et al., arXiv:1603.05279, section 3.2, equation 11).

    Example:
        >>> import torch, ste_ops
        >>> x, w = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.5, 0.5, 0.5], [-1.0, 1.0, -1.0]])
        >>> ste_ops.binary_linear(x, w)
        tensor([[ 1., -3.]])
        >>> ste_ops.binary_linear(ste_ops.pack_bits(x), ste_ops.pack_bits(w), in_features=3, scale=0.5)
        tensor([[ 0.5000, -1.5000]])
    """
    if _check_operand("binary_linear", "x", x) | _check_operand("binary_linear", "weight", weight):
        return call_node(binary_linear, locals())
    operator = "binary_linear"
    if x.dim() < 1 or weight.dim() != 2:
        shapes = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"{operator}: x must have shape (*, in) and weight (out, in), got {shapes}")
    of_x = None if x.dtype == torch.uint8 else x.shape[-1]
    numbers = _summed(operator, "in_features", weight, 1, in_features, of_x)
    if _summed(operator, "in_features", x, -1, in_features, numbers) != numbers or in_features not in (None, numbers):
        raise ValueError(
            f"{operator}: x, weight and in_features must agree, got {tuple(x.shape)}, {tuple(weight.shape)} and "
            f"{in_features}"
        )
    return linear_by_sizes(operator, x, weight, bias, scale, numbers, weight.shape[0], step, dtype)


def linear_by_sizes(
    operator: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float | Tensor | None,
    in_features: int,
    out_features: int,
    step: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`binary_linear`, of a weight that may be panels, which do not show their sizes."""
    dtype = _output_dtype(operator, x, dtype)
    if weight.device != x.device:
        raise ValueError(f"{operator}: weight must be on {x.device} as x is, got {weight.device}")
    scale, bias = (
        _numbers(operator, name, given, x, out_features, dtype) for name, given in (("scale", scale), ("bias", bias))
    )
    return BinaryLinear.apply(x, weight, scale, bias, in_features, out_features, bool(step), dtype)[0]


def weight_panels(weight: Tensor, channels: int, groups: int = 1) -> Tensor:
    """A weight, of numbers or of bits along dimension 1, as the products read it: for layers that run many times."""
    return ops.binary_panels(weight.detach(), channels, groups)
