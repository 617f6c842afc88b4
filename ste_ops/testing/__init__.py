"""Checks for straight-through estimators, the ones here and your own.

`torch.autograd.gradcheck` cannot check a straight-through estimator (STE). It compares the backward with finite
differences of the forward; the forward is a step, whose differences are 0, and the backward is deliberately something
else. It fails on every STE where the gradient passes, with the identity as surrogate too, and passes where no gradient
does, whatever the backward should have been. What stands behind the backward is another function, and finite
differences of that say whether the backward is right:

- `check_ste` for elementwise ones: the surrogate's primitive, a function whose derivative is the surrogate;
- `check_gradients` for the others (learned scales, statistics, several inputs): a smooth stand-in for the operator;
- `gradcheck_suite`, and ``python -m ste_ops gradcheck``: both, over every operator, on a device of yours.

Two uses of gradcheck stay true: the backward is linear in its incoming gradient, so ``gradcheck(lambda g:
torch.autograd.grad(fn(x), x, g, create_graph=True)[0], g)`` must pass, and its gradgradcheck too. The check
``gradgradcheck`` does both.
"""

from ste_ops._names import show_public_names as _show_public_names
from ste_ops.testing._elementwise import SurrogateLike, check_ste
from ste_ops.testing._gradients import check_gradients
from ste_ops.testing._report import CHECKS, Report
from ste_ops.testing._suite import Result, Row, SuiteReport, gradcheck_suite
from ste_ops.testing._windows import IntegerWindow, Window

__all__ = [
    "CHECKS",
    "IntegerWindow",
    "Report",
    "Result",
    "Row",
    "SuiteReport",
    "SurrogateLike",
    "Window",
    "check_gradients",
    "check_ste",
    "gradcheck_suite",
]


_show_public_names(__name__)
