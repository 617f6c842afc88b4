"""Functions and fake kernels of the categorical draw, for its three gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, recorded
from ste_ops._functions.sharding import Sharding, last_dim
from ste_ops._library import ops

STRAIGHT_THROUGH, GUMBEL, REINMAX = range(3)


@fake("categorical")
def _(logits: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(logits), logits.new_empty(logits.shape[:-1], dtype=torch.int64)


@fake("categorical_backward")
def _(grad: Tensor, logits: Tensor, seed: Tensor, index: Tensor, estimator: int, tau: float) -> Tensor:
    return torch.empty_like(logits)


@fake("gumbel_noise")
def _(logits: Tensor, seed: Tensor) -> Tensor:
    return logits.new_empty(logits.shape, dtype=wide(logits.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def by_seed(rows: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Batched logits as the kernels take them: contiguous, the first dimension that of the seeds."""
    seeds = seed.reshape(-1).contiguous()
    categories = rows.shape[-1]
    lead = rows.numel() // max(seeds.numel() * categories, 1)
    return rows.reshape(seeds.numel(), lead, categories).contiguous(), seeds


class GumbelNoise(NativeFunction):
    """The noise of a draw: constant, but known to vmap."""

    @staticmethod
    def forward(logits: Tensor, seed: Tensor) -> Tensor:
        return ops.gumbel_noise(logits, seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, None]:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *_: Tensor | None) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], logits: Tensor, seed: Tensor) -> tuple[Tensor, int]:
        logits, seed = batch_first(info, in_dims, logits, seed)
        return GumbelNoise.apply(*by_seed(logits, seed)).reshape(logits.shape), 0


@recorded("categorical")
class Categorical(NativeFunction):
    """One-hot forward. `forward(logits, seed, estimator, tau) -> (out, index)`; saves its tensors, and index where the
    gradient depends on the draw."""

    returns_more = True
    sharding = Sharding(whole=last_dim, seed=1)

    @staticmethod
    def forward(logits: Tensor, seed: Tensor, estimator: int, tau: float) -> tuple[Tensor, Tensor]:
        return ops.categorical(logits, seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, float], output: tuple[Tensor, Tensor]) -> None:
        logits, seed, ctx.estimator, ctx.tau = inputs
        index = seed if ctx.estimator == STRAIGHT_THROUGH else output[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, seed, index)
        ctx.save_for_forward(logits, seed, index)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, None, None, None]:
        return _pull(ctx, grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        return _pull(ctx, tangent), None  # the matrix is symmetric

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], logits: Tensor, seed: Tensor, *others: Any) -> Any:
        # A row of the batch is drawn as it would be alone: under its own seed, or all under the one seed.
        logits, seed = batch_first(info, in_dims, logits, seed)
        out, index = Categorical.apply(*by_seed(logits, seed), *others)
        return (out.reshape(logits.shape), index.reshape(logits.shape[:-1])), (0, 0)


def _pull(ctx: Any, grad: Tensor | None) -> Tensor | None:
    return None if grad is None else categorical_gradient(grad, *ctx.saved_tensors, ctx.estimator, ctx.tau)


def categorical_gradient(grad: Tensor, logits: Tensor, *how: Any) -> Tensor:
    """The estimator's matrix at these logits times grad; `how` is seed, index, estimator, tau."""
    recorded = needs_function(grad) or needs_function(logits)
    call = CategoricalBackward.apply if recorded else ops.categorical_backward
    return call(grad, logits, *how)


