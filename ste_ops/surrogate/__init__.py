"""The surrogates, which stand in for the derivative of a step in the backward.

`Identity` saves nothing for the backward, the masks `Clip` and `Rect` one bit an element, the curves and `Custom` x
itself, without a copy of it. A curve's own derivative comes in the second order; a third derivative with respect to x
raises. At NaN a curve's derivative is NaN, a mask decides by its comparison.

Fields that change while a net trains: under ``torch.compile`` a curve's new number costs one more graph the first time
it changes and none after that. A curve's field may also be a 0-d floating tensor on x's device, changed in place or
replaced at every step: it is read when the step runs, on its device and without a synchronization, and costs no graph
at all. Such a tensor gets no gradient, and its value is not checked. The fields of the masks are numbers, and each new
one is a new graph.
"""

from ste_ops.surrogate import binary, masks, spiking
from ste_ops.surrogate.base import Surrogate
from ste_ops.surrogate.binary import *
from ste_ops.surrogate.custom import Custom
from ste_ops.surrogate.masks import *
from ste_ops.surrogate.spiking import *

__all__ = ["Custom", "Surrogate"]
__all__ += masks.__all__
__all__ += binary.__all__
__all__ += spiking.__all__
