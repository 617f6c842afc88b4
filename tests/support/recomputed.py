"""Nets for the tests of recompute_, and what training them gives and takes."""

from __future__ import annotations

import copy
import gc

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import ste_ops
from ste_ops.nn import (
    LSQ,
    BitNetActivation,
    BitNetWeight,
    QuantConv2d,
    QuantLinear,
    Sign,
    quantize_,
    recompute_,
)
from support.kept import assert_equal


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


def alive(shape):
    gc.collect()
    return sum(type(x) is torch.Tensor and x.shape == shape for x in gc.get_objects())
