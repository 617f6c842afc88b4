"""A recomputed model has the gradients of the model as it was, and keeps less for them."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import warnings
import weakref

import pytest
import torch
from support.kept import assert_equal, kept_bytes
from support.random_nets import random_net
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import ste_ops
from ste_ops.nn import (
    LSQ,
    BitNetActivation,
    BitNetWeight,
    QuantConv2d,
    QuantLinear,
    Sign,
    _kept,
    _tape,
    quantize_,
    recompute_,
    recomputed,
)
from ste_ops.nn._cells import Recipe

COUNT = int(os.environ.get("STE_OPS_FUZZ", 24))


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch, of_any_size):
    monkeypatch.setattr(_tape, "LEAST", 0)


def trained(net, x, again):
    """Outputs, gradients and buffers of two steps, the second on what the first moved."""
    net, x = copy.deepcopy(net), x.clone(memory_format=torch.preserve_format).requires_grad_()
    wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
    got = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        y = net(x)
        grad = torch.randn_like(y)
        first = torch.autograd.grad(y, wanted, grad, create_graph=again, allow_unused=True)
        got += [y, *first]
        if again:
            total = sum((g * g).sum() for g in first if g is not None and g.requires_grad)
            got += torch.autograd.grad(total, wanted, allow_unused=True) if torch.is_tensor(total) else []
        with torch.no_grad():
            for p, g in zip(wanted, first, strict=True):
                if g is not None:
                    p.sub_(g.nan_to_num(0, 0, 0).clamp(-1, 1), alpha=1e-3)
    return got + list(net.buffers()) + [torch.rand(3)]


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


class BasicBlock(nn.Module):
    """As torchvision's, which works in place."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def resnet():
    stem = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    blocks = BasicBlock(8, 8, 1), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)), (3, 3, 32, 32)


def lsq_resnet():
    net, shape = resnet()
    return quantize_(net, weight=LSQ(4), input=LSQ(4, signed=False), skip=["0", "10"]), shape


class BiReal(nn.Module):
    def __init__(self, channels, surrogate):
        super().__init__()
        sign = Sign(surrogate)
        self.conv = QuantConv2d(channels, channels, 3, padding=1, bias=False, input_quantizer=sign)
        self.conv.weight_quantizer = ste_ops.nn.MagnitudeAwareSign()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x)) + x


def bireal():
    surrogates = [ste_ops.surrogate.Clip(1.0)] * 3 + [ste_ops.surrogate.ATan()] * 4
    blocks = [BiReal(8, surrogate) for surrogate in surrogates]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), *blocks), (3, 3, 18, 18)


def vgg():
    """A pool before the norm, of which nothing but the places is kept."""
    conv = {"padding": 1, "input_quantizer": ste_ops.sign, "weight_quantizer": ste_ops.sign}
    parts = [part for _ in range(2) for part in (QuantConv2d(8, 8, 3, **conv), nn.MaxPool2d(2), nn.BatchNorm2d(8))]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), *parts), (3, 3, 16, 16)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layers = {"weight_quantizer": BitNetWeight(), "input_quantizer": BitNetActivation()}
        self.norms = nn.ModuleList([nn.RMSNorm(16), nn.LayerNorm(16)])
        self.qkv, self.out = QuantLinear(16, 48, **layers), QuantLinear(16, 16, **layers)
        self.gate, self.up = QuantLinear(16, 40, bias=False, **layers), QuantLinear(16, 40, bias=False, **layers)
        self.down, self.drop = QuantLinear(40, 16, **layers), nn.Dropout(0.2)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        h = self.norms[1](x)
        return x + self.drop(self.down(nn.functional.silu(self.gate(h)) * self.up(h)))


def transformer():
    return nn.Sequential(nn.Linear(3, 16), Transformer(), Transformer()), (2, 12, 3)


NETS = {f.__name__: f for f in (resnet, lsq_resnet, bireal, vgg, transformer)}


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    net, shape = NETS[name]()
    net, x = net.to(dtype), torch.randn(shape, dtype=dtype)
    net(x)
    return net, x


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


SHARES = {"lsq_resnet": 0.62, "bireal": 0.35, "vgg": 0.35, "resnet": 0.62}


@pytest.mark.parametrize("name", SHARES)
def test_bytes_kept(floats, name):
    torch.manual_seed(0)
    net, (_, *shape) = NETS[name]()
    x = torch.randn(8, *shape)
    net(x)
    saved = floats(lambda: kept_bytes(net, x))
    assert kept_bytes(recompute_(net, x), x) <= SHARES[name] * saved


def peak(call):
    """The most bytes at once, beyond those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    now = most = 0
    moves = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(moves, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_a_backward_brings_back_little_at_once():
    """What is made anew stays until it was used, and a long chain of residual sums is kept at some of its links."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(40))

        def forward(self, x):
            for norm in self.norms:
                x = (norm(x * 2) + x).relu()
            return x

    net, x = Chain(), torch.randn(4, 8, 32, 32)
    peaks = []
    for one in (net, recompute_(copy.deepcopy(net), x)):
        peaks.append(peak(lambda: one(x).sum().backward()))  # noqa: B023
    assert peaks[1] < 0.75 * peaks[0]


