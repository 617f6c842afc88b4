"""Category indices drawn in proportion to weights, as `torch.multinomial`."""

from __future__ import annotations

from torch import Generator, Tensor

from ste_ops._checks import as_weights, check_count
from ste_ops._library import ops
from ste_ops._random import draw_seed
from ste_ops.functional.sampling import _direct


def multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Draws category indices in proportion to weights, as `torch.multinomial`, without its limit of 2^24 categories.

    A zero weight is never drawn, no positive weight is lost however small it is beside the others, and the same seed
    gives the same draws on every device and at any number of threads. With replacement an alias table is built and
    drawn from, unless the draws are few: up to n / 8, up to n / 2 where n <= 1024, and up to 16 of any n come from the
    inverse of the summed masses, without a table. To draw more than once from the same weights, keep an
    `AliasTable`. Without replacement, every category gets an exponential key and the least num_samples of them are
    drawn, in the order in which one draw after the other would take them.

    Under `torch.vmap` a batch is more rows with randomness="different"; with "same" each of it draws what it would draw
    alone, and with "error", the default, the call is refused. Errors count the rows of a batch from its first sample.

    Args:
        weights: shape [n] or [rows, n]; float64, float32, bfloat16, float16, an integer dtype or bool. Integers are
            read as float64: above 2^53 they round to nearest, by less than 2^-53 of themselves. They need not sum to
            one. At most 2^36 categories.
        num_samples: draws from each row, > 0; without replacement at most the number of positive weights.
        replacement: whether a category may be drawn again.
        generator: where the seed comes from, on the device of weights; default: torch's default generator.

    Returns:
        int64, shape [num_samples] or [rows, num_samples], on weights' device. No gradient.

    Raises:
        RuntimeError: weights are negative, NaN, infinite or all zero in a row, empty, or not 1-D or 2-D; num_samples
            is < 1 or too large; the generator is on another device. On CUDA the host does not wait to know the values:
            every draw of an invalid row, and every draw that no category is left for, is -1, and a later sampling
            operator on the device, or `check_deferred_errors`, raises the error. `AliasTable` checks at once.
        TypeError: an argument is of the wrong type.

    Source: Walker's alias method (1977), built by the sweep of Hübschle-Schneider and Sanders (ESA 2019); exponential
    keys of Efraimidis and Spirakis (2006); Philox (Salmon et al., SC'11).

    Example:
        >>> import torch, ste_ops
        >>> _ = torch.manual_seed(0)
        >>> draws = ste_ops.multinomial(torch.tensor([0.0, 3.0, 1.0]), 10000, replacement=True)
        >>> torch.bincount(draws, minlength=3).div(10000).mul(100).round()
        tensor([ 0., 75., 25.])
    """
    operator = "multinomial"
    if replacement:
        drawn = _direct.with_replacement(weights, num_samples, generator)
        if drawn is not None:
            return drawn
    values = as_weights(operator, weights, RuntimeError)
    check_count(operator, "num_samples", num_samples, 1, RuntimeError)
    seed = draw_seed(operator, values.device, generator)
    if not replacement:
        return _without_replacement(operator, values, seed, num_samples)
    return ops.multinomial_with_replacement(values, seed, num_samples)


def _without_replacement(operator: str, weights: Tensor, seed: Tensor, num_samples: int) -> Tensor:
    if num_samples > weights.shape[-1]:
        raise RuntimeError(
            f"{operator}: num_samples must be at most {weights.shape[-1]}, the number of weights, without replacement, "
            f"got {num_samples}"
        )
    return ops.multinomial_without_replacement(weights, seed, num_samples, operator)
