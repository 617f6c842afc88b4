"""Trains one small convolutional network three times on scikit-learn's digits: in float, with binary weights and
activations (`ste_ops.nn.Sign`), and with both in 2 bits and learned steps (`ste_ops.nn.LSQ`).

    pip install scikit-learn
    python examples/quantized_digits.py --epochs 10
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ste_ops.demo.data import Digits, digits
from ste_ops.nn import LSQ, QuantConv2d, Sign, quantize_

BATCH = 64


def float_net() -> nn.Sequential:
    """Two convolutions between a first and a last layer that the quantized nets leave in float.

    Means and not maxima are pooled: quantized maps are full of ties, which every backend would break in its own way.
    """
    net = nn.Sequential()
    net.add_module("first", nn.Conv2d(1, 16, 3, padding=1, bias=False))
    for place, (inputs, outputs) in enumerate(((16, 32), (32, 32))):
        net.add_module(f"norm{place}", nn.BatchNorm2d(inputs))
        net.add_module(f"relu{place}", nn.ReLU())
        net.add_module(f"conv{place}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        net.add_module(f"pool{place}", nn.AvgPool2d(2))
    net.add_module("norm", nn.BatchNorm2d(32))
    net.add_module("flat", nn.Flatten())
    net.add_module("last", nn.Linear(32 * 2 * 2, 10))
    return net


def lsq_net(bits: int = 2) -> nn.Sequential:
    """The float net, converted: a step for each output channel of the weights, one for each layer's activations."""
    return quantize_(float_net(), weight=LSQ(bits, axis=0), input=LSQ(bits, signed=False), skip=("first", "last"))


def binary_net() -> nn.Sequential:
    """Built of binary layers: the sign takes the ReLU's place, behind the normalization that centers its input."""
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False))
    for inputs, outputs in ((16, 32), (32, 32)):
        net.append(nn.BatchNorm2d(inputs))
        net.append(
            QuantConv2d(inputs, outputs, 3, padding=1, bias=False, weight_quantizer=Sign(), input_quantizer=Sign())
        )
        net.append(nn.AvgPool2d(2))
    return net.extend((nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32 * 2 * 2, 10)))


NETS: dict[str, Callable[[], nn.Sequential]] = {"float": float_net, "binary": binary_net, "lsq": lsq_net}


def images(pixels: Tensor) -> Tensor:
    return pixels.view(-1, 1, 8, 8)


def train(
    net: nn.Module,
    dataset: Digits,
    epochs: int,
    seed: int,
    transform: Callable[[nn.Module], Callable] = lambda net: net,
) -> list[float]:
    """Trains in place and returns the mean loss of each epoch. `transform` may be `torch.compile`."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    forward = transform(net.train())
    losses = []
    for _ in range(epochs):
        total = 0.0
        # Whole batches only, so that a compiled net sees one shape.
        for rows in torch.randperm(len(dataset.train_labels), generator=generator).split(BATCH)[:-1]:
            loss = cross_entropy(forward(images(dataset.train_images[rows])), dataset.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        schedule.step()
        losses.append(total / (len(dataset.train_labels) // BATCH))
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, dataset: Digits) -> float:
    net.eval()
    return float((net(images(dataset.test_images)).argmax(1) == dataset.test_labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the network and the order; default: 0")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    options = parser.parse_args()
    dataset = digits(options.seed)
    print(f"{'net':10}{'test accuracy':>16}{'last loss':>12}{'seconds':>10}")
    for name, make in NETS.items():
        torch.manual_seed(options.seed)
        net = make()
        start = time.perf_counter()
        losses = train(
            net, dataset, options.epochs, options.seed, torch.compile if options.compile else lambda net: net
        )
        seconds = time.perf_counter() - start
        print(f"{name:10}{accuracy(net, dataset):16.1%}{losses[-1]:12.3f}{seconds:10.1f}", flush=True)


if __name__ == "__main__":
    main()
