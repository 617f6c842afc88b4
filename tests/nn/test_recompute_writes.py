"""Recomputed models that write to tensors, compile parts, take operators that take functions, or are interrupted."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from support.kept import assert_equal, kept_bytes
from support.recomputed import Calls, as_it_was, conv, images, made, trained
from torch import nn

import ste_ops
from ste_ops.nn import (
    _tape,
    recompute_,
    recomputed,
)

pytestmark = pytest.mark.usefixtures("of_any_tensor")


def test_what_is_changed_before_the_backward_is_told():
    net, x = made("lsq_resnet")
    recompute_(net, x)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x).sum().backward()
    loss = net(x).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"recompute_: .* changed in place since the forward.*Step the optimizer"):
        loss.backward()

    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            x = x * 2
            y = self.norm(x).relu()
            x.data.mul_(2)
            return y

    x.requires_grad_()
    past = Past()
    expected = torch.autograd.grad(past(x).sum(), [x, *past.parameters()])
    recompute_(past, x)
    assert_equal(torch.autograd.grad(past(x).sum(), [x, *past.parameters()]), expected)


def test_an_activation_written_past_autograd_before_it_is_saved(floats):
    class Old(nn.Module):
        """The old way to binarize."""

        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.norm(x)
            y.data = y.data.sign()
            z = y * 3
            z.data.mul_(0.5)
            return self.conv(y) + self.conv(z)

    torch.manual_seed(0)
    net, x = Old(), torch.randn(2, 3, 8, 8)
    expected = floats(lambda: trained(net, x, False))
    assert_equal(trained(recompute_(net, x), x, False), expected)


class Multiplied(torch.autograd.Function):
    """It saves its input, which needs no gradient, once it has run."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        return None, (grad * ctx.saved_tensors[0]).sum((0, 2, 3), keepdim=True)


def pooled_beside(self, x):
    y = torch.sigmoid(self.conv(x))
    with torch.no_grad():
        pooled = nn.functional.avg_pool2d(y, 2)
        z = x + 1
    return y.sum() + pooled.sum() + Multiplied.apply(z, self.conv.bias[:, None, None]).sum() + self.pool(z).sum()


def test_a_pooling_that_saves_nothing_after_an_operation_that_saved_its_input(floats):
    as_it_was(floats, Calls(pooled_beside, conv=conv(), pool=nn.MaxPool2d(2)), images())


def test_an_activation_changed_in_place_after_it_is_saved_is_refused():
    net = recompute_(Calls(lambda self, x: self.conv(x).softmax(1), conv=conv()), images())
    y = net(images())
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_a_compiled_part_stays_compiled_and_nothing_else_is():
    inner = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())
    parts = {"conv": conv(), "norm": nn.BatchNorm2d(4), "inner": inner}
    net, x = Calls(lambda self, x: self.norm(self.inner(self.conv(x).relu())).sin(), **parts), images()
    twin = recompute_(copy.deepcopy(net), x)
    got = []
    for one in (net, twin):
        one.inner = torch.compile(one.inner, backend="aot_eager", fullgraph=True)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        y = one(x)
        got.append([y, *torch.autograd.grad(y.square().sum(), [*one.parameters()]), *one.buffers()])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert_equal(got[1], got[0])


def test_operators_that_take_functions(floats):
    def forward(self, x):
        y = self.conv(x)
        return torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,)).relu() * y

    as_it_was(floats, Calls(forward, conv=conv()), images())


class Subclass(torch.Tensor):
    pass


def _written_out(self, x):
    with torch.no_grad():
        made = self.weight * 2
        torch.mul(made, 3, out=made)
    return x * made


def _written_as_a_subclass(self, x):
    with torch.no_grad():
        made = self.weight * 2
        made.as_subclass(Subclass).mul_(3)
    return x * made


def _written_as_a_conjugate(self, x):
    with torch.no_grad():
        made = self.weight * 2j
        made.conj().mul_(3j)
    return torch.view_as_real(x * made)


def _complex(self, x):
    y = self.conv(x).relu()
    z = torch.view_as_complex(y.unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * z) + (y * y).unflatten(-1, (-1, 2))


