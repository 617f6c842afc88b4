"""The draw of k categories without replacement, k-hot, with a gradient."""

from __future__ import annotations

from torch import Generator, Tensor

from ste_ops._checks import check_logits, check_tau, is_integer
from ste_ops._functions.sampling.subset import Subset
from ste_ops._fx import call_node
from ste_ops._random import draw_seed


def subset_ste(logits: Tensor, k: int, tau: float | Tensor = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Draws k categories without replacement over the last dimension, k-hot, with the gradient of a relaxed draw.

    The k largest of logits plus Gumbel noise, whatever tau: the first is drawn from softmax(logits), each of the others
    from what is left. The gradient is that of p_1 + ... + p_k with p_j = softmax(a_j / tau), a_1 the logits plus the
    noise and a_{j+1} = a_j + log(1 - p_j); for k = 1 it is that of ``categorical_ste(logits, "gumbel", tau)``. It is a
    biased estimate, less so and more variable the smaller tau is. It takes time O(k n) for a row and memory O(n √k)
    for the rows that are worked on, and is computed in float32 (float64 for float64), where 1 - p is never formed by
    a difference that loses it.

    The backward is differentiable to any order in the incoming gradient and in logits, the draw held; that takes
    memory O(k n). Saved for the backward: logits and the seed. Randomness, ``torch.vmap`` and reproducibility as in
    `categorical_ste`.

    Args:
        logits: as in `categorical_ste`.
        k: from 1 to the number of categories above -inf.
        tau: the temperature of the gradient, in [1e-30, 1e30].
        generator: where the seed comes from, on logits' device; default: torch's default generator.

    Returns:
        Rows with k ones in logits' shape, dtype and memory layout.

    Raises:
        RuntimeError: on the CPU, a logit is NaN or +inf, or fewer than k of a row are above -inf; on CUDA such a row is
            NaN. Also of the generator, as in `categorical_ste`.
        TypeError: logits is no floating tensor of the dtypes of `categorical_ste`, k no int or tau no number.
        ValueError: logits has no dimension or no category, or k or tau is out of range.

    Source: Kool, van Hoof and Welling, arXiv:1903.06059, for the draw; Xie and Ermon, arXiv:1901.10517, for the
    gradient.

    Example:
        >>> import torch, ste_ops
        >>> logits = torch.tensor([50.0, 0.0, 40.0, -torch.inf], requires_grad=True)
        >>> draw = ste_ops.subset_ste(logits, 2)
        >>> draw.detach()
        tensor([1., 0., 1., 0.])
        >>> draw.sum().backward()
        >>> logits.grad.abs().max() < 1e-6  # the draws always sum to 2
        tensor(True)
    """
    if check_logits("subset_ste", logits):
        return call_node(subset_ste, locals())
    operator = "subset_ste"
    if not is_integer(k):
        raise TypeError(f"{operator}: k must be an int, got {type(k).__name__}")
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"{operator}: k must be in [1, {logits.shape[-1]}], the number of categories, got {k}")
    tau = check_tau(operator, tau)
    return Subset.apply(logits, draw_seed(operator, logits.device, generator), k, tau)
