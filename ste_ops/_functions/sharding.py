"""What a Function says of the places where the elements of a `DTensor` lie; `distributed.py` obeys it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def no_dims(*args: Any) -> Collection[int]:
    return ()


def last_dim(x: Tensor, *others: Any) -> Collection[int]:
    return range(x.dim())[-1:]


@dataclass(frozen=True)
class Sharding:
    """What a Function of (x, ...) needs of the places where the elements of x lie.

    The default is that of an elementwise one: any part is quantized by itself, once summands are added up.

    Args:
        whole: takes the arguments and gives the dimensions of x along which elements depend on each other. Where x is
            sharded along one of them, it is gathered, and the result is cut again.
        alike: how many tensors, x the first, have x's shape.
        parameters: how many tensors after those have one element, or one for each coordinate along an axis.
        axis: the place of that axis among the arguments; None if there is none.
        seed: the place of a seed among the arguments. Copies draw the same and parts draw apart.
        complete: takes the arguments and gives them with what the parts could not know.
        passes: whether the gradient of x is the incoming one, so that x is gathered for the value alone.
        direct: whether the Function is nothing but torch's own operators in the forward, and sees to its backward.
    """

    whole: Callable[..., Collection[int]] = no_dims
    alike: int = 1
    parameters: int = 0
    axis: int | None = None
    seed: int | None = None
    complete: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    passes: bool = False
    direct: bool = False
