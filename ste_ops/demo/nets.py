"""The demo's network for inference: made alike by the process that saves it and by the one that loads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import ste_ops
from ste_ops._names import show_public_names
from ste_ops.demo.data import CLASSES

KINDS = ("float", "quantized", "packed")


class Net(nn.Module):
    """`train.BinaryNet` under the same names: of layers of `ste_ops.nn`, or in float of torch's."""

    def __init__(self, inputs: int, hidden: int, binary: bool) -> None:
        super().__init__()
        sizes = itertools.pairwise([inputs, hidden, hidden, CLASSES])
        self.linear = nn.ModuleList(_linear(*pair, binary, first=layer == 0) for layer, pair in enumerate(sizes))
        self.norm = nn.ModuleList(nn.BatchNorm1d(size) for size in (hidden, hidden, CLASSES))
        self.between = nn.Identity() if binary else nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        for layer, (linear, norm) in enumerate(zip(self.linear, self.norm, strict=True)):
            x = norm(linear(x if layer == 0 else self.between(x)))
        return x


def _linear(inputs: int, outputs: int, binary: bool, first: bool) -> nn.Module:
    if not binary:
        return nn.Linear(inputs, outputs, bias=False)
    of_input = None if first else ste_ops.nn.Sign()
    return ste_ops.nn.QuantLinear(
        inputs, outputs, bias=False, weight_quantizer=ste_ops.nn.Sign(), input_quantizer=of_input
    )


def finish(kind: str, trained: Mapping[str, Any], hidden: int, images: Tensor) -> nn.Module:
    """A trained net without its norms and, of the kind `packed`, with its weights in bits."""
    net = _make(kind, hidden, images)
    net.load_state_dict(trained)
    ste_ops.nn.fold_batch_norm_(net, images[:1])
    return ste_ops.nn.pack_(net) if kind == "packed" else net


def load(kind: str, saved: Mapping[str, Any], hidden: int, images: Tensor) -> nn.Module:
    """The same of its file alone."""
    net = ste_ops.nn.fold_batch_norm_(_make(kind, hidden, images), images[:1], untrained=True)
    if kind == "packed":
        return ste_ops.nn.pack_(net, state_dict=saved)
    net.load_state_dict(saved)
    return net


def _make(kind: str, hidden: int, images: Tensor) -> nn.Module:
    return Net(images.shape[1], hidden, binary=kind != "float").to(images.device).eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Float products on other numbers of threads may round otherwise, and processes are compared to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


show_public_names(__name__)
