"""A recomputed model has the gradients of the model as it was."""

from __future__ import annotations

import copy
import os
import pickle
import warnings

import pytest
import torch
from support.kept import assert_equal, kept_bytes
from support.random_nets import random_net
from support.recomputed import NETS, made, trained
from torch import nn
from torch.utils.checkpoint import checkpoint

import ste_ops
from ste_ops.nn import (
    _tape,
    recompute_,
    recomputed,
)
from ste_ops.nn._cells import Recipe

pytestmark = pytest.mark.usefixtures("of_any_tensor")


COUNT = int(os.environ.get("STE_OPS_FUZZ", 24))


@pytest.mark.parametrize("seed", range(COUNT))
def test_random_nets(floats, seed):
    net, x = random_net(seed)
    recomputed = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs and of empty batches
        expected = floats(lambda: trained(net, x, seed % 4 == 0))
        assert_equal(trained(net, x, seed % 4 == 0), expected)
        recompute_(recomputed, x)
        assert_equal(trained(recomputed, x, seed % 4 == 0), expected)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("mode", ["train", "eval", "frozen norms", "autocast", "channels_last", "float64", "frozen"])
def test_nets(floats, name, mode):
    net, x = made(name, torch.float64 if mode == "float64" else torch.float32)
    net.train(mode != "eval")
    for module in net.modules():
        if mode == "frozen norms" and "Norm" in type(module).__name__:
            module.eval()
    if mode == "frozen":  # the first half is not trained
        for parameter in [*net.parameters()][: len([*net.parameters()]) // 2]:
            parameter.requires_grad_(False)
    if mode == "channels_last" and x.dim() == 4:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def call(of):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            return trained(of, x, mode == "float64" and name != "transformer")

    expected = floats(lambda: call(net))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    assert recompute_(net, x) is net
    assert torch.equal(torch.get_rng_state(), random)
    assert_equal([*net.state_dict().values()], [*before.values()])
    assert_equal(call(net), expected)


def test_accumulated_gradients_and_a_backward_that_runs_twice():
    net, x = made("lsq_resnet")
    twin = recompute_(copy.deepcopy(net), x)
    for one in (net, twin):
        losses = [one(part).square().mean() for part in (x, x + 1, x * 2)]
        for loss in losses:
            loss.backward(retain_graph=loss is losses[1])
        losses[1].backward()
        with pytest.raises(RuntimeError, match="second time"):
            losses[1].backward()
    assert_equal([p.grad for p in twin.parameters()], [p.grad for p in net.parameters()])


def test_checkpoints_around_and_within():
    net, x = made("lsq_resnet")

    class Within(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            for i, part in enumerate(self.net):
                x = checkpoint(part, x, use_reentrant=False) if i == 5 else part(x)
            return x

    def gradients(call, of):
        copied, own = copy.deepcopy(of), x.detach().requires_grad_()
        call(copied, own).square().mean().backward()
        return [own.grad, *(p.grad for p in copied.parameters())]

    expected = gradients(lambda net, x: net(x), net)
    within = recompute_(Within(copy.deepcopy(net)), x)
    assert_equal(gradients(lambda net, x: net(x), within), expected)
    recompute_(net, x)
    for reentrant in (False, True):
        around = gradients(lambda net, x: checkpoint(net, x, use_reentrant=reentrant), net)  # noqa: B023
        assert_equal(around, expected)
    with torch.autograd.graph.save_on_cpu():
        assert_equal(gradients(lambda net, x: net(x), net), expected)


def test_transforms_compilers_and_tracers_see_the_model_as_it_was():
    net, x = made("bireal")
    net.eval()
    twin = recompute_(copy.deepcopy(net), x)
    parameters = dict(net.named_parameters())

    def loss(of):
        return lambda parameters, x: torch.func.functional_call(of, parameters, (x,)).square().mean()

    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f), (None, 0))):
        batch = x if transform is torch.func.grad else x[:, None]
        expected = transform(loss(net))(parameters, batch)
        assert_equal([*transform(loss(twin))(parameters, batch).values()], [*expected.values()])
    tangents = {name: torch.ones_like(p) for name, p in parameters.items()}
    expected = torch.func.jvp(lambda p: loss(net)(p, x), (parameters,), (tangents,))
    assert_equal(torch.func.jvp(lambda p: loss(twin)(p, x), (parameters,), (tangents,)), expected)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(net(x).square().mean(), [*net.parameters()])
    assert_equal(torch.autograd.grad(compiled(x).square().mean(), [*twin.parameters()]), expected)
    with torch.no_grad():
        assert_equal([torch.export.export(twin, (x,)).module()(x)], [net(x)])
        assert_equal([torch.jit.trace(twin, x)(x)], [net(x)])


