"""The demo's binary network on digits that are made up here: native and reference train alike on a device.

It needs nothing but torch, where the demo needs scikit-learn, matplotlib and tqdm.
"""

from __future__ import annotations

import argparse

import torch

from ste_ops.demo import data, report, train

EPOCHS = 3


def made_up(seed: int = 0, images: int = 1500, pixels: int = 64) -> data.Digits:
    """Ten patterns of random pixels, each image one of them with noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(data.CLASSES, pixels, generator=generator) * 2 - 1
    labels = torch.randint(data.CLASSES, (images,), generator=generator)
    noisy = (patterns[labels] + 0.5 * torch.randn(images, pixels, generator=generator)).clamp(-1, 1)
    tests = images // 3
    return data.Digits("made-up digits", noisy[tests:], labels[tests:], noisy[:tests], labels[:tests])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    dataset = data.imbalance(made_up(), seed=0)
    print(data.describe(dataset))
    choices = [(train.NATIVE, True), (train.REFERENCE, True), (train.NATIVE, False)]
    runs = [train.prepare(dataset, operators, weighted, EPOCHS, 0, device) for operators, weighted in choices]
    for run in runs:
        for _ in range(EPOCHS):
            for _ in run.epoch():
                pass
    print(report.table(dataset, runs))
    native, reference, _ = runs
    if native.drawn != reference.drawn or native.rare_drawn != reference.rare_drawn:
        raise SystemExit(
            f"training: the samplers must draw the same, drew {native.rare_drawn} and {reference.rare_drawn}"
        )
    if abs(native.losses[-1] - reference.losses[-1]) > 0.05:
        raise SystemExit(f"training: the losses must agree, got {native.losses} and {reference.losses}")
    if native.accuracy[-1] < 0.8:
        raise SystemExit(f"training: the network must learn the patterns, got an accuracy of {native.accuracy[-1]:.0%}")


if __name__ == "__main__":
    main()
