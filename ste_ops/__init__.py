"""Native straight-through estimators, gradient clipping and weighted sampling for PyTorch."""

__version__ = "0.1.0"

from ste_ops import data, reference, surrogate
from ste_ops._library import build_info
from ste_ops.binarize import heaviside, sign
from ste_ops.sampling import AliasTable, bernoulli_ste, multinomial

__all__ = [
    "AliasTable",
    "__version__",
    "bernoulli_ste",
    "build_info",
    "data",
    "heaviside",
    "multinomial",
    "reference",
    "sign",
    "surrogate",
]