def test_copies_and_pickles_record_too():
    net, x = made("lsq_resnet")
    recompute_(net, x)
    kept = kept_bytes(net, x)
    restored = pickle.loads(pickle.dumps(net))
    assert kept_bytes(restored, x) == kept_bytes(copy.deepcopy(net), x) == kept
    assert len(recomputed(restored)) == len(recomputed(net)) > 0
    recompute_(net, x)
    assert len(net._forward_hooks) == len(net._forward_pre_hooks) == 1


def test_an_error_in_the_forward_leaves_nothing_behind():
    class Fails(nn.Module):
        def forward(self, x):
            if x.shape[0] == 1:
                raise KeyError("of the model")
            return (x * x).relu()

    net, x = Fails(), torch.randn(3, 4, requires_grad=True)
    recompute_(net, x)
    hook = nn.modules.module.register_module_forward_pre_hook(lambda *_: {}["before it"])
    with pytest.raises(KeyError, match="before it"), warnings.catch_warnings(action="error"):
        net(x)
    hook.remove()
    for _ in range(2):
        with pytest.raises(KeyError, match="of the model"):
            net(x[:1])
    assert _tape.current() is None
    assert ste_ops._torch.keeps_saved_tensors()
    net(x).sum().backward()


def test_arguments():
    net, x = made("vgg")
    with pytest.raises(TypeError, match=r"recompute_: model must be a torch.nn.Module, got function"):
        recompute_(lambda x: x, x)
    with pytest.raises(TypeError, match="recompute_: example_inputs must be what the model is called with, got none"):
        recompute_(net)
    with pytest.raises(ValueError, match="recomputed: recompute_ must have been called on this Sequential"):
        recomputed(net)
    with pytest.raises(RuntimeError, match="recompute_: it must be called where nothing records or transforms"):
        torch.func.vmap(lambda x: recompute_(net, x))(x)


def test_what_is_left_alone_is_listed():
    net, x = made("lsq_resnet")
    net.add_module("last", nn.Softmax(-1))
    report = recomputed(recompute_(net, x))
    reasons = {row.reason for row in report.left}
    assert reasons <= {"runs once", "is an input", "would bring back more than 8 times its bytes"}
    norms = {row.module for row in report.left if row.made_by == "aten.convolution"}
    assert norms >= {"1", "4.bn1", "4.bn2", "6.downsample.1"}
    assert all((row.kept == row.nbytes) == (row.reason is not None) for row in report)
    assert "made anew" in repr(report)
    assert "aten.convolution" in repr(report)


def test_an_operation_that_gives_other_bits_is_left_alone(floats, monkeypatch):
    """As a convolution on a GPU may that chooses its algorithm each time."""
    net, x = made("resnet")
    count = iter(range(10**6))

    def unlike(recipe, run=Recipe.run):
        made = run(recipe)
        return made + next(count) if str(recipe.operation) == "aten.relu_.default" else made

    expected = floats(lambda: trained(net, x, False))
    monkeypatch.setattr(Recipe, "run", unlike)
    recompute_(net, x)
    assert {row.reason for row in recomputed(net) if row.made_by == "aten.relu_"} == {
        "does not give the same bits again"
    }
    assert_equal(trained(net, x, False), expected)


def test_losses_while_training_are_those_of_today(floats):
    """To the last bit, over steps of Adam, with codes and behind recompute_."""

    def losses(make):
        net, x = made("lsq_resnet")
        net = make(net, x)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        got = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), torch.arange(3))
            loss.backward()
            optimizer.step()
            got.append(loss.item())
        return got

    expected = floats(lambda: losses(lambda net, x: net))
    assert expected[-1] < expected[0]
    assert losses(lambda net, x: net) == losses(recompute_) == expected