def _parts_of_indices(self, x):
    with torch.no_grad():
        _, places = nn.functional.max_pool2d(x, 2, return_indices=True)
    y = self.conv(x).flatten()
    return torch.take(y, places[1:]) * torch.take(y, places), torch.take(y, places[:1])


MEMORY = [_written_out, _written_as_a_subclass, _written_as_a_conjugate, _complex, _parts_of_indices]


@pytest.mark.parametrize("forward", MEMORY)
def test_memory_that_is_written_or_seen_in_other_ways(floats, forward):
    net = Calls(lambda self, x: torch.cat([y.flatten() for y in forward(self, x)]), conv=conv())
    net.weight = nn.Parameter(images())
    as_it_was(floats, net, images())


def test_an_interrupted_forward_records_no_longer_than_to_the_next():
    def forward(self, x):
        if self.interrupted:
            raise KeyboardInterrupt
        return (self.conv(x) * x).relu()

    net, x = Calls(forward, conv=conv()), images()
    net.interrupted = False
    outer = recompute_(nn.Sequential(recompute_(net, x), nn.ReLU()), x)
    kept = kept_bytes(outer, x)
    for call in (lambda: outer(x), lambda: recompute_(copy.deepcopy(outer), x)):
        net.interrupted = True
        with pytest.raises(KeyboardInterrupt):
            outer(x)
        net.interrupted = False
        call()
        assert _tape.current() is None
        assert ste_ops._torch.keeps_saved_tensors()
        assert ste_ops._torch.dispatch_modes() == 0
    assert kept_bytes(outer, x) == kept


def _parameter_past_autograd(self, x):
    y = x * self.weight.tanh()
    if self.training:
        self.weight.data.mul_(0.5)
    return y


def _what_a_dead_graph_saved(self, x):
    y = self.conv(x)
    y.pow(2).mean().item()
    z = (y * 2).sin() if self.training else y.sin()
    return nn.functional.relu_(y.add_(1) if self.training else y).exp() * z


@pytest.mark.parametrize("forward", [_parameter_past_autograd, _what_a_dead_graph_saved])
def test_what_a_forward_changes_later_on(floats, forward):
    """In training alone, so that the trial in eval mode does not see it."""
    net = Calls(forward, conv=conv())
    net.weight = nn.Parameter(images())
    expected = floats(lambda: trained(net, images(), False))
    recompute_(net.eval(), images())
    assert_equal(trained(net.train(), images(), False), expected)


def test_a_power_in_place(floats):
    """The overload of `pow_` has the name of one of `pow` that takes other arguments."""
    net = Calls(lambda self, x: self.conv(x) * (x * 2).pow_(2), conv=conv())
    as_it_was(floats, net, images())
    assert "does not give the same bits again" not in {row.reason for row in recomputed(net)}


def test_the_trial_leaves_its_example_alone():
    x, generator = images(), torch.Generator().manual_seed(0)
    states = generator.get_state(), random.getstate()

    class Draws(nn.Module):
        def forward(self, x, also, generator):
            assert also is x
            return x.relu_() * torch.rand(x.shape, generator=generator) * random.random()

    recompute_(Draws(), x, x, generator)
    assert torch.equal(x, images())
    assert torch.equal(generator.get_state(), states[0])
    assert random.getstate() == states[1]


def test_lazy_layers_and_sparse_tensors(floats):
    def forward(self, x):
        lines = torch.eye(24).to_sparse()
        return torch.sparse.mm(lines, self.conv(x).flatten(2)[0].T.unflatten(0, (24, -1)).flatten(1)).relu().sin()

    as_it_was(floats, Calls(forward, conv=conv()), images())
    lazy = recompute_(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), images())
    lazy(images()).sum().backward()


def test_running_statistics_that_are_read_between_two_calls(floats, monkeypatch):
    """A batch norm writes to them, of which its schema says nothing."""

    def forward(self, x):
        y = self.norm(self.conv(x)) + self.norm.running_mean[:, None, None]
        return self.norm(y) * self.norm.running_var[:, None, None]

    monkeypatch.setattr(_tape, "FEW", 0)  # as of many channels
    net = Calls(forward, conv=conv(), norm=nn.BatchNorm2d(4))
    as_it_was(floats, net, images())
    assert not net._ste_ops_recording.refused
