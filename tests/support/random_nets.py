"""Random nets of quantized and float layers, norms, activations, residuals, gates and poolings."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ste_ops.nn import LSQ, BitNetActivation, ClipGradientValue, QuantConv2d, QuantLinear, Sign, StochasticRound
from support.kept import INPUTS, WEIGHTS

CHANNELS = 8
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.SiLU,
    nn.GELU,
    nn.Hardtanh,
    lambda: nn.LeakyReLU(0.1, inplace=True),
    nn.PReLU,
    nn.Hardswish,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.Identity,
    Sign,
    lambda: LSQ(3),
    lambda: LSQ(2, axis=1, channels=CHANNELS),
    StochasticRound,
    lambda: ClipGradientValue(0.5),
    lambda: nn.Dropout(0.3),
]


class Residual(nn.Module):
    def __init__(self, body: nn.Module, inplace: bool, after: nn.Module) -> None:
        super().__init__()
        self.body, self.inplace, self.after = body, inplace, after

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.inplace and out is not x and out.data_ptr() != x.data_ptr():
            out += x
        else:
            out = out + x
        return self.after(out)


class Gate(nn.Module):
    def __init__(self, of: nn.Module, by: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.of, self.by, self.activation = of, by, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x) * self.activation(self.by(x))


class Branches(nn.Module):
    """Two branches side by side, and back to as many channels."""

    def __init__(self, one: nn.Module, other: nn.Module, norm: nn.Module, dim: int) -> None:
        super().__init__()
        self.one, self.other, self.norm, self.dim = one, other, norm, dim

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.one(x), self.other(x)], self.dim)
        first, second = both.chunk(2, self.dim)
        return self.norm(first - second)


class RMS(nn.Module):
    """A norm by hand."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(self.dim, keepdim=True) + 1e-5)


def _conv(rng: random.Random) -> nn.Module:
    size = rng.choice([1, 2, 3])
    arguments = {
        "padding": "same" if size == 2 or rng.random() < 0.2 else size // 2,
        "padding_mode": rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"]),
        "groups": rng.choice([1, 1, 2, CHANNELS]),
        "bias": rng.random() < 0.5,
    }
    if rng.random() < 0.15:
        return nn.Conv2d(CHANNELS, CHANNELS, size, **arguments)
    of_input = rng.choice([name for name in INPUTS if not name.startswith("LSQ channels")])
    if rng.random() < 0.3:
        of_input = "sign"
    layer = QuantConv2d(CHANNELS, CHANNELS, size, **arguments)
    if of_input != "BitNet":
        layer.input_quantizer = INPUTS[of_input][0]()
    layer.weight_quantizer = WEIGHTS[rng.choice([*WEIGHTS])]()
    return layer


def _linear(rng: random.Random) -> nn.Module:
    layer = QuantLinear(CHANNELS, CHANNELS, bias=rng.random() < 0.5)
    names = [name for name in INPUTS if not name.startswith("LSQ channels")]
    layer.input_quantizer = BitNetActivation() if rng.random() < 0.3 else INPUTS[rng.choice(names)][0]()
    layer.weight_quantizer = WEIGHTS[rng.choice([*WEIGHTS])]()
    return layer


def _norm(rng: random.Random, images: bool) -> nn.Module:
    if images:
        norms = [nn.BatchNorm2d(CHANNELS), nn.GroupNorm(2, CHANNELS), nn.InstanceNorm2d(CHANNELS, affine=True), RMS(1)]
        norms += [nn.BatchNorm2d(CHANNELS, affine=False), nn.BatchNorm2d(CHANNELS, track_running_stats=False)]
    else:
        norms = [nn.LayerNorm(CHANNELS), nn.RMSNorm(CHANNELS), RMS(-1), nn.LayerNorm(CHANNELS, bias=False)]
    return rng.choice(norms)


def _activation(rng: random.Random, images: bool) -> nn.Module:
    made = rng.choice(ACTIVATIONS)()
    return nn.Identity() if isinstance(made, LSQ) and made.axis is not None and not images else made


def _part(rng: random.Random, images: bool, depth: int) -> nn.Module:
    """Some layers that keep the shape."""
    kind = rng.choice(["layer"] * 3 + ["residual"] * 2 + ["gate", "branches"]) if depth > 0 else "layer"
    if kind == "layer":
        parts = [_conv(rng) if images else _linear(rng), _norm(rng, images), _activation(rng, images)]
        rng.shuffle(parts)
        return nn.Sequential(*parts)
    one = _part(rng, images, depth - 1)
    if kind == "residual":
        return Residual(one, rng.random() < 0.5, _activation(rng, images))
    other = _part(rng, images, depth - 1)
    if kind == "gate":
        return Gate(one, other, rng.choice([nn.SiLU, nn.Sigmoid, nn.GELU, nn.Tanh])())
    return Branches(one, other, _norm(rng, images), 1 if images else -1)


def _pool(rng: random.Random) -> nn.Module:
    pools = [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.MaxPool2d((2, 3), 1, dilation=2),
    ]
    pools += [nn.AdaptiveAvgPool2d(4), nn.AvgPool2d(3, 1, 1)]
    return rng.choice(pools)


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """A net and its input, which torch can train; every number and every choice comes from the seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        net, x = _made(rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of signs and of empty batches
                copy.deepcopy(net)(x.clone().requires_grad_()).sum().backward()
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
        else:
            return net, x


def _made(rng: random.Random) -> tuple[nn.Module, Tensor]:
    images = rng.random() < 0.75
    parts = [_part(rng, images, 2) for _ in range(rng.choice([1, 2, 3]))]
    if images and rng.random() < 0.7:
        parts.insert(rng.randrange(len(parts) + 1), _pool(rng))
    first = nn.Conv2d(3, CHANNELS, 3, padding=1) if images else nn.Linear(3, CHANNELS)
    net = nn.Sequential(first, *parts)
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    batch = rng.choice([0, 1, 2, 3, 3, 3])
    if any(isinstance(module, nn.InstanceNorm2d) for module in net.modules()):
        batch = max(batch, 1)  # torch's takes no empty batch
    x = torch.randn((batch, 3, 12, 11) if images else (batch, 10, 3), dtype=dtype)
    if images and rng.random() < 0.5:
        x, net = x.to(memory_format=torch.channels_last), net.to(memory_format=torch.channels_last)
    return net.to(dtype), x