def test_what_was_used_is_let_go_within_the_backward(monkeypatch):
    """Torch goes on to hold the hooks, from which nothing leads to what they packed."""
    monkeypatch.setattr(_kept, "LEAST_USES", 64)  # so few rows keep quantized weights
    layers = [QuantLinear(256, 256, input_quantizer=LSQ(4), weight_quantizer=LSQ(4)) for _ in range(8)]
    net, x = nn.Sequential(*layers), torch.randn(4, 256)
    net(x)
    peaks = []
    for one in (net, recompute_(copy.deepcopy(net), x)):
        peaks.append(peak(lambda: one(x).sum().backward()))  # noqa: B023
    assert peaks[1] <= 1.05 * peaks[0]


def test_a_gate_in_16_bits_keeps_its_two_factors_alone():
    layers = {"weight_quantizer": BitNetWeight(), "input_quantizer": BitNetActivation()}

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.down = nn.RMSNorm(32), QuantLinear(96, 32, bias=False, **layers)
            self.gate, self.up = (QuantLinear(32, 96, bias=False, **layers) for _ in range(2))

        def forward(self, x):
            h = self.norm(x)
            return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))

    net, x = Gated().bfloat16(), torch.randn(4, 64, 32, dtype=torch.bfloat16, requires_grad=True)
    recompute_(net, x)
    two = 2 * 4 * 64 * 96 * 2
    assert two <= kept_bytes(net, x) <= 1.05 * two
    assert {row.nbytes for row in recomputed(net).left} == {two // 2}


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


class Calls(nn.Module):
    """A forward of its own, with layers."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv():
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 3, padding=1)


def as_it_was(floats, net, x):
    """Trains a net with and without `recompute_`."""
    expected = floats(lambda: trained(net, x, False))
    assert_equal(trained(recompute_(net, x), x, False), expected)


def images():
    torch.manual_seed(1)
    return torch.randn(2, 4, 24, 24)


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


@pytest.mark.parametrize("act", [torch.sigmoid, lambda x: x.softmax(1), lambda x: x.relu_(), lambda x: x.mean().exp()])
def test_a_graph_without_a_backward_is_freed(act):
    """An operation that saves its own output must not hold the graph that it is in."""
    net = recompute_(Calls(lambda self, x: act(self.conv(x)), conv=conv()), images())
    y = net(images())
    output = weakref.ref(y)
    del y
    assert output() is None


def alive(shape):
    gc.collect()
    return sum(type(x) is torch.Tensor and x.shape == shape for x in gc.get_objects())


def test_nothing_of_the_trial_or_of_a_dropped_forward_stays():
    """A tape that holds a tensor whose graph holds the tape would be a cycle that no collector sees."""
    x = torch.randn(2, 4, 23, 29)
    before = alive(x.shape)
    net = recompute_(Calls(lambda self, x: self.conv(x).relu().double(), conv=conv()), x)
    assert alive(x.shape) == before
    for _ in range(3):
        net(x)
    assert alive(x.shape) == before


def test_weights_that_few_outputs_use_are_listed(monkeypatch):
    monkeypatch.setattr(_kept, "LEAST_USES", 64)
    net, x = nn.Sequential(QuantLinear(64, 96, weight_quantizer=LSQ(4), input_quantizer=LSQ(4))), torch.randn(4, 64)
    net(x)
    x.requires_grad_()
    left = recomputed(recompute_(net, x)).left
    assert [row.reason for row in left if row.shape == (96, 64)] == ["is used for too few outputs to quantize it again"]


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


def test_what_the_forward_lets_go_is_not_held(floats):
    """Steps along a gradient within the forward, of which nothing is kept."""

    def forward(self, x):
        for _ in range(12):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                energy = (self.conv(z).sin() * self.other(z).tanh()).sum()
            x = x - 0.1 * torch.autograd.grad(energy, z)[0]
        return self.conv(x)

    net, x = Calls(forward, conv=conv(), other=conv()), torch.randn(8, 4, 32, 32)
    as_it_was(floats, copy.deepcopy(net), x)
    before = peak(lambda: net(x))
    recompute_(net, x)
    assert peak(lambda: net(x)) <= 1.5 * before


def test_a_long_chain_on_parameters_is_cut():
    def forward(self, x):
        weight = self.weight
        for _ in range(400):
            weight = weight * torch.tanh(weight)
        return x * weight

    net = Calls(forward)
    net.weight = nn.Parameter(images())
    twin = recompute_(copy.deepcopy(net), images())
    for one in (net, twin):
        y = one(images()).sum()
        for retain in (True, False):
            y.backward(retain_graph=retain)
    assert_equal([twin.weight.grad], [net.weight.grad])


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


@pytest.mark.parametrize("channels", [1024, 2048, 4096])
def test_frozen_norms_of_many_channels(monkeypatch, channels):
    monkeypatch.setattr(_tape, "LEAST", 1 << 14)
    x = torch.randn(2, 4, 8, 8)
    net = nn.Sequential(nn.Conv2d(4, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4, 1))
    saved = kept_bytes(net.eval(), x)
    assert kept_bytes(recompute_(net, x), x) <= 0.6 * saved


def test_running_statistics_that_are_read_between_two_calls(floats, monkeypatch):
    """A batch norm writes to them, of which its schema says nothing."""

    def forward(self, x):
        y = self.norm(self.conv(x)) + self.norm.running_mean[:, None, None]
        return self.norm(y) * self.norm.running_var[:, None, None]

    monkeypatch.setattr(_tape, "FEW", 0)  # as of many channels
    net = Calls(forward, conv=conv(), norm=nn.BatchNorm2d(4))
    as_it_was(floats, net, images())
    assert not net._ste_ops_recording.refused
