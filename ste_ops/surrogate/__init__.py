"""The surrogates, which stand in for the derivative of a step in the backward.

`Identity` saves nothing for the backward, the masks `Clip` and `Rect` one bit an element, the curves and `Custom` x
itself, without a copy of it. A curve's own derivative comes in the second order; a third derivative with respect to x
raises. At NaN a curve's derivative is NaN, a mask decides by its comparison.

Fields that change while a net trains: under ``torch.compile`` a new number costs one more graph the first time it
changes and none after that. A field may also be a floating tensor of one element on x's device, changed in place or
replaced at every step: it is read when the step runs, on its device and without a synchronization, and costs no graph
at all. Its value is not checked.

Fields that are learned: a field that requires a gradient gets one. A step does not depend on its surrogate, so the
gradient is that of what stands in for it: s(x), the primitive whose derivative is s'(x) and which does not move with
the fields at x = 0. x gets grad ds/dx, and a field the sum over all of x of grad ds/dfield (`Surrogate.by_parameters`),
0 where that is 0; added in float64, in a fixed order and in the pass that makes the gradient of x. While a field is
learned the masks save x too. One number is learned for all of x, not one a channel; it may have the shape ``()``, or
``(1,)``, which ``fully_shard`` takes. Nothing keeps it above 0, where a negative one turns the surrogate around: learn
its logarithm, or clamp it after the step. In `ste_ops.nn.Heaviside`, `Sign` and `Ternary` a Parameter is the module's.

Example:
    >>> import torch, ste_ops
    >>> alpha = torch.tensor(2.0, requires_grad=True)
    >>> x = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    >>> ste_ops.heaviside(x, ste_ops.surrogate.ATan(alpha)).sum().backward()
    >>> alpha.grad
    tensor(0.1181)
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
