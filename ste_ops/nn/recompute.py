"""`recompute_`: a model whose backward makes cheap parts of the forward anew instead of keeping them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ste_ops.nn._recording import Recording, close_interrupted, may_record, recording_of
from ste_ops.nn._trial import Trial

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Saved:
    """A tensor that autograd saves in the forward of a model.

    Attributes:
        module: the name of the module in whose forward it is saved, ``""`` for the model itself.
        made_by: the operation of torch or ste_ops that made it, or what else it is.
        shape: its sizes.
        nbytes: the bytes that autograd would keep.
        kept: those that are kept in their place.
        reason: why it is kept as it is; None where it is made anew or its codes are kept.
    """

    module: str
    made_by: str
    shape: tuple[int, ...]
    nbytes: int
    kept: int
    reason: str | None


class Recomputed:
    """What `recompute_` found in a forward. It prints as a table; `rows` holds the same as data, a `Saved` for each
    tensor of 16 KiB and more."""

    def __init__(self, rows: tuple[Saved, ...]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Saved]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def left(self) -> tuple[Saved, ...]:
        """What is kept as it is, the largest first."""
        return tuple(sorted((row for row in self.rows if row.reason is not None), key=lambda row: -row.nbytes))

    def __repr__(self) -> str:
        lines = [("kept as it is", "made by", "shape", "MiB", "why")]
        for row in self.left:
            shape = "x".join(map(str, row.shape))
            lines.append((row.module or "(model)", row.made_by, shape, f"{row.nbytes / 2**20:.2f}", row.reason or ""))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        text.insert(1, "  ".join("-" * width for width in widths))
        before, after = (sum(getattr(row, key) for row in self.rows) for key in ("nbytes", "kept"))
        counts = Counter("kept" if row.reason else "as codes" if row.kept else "made anew" for row in self.rows)
        parts = ", ".join(f"{counts[key]} {key}" for key in ("made anew", "as codes", "kept") if counts[key])
        text.append(f"{before / 2**20:.2f} MiB saved, {after / 2**20:.2f} kept: {parts or 'nothing of 16 KiB'}")
        return "\n".join(line.rstrip() for line in text)


def recompute_(model: _Model, *example_inputs: Any) -> _Model:
    """Has the backward of a model make anew, bit for bit, what is cheap to make, so that less is kept for it.

    Beside the quantized inputs and weights, of which layers keep codes or nothing by themselves, a net keeps what
    stands around them: the output of a norm, of an activation, of a residual sum, the input of a quantizer with a
    learned scale, the indices of a max-pool. While the forward of a recomputed model runs, every operation and every
    tensor that autograd saves is seen. What comes out of tensors that are kept anyway by elementwise operations,
    batch, layer, group and RMS norms, quantizers, paddings and poolings is not kept; the backward runs these once more,
    with the same numbers. A layer whose input is binary runs again too, as a norm behind it saves its output. Of
    max-pools 4 bits of an index are kept, 8 for windows of more than 16 places, and of what poolings take nothing but
    its sizes. Convolutions, linear layers and attention do not run again otherwise, nor does anything random.

    Gradients, of every order, are those of the model as it was, bit for bit, on the same device and with the same
    number of threads; so are running statistics, which move once. The ``state_dict`` does not change, and neither does
    the forward without gradients.

    The hooks are on `model`: its own call records, and not a call of one of its parts. Where something else sees or
    decides what is saved, nothing is made anew: under ``torch.compile``, also of a part of the model, in exported and
    traced programs, under transforms of ``torch.func``, within ``torch.utils.checkpoint`` and ``save_on_cpu``. A
    forward that itself calls ``torch.func.grad``, ``vjp`` or ``jacrev`` is refused by torch, which has none of them
    beside hooks on saved tensors: recompute parts of such a model. DDP and `fully_shard` come after; of a sharded unit
    nothing is made anew outside of it. A second call replaces the first.

    Parameters and activations that the backward computes with must not change between the forward and the backward: a
    change in place is refused, one past autograd (``.data``) is not seen. ``torch.jit.script`` takes no module with
    these hooks.

    Args:
        model: any module.
        *example_inputs: what the model is called with. A copy of the model runs with copies of them, forward alone, to
            check that each operation gives the same bits again (one that does not, as a convolution that chooses its
            algorithm anew on a GPU, is left out, and the copy runs once more), and to list what is left alone. Numbers
            do not matter; shapes, and what requires gradients, should be those of training. The copy needs the memory
            of the float forward.

    Returns:
        `model` itself; `recomputed` says what was found.

    Raises:
        TypeError: model is no module, or no input is given.
        RuntimeError: the model cannot be copied, or it is within a transform, a mode or hooks on saved tensors.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174), of which this is the exact
    and cheap end; Wang et al. (arXiv:2102.04270) keep binary activations in 1 bit with approximate gradients.

    Example:
        >>> import torch, ste_ops
        >>> from ste_ops.nn import LSQ, QuantConv2d
        >>> conv = QuantConv2d(8, 8, 3, weight_quantizer=LSQ(4), input_quantizer=LSQ(4, signed=False))
        >>> block = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), conv)
        >>> block = ste_ops.nn.recompute_(block, torch.randn(2, 8, 32, 32))
        >>> for saved in ste_ops.nn.recomputed(block).left:
        ...     print(saved.module, saved.made_by, saved.reason)
        0 an input is an input
        1 aten.convolution runs once
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"recompute_: model must be a torch.nn.Module, got {type(model).__name__}")
    if not example_inputs:
        raise TypeError("recompute_: example_inputs must be what the model is called with, got none")
    close_interrupted()
    with torch.enable_grad():
        if not may_record():
            raise RuntimeError(
                "recompute_: it must be called where nothing records or transforms, got a compiler, a mode, a "
                "transform or hooks on saved tensors around it"
            )
        trial = Trial(_copied(model))
        trial.run(example_inputs)
    before = recording_of(model)
    if before is not None:
        before.detach(model)
    recording = Recording()
    recording.refused, recording.report = trial.refused, Recomputed(tuple(Saved(*row) for row in trial.rows()))
    recording.attach(model)
    return model


def recomputed(model: nn.Module) -> Recomputed:
    """What `recompute_` found in the forward of a model: what is made anew, and what is left alone and why.

    Raises:
        ValueError: `recompute_` was not called on it.
    """
    recording = recording_of(model)
    if recording is None:
        raise ValueError(f"recomputed: recompute_ must have been called on this {type(model).__name__}, it was not")
    report: Recomputed = recording.report
    return report


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise RuntimeError(
            f"recompute_: the model must be copied for a trial, and copy.deepcopy of {type(model).__name__} failed "
            f"({error}); call it before the model is wrapped, or its parameters are made tensors by pruning"
        ) from error
