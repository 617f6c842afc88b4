"""Category indices drawn in proportion to weights, as `torch.multinomial`."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ste_ops._library import ops
from ste_ops.sampling._checks import as_weights, check_count, draw_seed, refuse_invalid
from ste_ops.sampling.inverse_cdf import few


def multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Draws category indices in proportion to weights, as `torch.multinomial`, without its limit of 2^24 categories.

    A zero weight is never drawn, no positive weight is lost however small it is beside the others, and the same seed
    gives the same draws on every device and at any number of threads. With replacement an alias table is built and
    drawn from, unless num_samples * 128 <= n: draws so few come from the inverse of the summed masses, in two passes
    over the weights and without a table. To draw more than once from the same weights, keep an `AliasTable`. Without
    replacement, every category gets an exponential key and the least num_samples of them are drawn, in the order in
    which one draw after the other would take them.

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
            is < 1 or too large; the generator is on another device. The values of weights are checked where the host
            can see them: on CUDA and inside a compiled graph, where that would wait for the device, every draw of an
            invalid row, and every draw that no category is left for, is -1 instead. `AliasTable` checks everywhere.
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
    values = as_weights(operator, weights, RuntimeError)
    check_count(operator, "num_samples", num_samples, 1, RuntimeError)
    seed = draw_seed(operator, values.device, generator)
    check = values.device.type == "cpu" and not torch.compiler.is_compiling()
    if not replacement:
        return _without_replacement(operator, values, seed, num_samples, check)
    if few(values.shape[-1], num_samples):
        draws, total = ops.inverse_cdf_sample(values, seed, num_samples)
        if check:
            refuse_invalid(operator, values, total, RuntimeError)
        return draws
    table, capacity = ops.alias_table(values)
    if check:
        refuse_invalid(operator, values, capacity, RuntimeError)
    return ops.alias_sample(table, capacity, seed, 0, num_samples)


def _without_replacement(operator: str, weights: Tensor, seed: Tensor, num_samples: int, check: bool) -> Tensor:
    if num_samples > weights.shape[-1]:
        raise RuntimeError(
            f"{operator}: num_samples must be at most {weights.shape[-1]}, the number of weights, without replacement, "
            f"got {num_samples}"
        )
    keys, positive = ops.exponential_keys(weights, seed)
    if check:
        refuse_invalid(operator, weights, positive, RuntimeError)
        fewest = int(positive.amin()) if positive.numel() else num_samples
        if num_samples > fewest:
            raise RuntimeError(
                f"{operator}: num_samples must be at most {fewest}, the number of positive weights"
                f"{'' if weights.dim() == 1 else ' in a row'}, without replacement, got {num_samples}"
            )
    least, drawn = torch.topk(keys, num_samples, largest=False)
    usable = (least < float("inf")) & (positive > 0).unsqueeze(-1)
    return torch.where(usable, drawn, -1)
