"""Nets that are trained, folded and packed, and one that reads such a file: as a program, in a process of its own."""

from __future__ import annotations

import sys

import torch
from torch import nn

from ste_ops.nn import (
    LSQ,
    PACT,
    FakeQuantize,
    QuantConv2d,
    QuantLinear,
    Sign,
    XNORWeight,
    fold_batch_norm_,
    pack_,
    quantize_,
)


class Block(nn.Module):
    """Bi-Real: the norm's output and the input are added, and the sum is what the next block takes the sign of."""

    def __init__(self, channels: int, outputs: int, binary: bool) -> None:
        super().__init__()
        given = {"padding": 1, "bias": False}
        if binary:
            self.conv = QuantConv2d(channels, outputs, 3, weight_quantizer=Sign(), input_quantizer=Sign(), **given)
        else:
            quantizers = {"weight_quantizer": LSQ(4, axis=0), "input_quantizer": PACT(3.0, 4)}
            self.conv = QuantConv2d(channels, outputs, 3, **quantizers, **given)
        self.norm = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(channels, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.short(x)


def resnet() -> nn.Module:
    binary = {"weight_quantizer": XNORWeight(), "input_quantizer": Sign()}
    stem = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), Block(16, 32, True), Block(32, 32, False), nn.AvgPool2d(2)]
    return nn.Sequential(*stem, nn.Flatten(), nn.BatchNorm1d(288), nn.Hardtanh(), QuantLinear(288, 10, **binary))


def mlp() -> nn.Module:
    layers = [nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.Hardtanh(), nn.Linear(48, 10)]
    quantizers = {"weight": lambda layer: FakeQuantize(8, axis=0, signed=False), "input": LSQ(8)}
    return quantize_(nn.Sequential(nn.Flatten(), *layers), **quantizers)


NETS = {"resnet": resnet, "mlp": mlp}


def images() -> torch.Tensor:
    return torch.linspace(-2, 2, 6 * 64).sin().reshape(6, 1, 8, 8)


@torch.enable_grad()
def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, x = NETS[name](), images()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), torch.arange(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def read(name: str, path: str) -> torch.Tensor:
    from safetensors.torch import load_file

    model = fold_batch_norm_(NETS[name]().eval(), images(), untrained=True)
    with torch.no_grad():
        made: torch.Tensor = pack_(model, state_dict=load_file(path))(images())
    return made


if __name__ == "__main__":
    for name in NETS:
        torch.save(read(name, f"{sys.argv[1]}/{name}.safetensors"), f"{sys.argv[1]}/{name}.pt")
