"""References of the binarizers, and of products of what they put out."""

from ste_ops.reference.binarize.convolutions import binary_conv1d, binary_conv2d
from ste_ops.reference.binarize.products import binary_linear, pack_bits, unpack_bits
from ste_ops.reference.binarize.steps import heaviside, sign, ternary

__all__ = [
    "binary_conv1d",
    "binary_conv2d",
    "binary_linear",
    "heaviside",
    "pack_bits",
    "sign",
    "ternary",
    "unpack_bits",
]
