"""Resampling of particles: as many ancestors as wanted, with less variance than independent draws have."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from ste_ops._checks import as_weights, check_count
from ste_ops._library import ops
from ste_ops._random import draw_seed


def systematic_resample(weights: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """Ancestors by systematic resampling: one random number places num_samples equidistant points.

    With N = num_samples and p = weights / sum, ancestor k is the particle in whose stretch of the cumulative weights
    the point (k + u) / N lies, u uniform in [0, 1) and the same for all k. So particle i gets floor(N p_i) or
    ceil(N p_i) copies, and N p_i of them in expectation.

    Weights become integer masses before anything is summed (see `AliasTable`), and points and sums are compared as
    integers: the law above holds to 2^-60 of all weight for any number of particles, where float32 sums go astray past
    a million. A zero weight gets no copy. The same seed gives the same ancestors on every device and at any number of
    threads. `torch.vmap` takes it as it takes `multinomial`.

    Args:
        weights: shape [n] or [rows, n], not necessarily normalized; dtypes as in `multinomial`. Each row has its own u.
        num_samples: ancestors of each row, in [1, 2^40].
        generator: where the seed comes from, on the device of weights; default: torch's default generator.

    Returns:
        int64, shape [num_samples] or [rows, num_samples], ascending in each row. No gradient.

    Raises:
        ValueError: weights are empty, not 1-D or 2-D, or of another dtype; num_samples is out of range.
        RuntimeError: weights are negative, NaN, infinite or all zero in a row. On CUDA the ancestors of such a row are
            -1 and a later operator raises it, so that the host need not wait (`check_deferred_errors`). Also when the
            generator is on another device.
        TypeError: an argument is of the wrong type.

    Source: Kitagawa (1996), Journal of Computational and Graphical Statistics 5(1); Carpenter, Clifford and Fearnhead
    (1999), IEE Proceedings 146(1). Compared with others by Douc and Cappé (2005), arXiv:cs/0507025.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.systematic_resample(torch.tensor([0.5, 0.0, 0.25, 0.25]), 8)
        tensor([0, 0, 0, 0, 2, 2, 3, 3])
    """
    return _resample("systematic_resample", ops.systematic_resample, weights, num_samples, generator)


def stratified_resample(weights: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """Ancestors by stratified resampling: one random point in each of num_samples equal strata.

    As `systematic_resample`, with an independent uniform u_k for every point (k + u_k) / N. Particle i gets N p_i
    copies in expectation, and always more than N p_i - 2 and fewer than N p_i + 2: the points of the strata that lie
    within its stretch of the cumulative weights, and perhaps those of the two that it shares with its neighbours.

    Args:
        weights: shape [n] or [rows, n], not necessarily normalized; dtypes as in `multinomial`.
        num_samples: ancestors of each row, in [1, 2^40].
        generator: where the seed comes from, on the device of weights; default: torch's default generator.

    Returns:
        int64, shape [num_samples] or [rows, num_samples], ascending in each row. No gradient.

    Raises:
        ValueError, RuntimeError, TypeError: as `systematic_resample`.

    Source: Kitagawa (1996), Journal of Computational and Graphical Statistics 5(1); Douc and Cappé (2005),
    arXiv:cs/0507025.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.stratified_resample(torch.tensor([[1.0, 3.0], [1.0, 0.0]]), 4)
        tensor([[0, 1, 1, 1],
                [0, 0, 0, 0]])
    """
    return _resample("stratified_resample", ops.stratified_resample, weights, num_samples, generator)


def residual_resample(weights: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """Ancestors by residual resampling: floor(N p_i) copies of every particle, and draws for the rest.

    With N = num_samples and p = weights / sum, particle i is first copied floor(N p_i) times. The R ancestors that are
    missing are independent draws, particle i with probability (N p_i - floor(N p_i)) / R. So it gets N p_i copies in
    expectation and floor(N p_i) at least. Copies and residues are exact integers, as in `systematic_resample`.

    Args:
        weights: shape [n] or [rows, n], not necessarily normalized; dtypes as in `multinomial`.
        num_samples: ancestors of each row, in [1, 2^40].
        generator: where the seed comes from, on the device of weights; default: torch's default generator.

    Returns:
        int64, shape [num_samples] or [rows, num_samples]: in each row the copies, ascending, and then the draws. No
        gradient.

    Raises:
        ValueError, RuntimeError, TypeError: as `systematic_resample`.

    Source: Liu and Chen (1998), Journal of the American Statistical Association 93(443); Douc and Cappé (2005),
    arXiv:cs/0507025.

    Example:
        >>> import torch, ste_ops
        >>> drawn = ste_ops.residual_resample(torch.tensor([0.6, 0.4]), 4)
        >>> drawn[:3]  # 2.4 and 1.6 copies expected; the last one is drawn
        tensor([0, 0, 1])
    """
    return _resample("residual_resample", ops.residual_resample, weights, num_samples, generator)


def _resample(
    operator: str,
    native: Callable[[Tensor, Tensor, int], Tensor],
    weights: Tensor,
    num_samples: int,
    generator: Generator | None,
) -> Tensor:
    values = as_weights(operator, weights, ValueError)
    check_count(operator, "num_samples", num_samples, 1, ValueError)
    return native(values, draw_seed(operator, values.device, generator), num_samples)
