"""Functions and fake kernels of the draw of k out of n."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, recorded
from ste_ops._functions.sampling.categorical import GumbelNoise, by_seed, wide
from ste_ops._functions.sharding import Sharding, last_dim
from ste_ops._library import ops


@fake("subset")
def _(logits: Tensor, seed: Tensor, k: int) -> Tensor:
    return torch.empty_like(logits)


@fake("subset_backward")
def _(grad: Tensor, logits: Tensor, seed: Tensor, k: int, tau: float) -> Tensor:
    return torch.empty_like(logits)


@recorded("subset")
class Subset(NativeFunction):
    """k-hot forward. `forward(logits, seed, k, tau) -> out`; saves its tensors."""

    sharding = Sharding(whole=last_dim, seed=1)

    @staticmethod
    def forward(logits: Tensor, seed: Tensor, k: int, tau: float) -> Tensor:
        return ops.subset(logits, seed, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, float], output: Tensor) -> None:
        logits, seed, ctx.k, ctx.tau = inputs
        ctx.save_for_backward(logits, seed)
        ctx.save_for_forward(logits, seed)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        gradient = None if grad is None else subset_gradient(grad, *ctx.saved_tensors, ctx.k, ctx.tau)
        return gradient, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        if tangent is None:
            return None
        logits, seed = ctx.saved_tensors
        return _forward_mode(logits, tangent, seed, ctx.k, ctx.tau).to(logits.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], logits: Tensor, seed: Tensor, *others: Any) -> Any:
        logits, seed = batch_first(info, in_dims, logits, seed)
        return Subset.apply(*by_seed(logits, seed), *others).reshape(logits.shape), 0


def subset_gradient(grad: Tensor, logits: Tensor, *how: Any) -> Tensor:
    """The transposed Jacobian of the relaxed draw times grad; `how` is seed, k, tau."""
    call = SubsetBackward.apply if needs_function(grad) or needs_function(logits) else ops.subset_backward
    return call(grad, logits, *how)


class SubsetBackward(NativeFunction):
    """The gradient. Its own derivatives are composed of torch's operators, to any order."""

    @staticmethod
    def forward(grad: Tensor, logits: Tensor, seed: Tensor, k: int, tau: float) -> Tensor:
        return ops.subset_backward(grad, logits, seed, k, tau)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, logits, seed, ctx.k, ctx.tau = inputs
        ctx.save_for_backward(grad, logits, seed)
        ctx.save_for_forward(grad, logits, seed)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> tuple[Tensor | None, ...]:
        of_grad = of_logits = None
        if upper is not None:
            grad, logits, seed = ctx.saved_tensors
            if ctx.needs_input_grad[0]:
                of_grad = _forward_mode(logits, upper, seed, ctx.k, ctx.tau).to(grad.dtype)
            if ctx.needs_input_grad[1]:
                of_logits = _second(upper, grad, logits, seed, ctx.k, ctx.tau)
        return of_grad, of_logits, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_grad: Tensor | None, of_logits: Tensor | None, *_: None) -> Tensor | None:
        grad, logits, seed = ctx.saved_tensors
        terms = []
        if of_grad is not None:
            terms.append(subset_gradient(of_grad, logits, seed, ctx.k, ctx.tau))
        if of_logits is not None:
            # <upper, J'(logits)[of_logits] grad> is bilinear and symmetric: the Hessian of <grad, relaxed>.
            terms.append(_second(of_logits, grad, logits, seed, ctx.k, ctx.tau))
        return sum(terms[1:], terms[0]) if terms else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        grad, logits, seed = batch_first(info, in_dims, *args[:3])
        rows, seeds = by_seed(logits, seed)
        return SubsetBackward.apply(grad.reshape(rows.shape), rows, seeds, *args[3:]).reshape(logits.shape), 0


def _keys(logits: Tensor, seed: Tensor) -> Tensor:
    x = logits.to(wide(logits.dtype))
    return x - x.detach().amax(-1, keepdim=True) + GumbelNoise.apply(logits.detach(), seed)


def _steps(a: Tensor, k: int, tau: float) -> list[tuple[Tensor, Tensor]]:
    """Of every softmax p, and log(1 - p): of its largest as the logarithm of what the others sum to."""
    steps = []
    for _ in range(k):
        z = a / tau
        top = torch.zeros_like(z, dtype=torch.bool).scatter(-1, z.detach().argmax(-1, keepdim=True), True)
        log_total = z.logsumexp(-1, keepdim=True)
        p = (z - log_total).exp()
        log_rest = z.masked_fill(top, -torch.inf).logsumexp(-1, keepdim=True)
        left = torch.where(top, log_rest - log_total, torch.log1p(-p.masked_fill(top, 0.0)))
        steps.append((p, left))
        a = a + left
    return steps


def relaxed_subset(keys: Tensor, k: int, tau: float) -> Tensor:
    """The relaxed k-hot vector: the sum of k softmaxes, each without what those before it took."""
    steps = _steps(keys, k, tau) if k < keys.shape[-1] else _steps(keys, k - 1, tau)
    total = sum((p for p, _ in steps[1:]), steps[0][0]) if steps else torch.zeros_like(keys)
    if k == keys.shape[-1]:
        a = sum((left for _, left in steps), keys)
        total = total + torch.softmax(a / tau, -1)
    return total


def _forward_mode(logits: Tensor, tangent: Tensor, seed: Tensor, k: int, tau: float) -> Tensor:
    keys = _keys(logits, seed)
    return _along(lambda at: relaxed_subset(at, k, tau), keys, tangent.to(keys.dtype))


def _along(f: Any, at: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of f at `at` along the tangent, as the derivative of the backward in its incoming gradient."""
    out, pull = torch.func.vjp(f, at)  # type: ignore[misc]
    return torch.func.vjp(lambda grad: pull(grad)[0], torch.zeros_like(out))[1](tangent)[0]


def _second(upper: Tensor, grad: Tensor, logits: Tensor, seed: Tensor, k: int, tau: float) -> Tensor:
    """The Hessian of <grad, relaxed> in logits, times upper."""
    keys = _keys(logits, seed)
    incoming = grad.to(keys.dtype)

    def pulled(at: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: relaxed_subset(x, k, tau), at)[1](incoming)[0]

    return torch.func.vjp(pulled, keys)[1](upper.to(keys.dtype))[0].to(logits.dtype)
