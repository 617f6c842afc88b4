"""Draws in what torch.utils.checkpoint computes again: the same bits, or a refusal of a generator that went on."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import ste_ops
from ste_ops.nn import StochasticRound

DRAWS = {
    "stochastic_round": lambda x, g: ste_ops.stochastic_round(x, generator=g),
    "StochasticRound": lambda x, g: StochasticRound(g)(x),
    "bernoulli_ste": lambda x, g: ste_ops.bernoulli_ste(x.sigmoid(), generator=g),
    "categorical_ste": lambda x, g: ste_ops.categorical_ste(x, "gumbel", generator=g),
    "subset_ste": lambda x, g: ste_ops.subset_ste(x, 3, generator=g),
    "multinomial": lambda x, g: x * ste_ops.multinomial(x.detach().exp(), 16, True, generator=g),
}


def selective():
    def policy(context, operator, *args, **kwargs):
        ours = "ste_ops" in str(operator)
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


HOW = {
    "reentrant": {"use_reentrant": True},
    "not reentrant": {"use_reentrant": False},
    "selective": {"use_reentrant": False, "context_fn": selective},
}


def weighed(draw, generator=None):
    """What comes after the draw depends on it, so that another draw gives another gradient."""

    def loss(x):
        y = draw(x, generator)
        return (y * y * x + y).sum()

    return loss


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", DRAWS)
def test_the_default_generator_draws_the_same_again(device, name, how):
    x = torch.randn(4, 16, device=device, requires_grad=True)
    loss = weighed(DRAWS[name])
    torch.manual_seed(3)
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.manual_seed(3)
    checkpoint(loss, x, **HOW[how]).backward()
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_that_went_on_is_refused(device, name, how):
    generator = torch.Generator(device).manual_seed(3)
    x = torch.randn(4, 16, device=device, requires_grad=True)
    out = checkpoint(weighed(DRAWS[name], generator), x, **HOW[how])
    operator = "stochastic_round" if name == "StochasticRound" else name
    with pytest.raises(RuntimeError, match=rf"{operator}: generator must be None in what torch\.utils\.checkpoint"):
        out.backward()


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_draw_in_a_backward_is_no_repetition(device, create_graph):
    """Low-bit training rounds gradients at random, in hooks and in Functions, beside what is checkpointed too."""
    generator = torch.Generator(device).manual_seed(3)

    class RoundedGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return ste_ops.stochastic_round(grad, generator=generator)

    x = torch.randn(50, device=device, requires_grad=True)
    y = RoundedGradient.apply(x)
    y.register_hook(lambda grad: ste_ops.stochastic_round(grad * 3, generator=generator))
    checkpoint(lambda y: y.square().sum(), y, use_reentrant=False).backward(create_graph=create_graph)
    assert torch.equal(x.grad, x.grad.round())
    assert x.grad.unique().numel() > 3
