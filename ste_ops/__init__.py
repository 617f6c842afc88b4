"""Native straight-through estimators, gradient clipping and weighted sampling for PyTorch."""

__version__ = "0.1.0"

from ste_ops import reference, surrogate
from ste_ops._library import build_info
from ste_ops.binarize import heaviside, sign

__all__ = ["__version__", "build_info", "heaviside", "reference", "sign", "surrogate"]
