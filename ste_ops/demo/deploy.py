"""The end of the demo: trained nets are folded, packed and saved, and a new process loads and measures them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import ste_ops
from ste_ops._names import show_public_names
from ste_ops.demo import train
from ste_ops.demo.data import Digits
from ste_ops.demo.load import Measured, file_of
from ste_ops.demo.nets import KINDS, finish, one_thread

# A step of the wide nets takes forty times as long, and they learn in fewer.
WIDE_STEPS = 50


@dataclass(frozen=True)
class Deployed:
    """A net of one size: of each kind the bytes of its file and what the new process measured."""

    hidden: int
    epochs: int
    bytes: dict[str, int]
    accuracy: dict[str, float]
    seconds: dict[str, float]
    changed: int  # images that the net answers otherwise without its norms


def deploy(dataset: Digits, narrow: train.Run, hidden: int, epochs: int, seed: int, device: str) -> list[Deployed]:
    """Takes the net of a run to the end, and one of `hidden` units; a float net is trained beside each."""
    pairs = _train(dataset, narrow, hidden, epochs, seed, device)
    images = dataset.test_images.to(device)
    with tempfile.TemporaryDirectory(prefix="ste_ops-demo-") as name, one_thread(), torch.inference_mode():
        folder = Path(name)
        torch.save(dataset.test_images, folder / "images.pt")
        expected = {size: _save(folder, size, pair, images) for size, pair in pairs.items()}
        measured = _load_in_new_process(folder, device, list(pairs))
        deployed = []
        for size, pair in pairs.items():
            _check(size, expected[size], measured[size])
            answers = pair["quantized"].net.eval()(images).argmax(1).cpu()
            outputs = {kind: measured[size][kind]["outputs"] for kind in KINDS}
            deployed.append(
                Deployed(
                    hidden=size,
                    epochs=len(pair["quantized"].losses),
                    bytes={kind: file_of(folder, kind, size).stat().st_size for kind in KINDS},
                    accuracy={kind: _accuracy(outputs[kind], dataset.test_labels) for kind in KINDS},
                    seconds={kind: float(measured[size][kind]["seconds"]) for kind in KINDS},
                    changed=int((outputs["quantized"].argmax(1) != answers).sum()),
                )
            )
    return deployed


def _train(
    dataset: Digits, narrow: train.Run, hidden: int, epochs: int, seed: int, device: str
) -> dict[int, dict[str, train.Run]]:
    """Of each size the float run and the quantized one."""
    narrow_float = train.prepare(dataset, train.FLOAT, True, epochs, seed, device)
    train.train([narrow_float], epochs)
    pairs = {train.HIDDEN: {"float": narrow_float, "quantized": narrow}}
    if hidden not in pairs:
        epochs = min(epochs, max(1, WIDE_STEPS // len(narrow.batches)))
        kinds = {"float": train.FLOAT, "quantized": train.NATIVE}
        pairs[hidden] = {
            kind: train.prepare(dataset, operators, True, epochs, seed, device, hidden)
            for kind, operators in kinds.items()
        }
        train.train(list(pairs[hidden].values()), epochs)
    return pairs


def _save(folder: Path, hidden: int, pair: dict[str, train.Run], images: Tensor) -> dict[str, Tensor]:
    """Writes a file for each kind, and gives what the net in it puts out."""
    outputs = {}
    for kind in KINDS:
        trained = pair["float" if kind == "float" else "quantized"].net.state_dict()
        net = finish(kind, trained, hidden, images)
        torch.save(net.state_dict(), file_of(folder, kind, hidden))
        outputs[kind] = net(images).cpu()
    return outputs


def _load_in_new_process(folder: Path, device: str, sizes: list[int]) -> dict[int, Measured]:
    command = [sys.executable, "-m", "ste_ops.demo.load", str(folder), device, *map(str, sizes)]
    package = str(Path(ste_ops.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(
            f"ste_ops demo: the process that loads the nets must end with status 0, got {done.returncode}:\n"
            + "\n".join(done.stderr.strip().splitlines()[-5:])
        )
    measured: dict[int, Measured] = torch.load(folder / "measured.pt", weights_only=True)
    return measured


def _check(hidden: int, saved: dict[str, Tensor], measured: Measured) -> None:
    """The packed net puts out the same bits in both processes, and those of the quantized net."""
    quantized, packed = measured["quantized"]["outputs"], measured["packed"]["outputs"]
    for expected, place in ((saved["packed"], "before it was saved"), (quantized, "before it was packed")):
        apart = int((packed != expected).sum())
        if apart:
            raise SystemExit(
                f"ste_ops demo: the packed net of {hidden} hidden units must put out what it did {place}, "
                f"got {apart} of {packed.numel()} numbers that differ"
            )


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.argmax(1) == labels).double().mean().item()


show_public_names(__name__)
