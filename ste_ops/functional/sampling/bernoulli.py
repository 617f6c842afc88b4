"""The Bernoulli draw with a straight-through gradient."""

from __future__ import annotations

from torch import Generator, Tensor

from ste_ops._checks import check_tensor
from ste_ops._functions.sampling.bernoulli import Bernoulli
from ste_ops._fx import call_node
from ste_ops._random import draw_seed


def bernoulli_ste(p: Tensor, *, generator: Generator | None = None) -> Tensor:
    """Draws 1 with probability p and 0 otherwise; the gradient passes straight through to p.

    The gradient of p is the incoming gradient: an unbiased estimate where what follows is linear in the draw. Nothing
    is saved for the backward. The forward compares p with 64 random bits of its own, as integers: p = 0 never gives 1
    and p = 1 always does. The draw belongs to the element's place in memory. Under ``torch.vmap`` pass
    ``randomness="different"`` or ``"same"``.

    Args:
        p: any shape and strides, float64, float32, bfloat16 or float16, values in [0, 1].
        generator: where the seed comes from, on p's device; default: torch's default generator.

    Returns:
        Zeros and ones of p's shape, dtype and memory layout.

    Raises:
        RuntimeError: on the CPU, some p is not in [0, 1], as `torch.bernoulli` does; on CUDA, where the host would have
            to wait to know it, such an element gives NaN, and a later sampling operator on the device or
            `check_deferred_errors` raises the error. Also when the generator is on another device, or
            `torch.utils.checkpoint` computes a call with one again: it puts back torch's default generator alone.
        TypeError: p is no floating tensor of those dtypes.

    Source: the straight-through estimator of Bengio et al., arXiv:1308.3432.

    Example:
        >>> import torch, ste_ops
        >>> p = torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
        >>> ste_ops.bernoulli_ste(p).detach()
        tensor([0., 1., 1.])
        >>> ste_ops.bernoulli_ste(p).sum().backward()
        >>> p.grad
        tensor([1., 1., 1.])
    """
    if check_tensor("bernoulli_ste", "p", p):
        return call_node(bernoulli_ste, locals())
    return Bernoulli.apply(p, draw_seed("bernoulli_ste", p.device, generator))
