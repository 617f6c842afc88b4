"""The functions and classes that users call, family by family; every name here stands at the top of `ste_ops`."""

import ste_ops._functions.compiled.decompositions  # of which Inductor hears
from ste_ops.functional import binarize, clip, quantize, sampling
from ste_ops.functional.binarize import *
from ste_ops.functional.clip import *
from ste_ops.functional.quantize import *
from ste_ops.functional.quantize import round as round
from ste_ops.functional.sampling import *

__all__: list[str] = []
__all__ += binarize.__all__
__all__ += clip.__all__
__all__ += quantize.__all__
__all__ += sampling.__all__


def __dir__() -> list[str]:
    return sorted([*__all__, "round"])
