"""The images: scikit-learn's digits or MNIST's IDX files, with some classes made rare."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ste_ops._names import show_public_names

RARE = (1, 3, 5, 7, 9)
RATIO = 10
CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Images as rows of numbers in [-1, 1], and their labels."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int) -> Digits:
    """scikit-learn's 1,797 images of 8 by 8 pixels; three in ten are for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images = (torch.from_numpy(pixels).float() / 8 - 1)[order]
    targets = torch.from_numpy(labels)[order]
    tests = len(order) * 3 // 10
    return Digits("scikit-learn digits", images[tests:], targets[tests:], images[:tests], targets[:tests])


def mnist(folder: Path) -> Digits:
    """MNIST's four IDX files, as they are or gzipped."""
    parts = []
    for part in ("train", "t10k"):
        images, labels = (read_idx(_find(folder, f"{part}-{name}-ubyte")) for name in ("images-idx3", "labels-idx1"))
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise SystemExit(
                f"ste_ops demo: {part}-images must have 3 dimensions and as many images as {part}-labels has labels, "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        parts += [images.flatten(1).float() / 127.5 - 1, labels.long()]
    return Digits(f"MNIST in {folder}", *parts)


def _find(folder: Path, name: str) -> Path:
    for candidate in (name, name + ".gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise SystemExit(f"ste_ops demo: --data must hold {name} or {name}.gz, got {folder} without them")


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes (MNIST's format) as a uint8 tensor."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    # Two zero bytes, the type (8: unsigned byte), the number of dimensions; each of them as a big-endian int32.
    start = 4 + 4 * content[3] if len(content) >= 4 else 4
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise SystemExit(f"ste_ops demo: {path} must be an IDX file of unsigned bytes, got the start {content[:4]!r}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise SystemExit(
            f"ste_ops demo: {path} must hold {math.prod(shape)} bytes for {shape}, got {len(content) - start}"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)


def imbalance(full: Digits, seed: int) -> Digits:
    """Keeps one in RATIO of the training images of the rare classes; the test images stay balanced."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in range(CLASSES):
        places = (full.train_labels == label).nonzero().flatten()
        if label in RARE:
            places = places[torch.randperm(len(places), generator=generator)[: max(1, len(places) // RATIO)]]
        kept.append(places)
    order = torch.cat(kept)
    return replace(full, train_images=full.train_images[order], train_labels=full.train_labels[order])


def is_rare(labels: Tensor) -> Tensor:
    return torch.isin(labels, torch.tensor(RARE, device=labels.device))


def describe(dataset: Digits) -> str:
    rare = int(is_rare(dataset.train_labels).sum())
    return (
        f"{dataset.name}: {len(dataset.train_labels)} images to train on, {rare} of them of the rare classes "
        f"{', '.join(map(str, RARE))}; {len(dataset.test_labels)} to test on"
    )


show_public_names(__name__)