class CategoricalBackward(NativeFunction):
    """The gradient, linear in grad by a symmetric matrix of logits. What it is in logits is composed of torch's own
    operators, which autograd differentiates to any order."""

    @staticmethod
    def forward(grad: Tensor, logits: Tensor, seed: Tensor, index: Tensor, estimator: int, tau: float) -> Tensor:
        return ops.categorical_backward(grad, logits, seed, index, estimator, tau)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.estimator, ctx.tau = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> tuple[Tensor | None, ...]:
        of_grad = of_logits = None
        if upper is not None:
            grad, *others = ctx.saved_tensors
            if ctx.needs_input_grad[0]:
                of_grad = categorical_gradient(upper, *others, ctx.estimator, ctx.tau)
            if ctx.needs_input_grad[1]:
                of_logits = _second(upper, grad, *others, ctx.estimator, ctx.tau)
        return of_grad, of_logits, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_grad: Tensor | None, of_logits: Tensor | None, *_: None) -> Tensor | None:
        grad, *others = ctx.saved_tensors
        terms = []
        if of_grad is not None:
            terms.append(categorical_gradient(of_grad, *others, ctx.estimator, ctx.tau))
        if of_logits is not None:
            terms.append(_second_along(of_logits, grad, *others, ctx.estimator, ctx.tau))
        return sum(terms[1:], terms[0]) if terms else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        grad, logits, seed, index = batch_first(info, in_dims, *args[:4])
        rows, seeds = by_seed(logits, seed)
        if args[4] != STRAIGHT_THROUGH:
            index = index.reshape(rows.shape[:-1]).contiguous()
        out = CategoricalBackward.apply(grad.reshape(rows.shape), rows, seeds, index, *args[4:])
        return out.reshape(logits.shape), 0


def _times(p: Tensor, v: Tensor) -> Tensor:
    return (p * v).sum(-1, keepdim=True)


def _jacobian(p: Tensor, v: Tensor) -> Tensor:
    """J(p) v, what the softmax p makes of v."""
    return p * (v - _times(p, v))


def _softmaxes(
    logits: Tensor, seed: Tensor, index: Tensor, estimator: int, tau: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """q, and for reinmax the draw and the softmax at tau = 1."""
    x = logits.to(wide(logits.dtype))
    if estimator == GUMBEL:
        x = x - x.detach().amax(-1, keepdim=True) + GumbelNoise.apply(logits.detach(), seed)
    q = torch.softmax(x / tau, -1)
    if estimator != REINMAX:
        return q, None, None
    return q, torch.zeros_like(q).scatter(-1, index.unsqueeze(-1), 1.0), torch.softmax(x, -1)


def _second(upper: Tensor, grad: Tensor, logits: Tensor, seed: Tensor, index: Tensor, *how: Any) -> Tensor:
    """The derivative of <upper, M grad> in logits, M the estimator's matrix and the draw held. As <u, J(p) g> is
    <p, u g> - <p, u> <p, g>, its derivative in p is `of_p` below, and J(p) takes that to the logits of p."""
    q, drawn, p = _softmaxes(logits, seed, index, *how)
    tau = how[1]
    u, g = upper.to(q.dtype), grad.to(q.dtype)

    def of_p(p: Tensor) -> Tensor:
        return u * g - u * _times(p, g) - g * _times(p, u)

    if drawn is None or p is None:
        return (_jacobian(q, of_p(q)) / tau**2).to(logits.dtype)
    return (_jacobian(q, of_p((q + drawn) / 2)) / tau - _jacobian(p, of_p(p)) / 2).to(logits.dtype)


def _second_along(tangent: Tensor, grad: Tensor, logits: Tensor, seed: Tensor, index: Tensor, *how: Any) -> Tensor:
    """The derivative of M grad along a tangent of logits."""
    if how[0] != REINMAX:
        return _second(tangent, grad, logits, seed, index, *how)  # M is a Hessian
    q, drawn, p = _softmaxes(logits, seed, index, *how)
    assert drawn is not None
    assert p is not None
    t, g = tangent.to(q.dtype), grad.to(q.dtype)

    def change(p: Tensor, dp: Tensor) -> Tensor:
        return dp * (g - _times(p, g)) - p * _times(dp, g)

    first = change((q + drawn) / 2, _jacobian(q, t) / how[1])
    return (first - change(p, _jacobian(p, t)) / 2).to(logits.dtype)
