"""The pure-Python reference of every operator: slow, obvious, and what decides NaN, zeros, bounds and ties.

The same names and signatures as `ste_ops`, in plain torch operations.
"""

from ste_ops._names import show_public_names as _show_public_names
from ste_ops.reference import binarize, clip, quantize, sampling
from ste_ops.reference.binarize import *
from ste_ops.reference.clip import *
from ste_ops.reference.quantize import *
from ste_ops.reference.quantize import round as round
from ste_ops.reference.sampling import *

__all__: list[str] = []
__all__ += binarize.__all__
__all__ += clip.__all__
__all__ += quantize.__all__
__all__ += sampling.__all__


def __dir__() -> list[str]:
    return sorted([*__all__, "round"])


_show_public_names(__name__)
