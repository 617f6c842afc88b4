"""The categorical draw, one-hot, with a gradient."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Generator, Tensor

from ste_ops._checks import check_logits, check_tau
from ste_ops._functions.sampling.categorical import Categorical
from ste_ops._fx import call_node
from ste_ops._random import draw_seed

Estimator: TypeAlias = Literal["straight_through", "gumbel", "reinmax"]
ESTIMATORS = ("straight_through", "gumbel", "reinmax")


def categorical_ste(
    logits: Tensor,
    estimator: Estimator = "straight_through",
    tau: float | Tensor = 1.0,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Draws a one-hot vector from softmax(logits) over the last dimension, with the gradient of an estimator.

    The draw is the largest of logits plus Gumbel noise, whatever estimator and tau, so one seed gives one draw under
    all of them. Every row is drawn in float32 (float64 for float64), its largest logit taken off first, and the noise
    is bounded: logits of any size give no infinity. The gradient, with J(p) v = p (v - <p, v>), q = softmax(logits /
    tau) and D the draw:

    - ``"straight_through"``: J(q) / tau times the incoming one. At tau = 1 an unbiased estimate where what follows is
      linear in the draw.
    - ``"gumbel"``: J(softmax((logits + noise) / tau)) / tau, the noise computed anew from the seed. That of the
      expectation of the relaxed draw: less biased and more variable the smaller tau is.
    - ``"reinmax"``: 2 J((q + D) / 2) - J(softmax(logits)) / 2. At tau = 1 unbiased where what follows is quadratic in
      the draw. tau >= 1 is recommended, which trades bias for variance.

    The backward is differentiable to any order in the incoming gradient and in logits, the draw held. Saved for it:
    logits and the seed, for ``"gumbel"`` and ``"reinmax"`` also the category of every row. The noise belongs to the
    element's place in row-major order. Under ``torch.vmap`` pass ``randomness="different"`` or ``"same"``. The draws
    and gradients have the same bits at any number of threads.

    Args:
        logits: any shape with at least one dimension and one category, and any strides; float64, float32, bfloat16 or
            float16. A category of -inf is never drawn and has gradient 0.
        estimator: one of those above.
        tau: the temperature, in [1e-30, 1e30].
        generator: where the seed comes from, on logits' device; default: torch's default generator.

    Returns:
        One-hot rows in logits' shape, dtype and memory layout.

    Raises:
        RuntimeError: on the CPU, a logit is NaN or +inf, or all of a row are -inf; on CUDA, where the host would have
            to wait to know it, that row and its gradient are NaN. Also when the generator is on another device, or
            `torch.utils.checkpoint` computes a call with one again: it puts back torch's default generator alone.
        TypeError: logits is no floating tensor of those dtypes, or tau no number.
        ValueError: logits has no dimension or no category, the estimator is none of those or tau is out of range.

    Source: Bengio et al., arXiv:1308.3432; Jang, Gu and Poole, arXiv:1611.01144; Maddison, Mnih and Teh,
    arXiv:1611.00712; Liu et al., "Bridging Discrete and Backpropagation", arXiv:2304.08612 (algorithm 2).

    Example:
        >>> import torch, ste_ops
        >>> logits = torch.tensor([0.0, 50.0, -torch.inf], requires_grad=True)
        >>> draw = ste_ops.categorical_ste(logits, "reinmax")
        >>> draw.detach()
        tensor([0., 1., 0.])
        >>> (draw * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        >>> logits.grad[2]
        tensor(0.)
    """
    if check_logits("categorical_ste", logits):
        return call_node(categorical_ste, locals())
    operator = "categorical_ste"
    if estimator not in ESTIMATORS:
        raise ValueError(f"{operator}: estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    tau = check_tau(operator, tau)
    seed = draw_seed(operator, logits.device, generator)
    return Categorical.apply(logits, seed, ESTIMATORS.index(estimator), tau)[0]
