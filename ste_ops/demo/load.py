"""The program that loads the demo's nets in a process of its own.

    python -m ste_ops.demo.load FOLDER DEVICE HIDDEN [HIDDEN ...]

The folder holds the images to test on and a file for each net; `measured.pt` comes beside them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ste_ops._names import show_public_names
from ste_ops.demo.nets import KINDS, load, one_thread
from ste_ops.demo.train import wait_for

ROUNDS, CALLS = 20, 10

# Of each kind the outputs and the seconds, as tensors.
Measured = dict[str, dict[str, Tensor]]


def file_of(folder: Path, kind: str, hidden: int) -> Path:
    return folder / f"{kind}-{hidden}.pt"


@torch.inference_mode()
def measure(folder: Path, device: str, hidden: int) -> Measured:
    """What each of the nets puts out for all images at once, and the seconds of calls with one of them."""
    images = torch.load(folder / "images.pt", map_location=device, weights_only=True)
    nets: dict[str, nn.Module] = {}
    for kind in KINDS:
        saved = torch.load(file_of(folder, kind, hidden), map_location=device, weights_only=True)
        nets[kind] = load(kind, saved, hidden, images)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS):  # in turn: whatever else the machine does slows all of them alike
        for kind, net in nets.items():
            seconds[kind] += [_seconds(net, images[:1]) for _ in range(CALLS)]
    times = {kind: torch.tensor(median(seconds[kind]), dtype=torch.float64) for kind in KINDS}
    return {kind: {"outputs": net(images).cpu(), "seconds": times[kind]} for kind, net in nets.items()}


def _seconds(net: nn.Module, image: Tensor) -> float:
    wait_for(image.device)
    start = time.perf_counter()
    net(image)
    wait_for(image.device)
    return time.perf_counter() - start


def main(folder: str, device: str, *hidden: str) -> None:
    place = Path(folder)
    with one_thread():
        measured = {int(size): measure(place, device, int(size)) for size in hidden}
    torch.save(measured, place / "measured.pt")


show_public_names(__name__)

if __name__ == "__main__":
    main(*sys.argv[1:])
