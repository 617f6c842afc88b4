"""A ResNet-18 with binary convolutions (Bi-Real Net, arXiv:1808.00278) from training to a packed file.

    python examples/bireal_resnet18.py
    python examples/bireal_resnet18.py --size 32 --steps 1    # in a few seconds

A new process loads the file. The images are noise: this is about bytes, milliseconds and bits, not about learning.
"""

from __future__ import annotations

import argparse
import copy
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ste_ops.nn import MagnitudeAwareSign, PackedLayer, QuantConv2d, Sign, fold_batch_norm_, pack_
from ste_ops.surrogate import ApproxSign

BATCH, CLASSES = 8, 1000
ROUNDS = 10


# The net.


class Block(nn.Module):
    """A 3 x 3 convolution with a shortcut of its own, on signs or in float."""

    def __init__(self, inputs: int, outputs: int, stride: int, binary: bool) -> None:
        super().__init__()
        conv: type[nn.Conv2d] | functools.partial[nn.Conv2d] = nn.Conv2d
        if binary:
            quantizers = {"weight_quantizer": MagnitudeAwareSign(), "input_quantizer": Sign(ApproxSign())}
            conv = functools.partial(QuantConv2d, **quantizers)
        self.activation = nn.Identity() if binary else nn.ReLU()
        self.conv = conv(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            narrow = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), narrow, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.activation(x))) + self.shortcut(x)


def resnet18(binary: bool) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for outputs in (64, 128, 256, 512):
        for block in range(4):
            stride = 2 if block == 0 and outputs != 64 else 1
            net.append(Block(inputs, outputs, stride, binary))
            inputs = outputs
    return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)])


def train(net: nn.Module, images: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-3)
    labels = torch.arange(len(images))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# The way out: fold, pack, save, load.


def pack(net: nn.Module) -> nn.Module:
    """A packed copy of a folded net; without the copy, the net itself would be packed."""
    return pack_(copy.deepcopy(net))


def load(path: Path, images: Tensor) -> nn.Module:
    """The packed net of its file and of the code of the net: nothing is trained here."""
    net = fold_batch_norm_(resnet18(binary=True).eval(), images, untrained=True)
    return pack_(net, state_dict=torch.load(path, weights_only=True))


def load_in_new_process(folder: Path, threads: int) -> Tensor:
    """What the net of packed.pt puts out for images.pt in this program with `--load`."""
    subprocess.run([sys.executable, __file__, "--load", str(folder), "--threads", str(threads)], check=True)
    outputs: Tensor = torch.load(folder / "outputs.pt", weights_only=True)
    return outputs


def load_and_run(folder: Path) -> None:
    images = torch.load(folder / "images.pt", weights_only=True)
    torch.save(load(folder / "packed.pt", images)(images), folder / "outputs.pt")


# What is shown.


def binary_bytes(net: nn.Module) -> int:
    """Of the weights of the 3 x 3 convolutions: floats, or bits and a factor for each channel."""
    convs = [block.conv for block in net.children() if isinstance(block, Block)]
    return sum(c.codes.nbytes + c.scale.nbytes if isinstance(c, PackedLayer) else c.weight.nbytes for c in convs)


def milliseconds(nets: dict[str, nn.Module], images: Tensor) -> dict[str, float]:
    """An image, as the median of rounds in which the nets take turns."""
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(1 + ROUNDS):
        for name, net in nets.items():
            start = time.perf_counter()
            net(images)
            times[name].append(1e3 * (time.perf_counter() - start) / len(images))
    return {name: median(found[1:]) for name, found in times.items()}


def show(title: str, values: dict[str, float], style: str) -> None:
    cells = "".join(f"{value:14{style}}" for value in values.values())
    print(f"{title:24}{cells}{values['float'] / values['packed']:14.1f}", flush=True)


def run(size: int, steps: int, threads: int) -> None:
    # In this order of memory poolings run several times as fast, and words of channels are packed as they lie.
    images = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    nets: dict[str, nn.Module] = {"float": resnet18(binary=False), "quantized": resnet18(binary=True)}
    print(f"two nets, {steps} training steps each on {BATCH} images of {size} x {size} ...\n", flush=True)
    for net in nets.values():
        train(net, images, steps)
    with torch.no_grad():
        trained = nets["quantized"].eval()(images)
        for net in nets.values():
            fold_batch_norm_(net.eval(), images)
        nets["packed"] = pack(nets["quantized"])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.save(images, folder / "images.pt")
            for kind, net in nets.items():
                torch.save(net.state_dict(), folder / f"{kind}.pt")
            files = {kind: (folder / f"{kind}.pt").stat().st_size for kind in nets}
            loaded = load_in_new_process(folder, threads)

        print(
            f"{f'{size} x {size}, threads: {threads}':24}{''.join(f'{kind:>14}' for kind in nets)}{'float/packed':>14}"
        )
        show("binary layers, bytes", {kind: binary_bytes(net) for kind, net in nets.items()}, ",")
        show("file, bytes", files, ",")
        for batch in (1, BATCH):
            show(f"ms an image, batch {batch}", milliseconds(nets, images[:batch]), ".2f")
        compare(trained, nets["quantized"](images), nets["packed"](images), loaded)


def compare(trained: Tensor, quantized: Tensor, packed: Tensor, loaded: Tensor) -> None:
    moved = float((quantized - trained).abs().max() / trained.abs().max())
    changed = int((quantized.argmax(1) != trained.argmax(1)).sum())
    print(f"\nnorms folded: outputs moved by {moved:.1g} of the largest, {changed} of {BATCH} answers changed")
    print("  (a fold rounds otherwise, and may turn the sign of a sum that is almost 0)")
    same = {"packed": torch.equal(packed, quantized), "loaded in a new process": torch.equal(loaded, packed)}
    for what, equal in same.items():
        print(f"{what}: outputs {'equal to the last bit' if equal else 'DIFFER'}")
    if not all(same.values()):
        raise SystemExit("bireal_resnet18: the outputs must be equal to the last bit")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=224, help="of the images, from 32; default: 224")
    parser.add_argument("--steps", type=int, default=2, help="of training, on noise; default: 2")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--load", type=Path, metavar="FOLDER", help="load packed.pt in it: what the new process does")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.load:
        with torch.no_grad():
            load_and_run(options.load)
    else:
        run(options.size, options.steps, options.threads)


if __name__ == "__main__":
    main()
