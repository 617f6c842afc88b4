"""`calibrate`: the scales of a model from several batches, the same on every process."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ste_ops._torch import fsdp_manages
from ste_ops.nn._first_tensor import UniformQuantizer
from ste_ops.nn._processes import number_of_processes

_JOINED = {"min": torch.minimum, "max": torch.maximum}  # everything else is summed


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any], process_group: Any = None) -> dict[str, Tensor]:
    """Runs batches through a model and sets every scale that is not yet set, of inputs and of weights, from all.

    `FakeQuantize` takes the least and the largest element of all batches, and `LSQ` the mean magnitude of all their
    elements, each along its `axis`: what one tensor of all batches would give. A quantizer without a scale passes its
    input on as it is during the run, so the order of the batches changes nothing; one with a scale quantizes. Nothing
    is set where an error is raised.

    The model runs without gradients and in the mode it is in: call ``model.eval()`` before if dropout and batch
    normalization are to do as in evaluation. Where `torch.distributed` is up, every process calls this, with batches of
    its own; the statistics are reduced, and all of them get the same scales. Under ``fully_shard`` each needs as many
    batches as the others, as in any forward. A compiled model is run uncompiled.

    Args:
        model: any module that holds `LSQ`, `LSQPlus` or `FakeQuantize`, also wrapped in `DistributedDataParallel`, or
            after ``fully_shard``.
        batches: an iterable of batches on the model's device: a tensor, a tuple of arguments or a dict of keyword
            arguments. ``(images for images, _ in loader)`` makes them of a loader with labels.
        process_group: the processes that have this model; default: all. A group of one process is for a model that
            no other process has.

    Returns:
        The scales that were set, under the names of their quantizers.

    Raises:
        ValueError: the model has no such quantizer, there is no batch, or a quantizer was given a NaN or an infinity.
        TypeError: batches is a tensor or no iterable, or a batch is none of the three; the model is wrapped in
            `FullyShardedDataParallel`, which hides the scales.
        RuntimeError: the processes do not agree on which scales are to be set, or another one failed.

    Warns:
        UserWarning: a quantizer was given nothing but zeros, or nothing at all, and remains without a scale.

    Example:
        >>> import torch, ste_ops
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> model = ste_ops.nn.quantize_(model, input=ste_ops.nn.FakeQuantize(8, signed=False))
        >>> ste_ops.nn.calibrate(model, [torch.tensor([[0.0, 51.0]]), torch.tensor([[255.0, 1.0]])])
        {'0.input_quantizer': tensor([1.])}
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, DistributedDataParallel):
        model = model.module  # whose own forward waits for the other processes
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TypeError(
            "calibrate: model is wrapped in FullyShardedDataParallel, which hides the scales; call it before"
        )
    quantizers = {name: m for name, m in model.named_modules() if isinstance(m, UniformQuantizer)}
    if not quantizers:
        raise ValueError("calibrate: model must hold a quantizer with a scale (LSQ, LSQPlus or FakeQuantize), got none")
    _reshard(model)
    unset = {name: quantizer for name, quantizer in quantizers.items() if _is_unset(quantizer)}
    seen = {name: _Seen(quantizer) for name, quantizer in unset.items()}
    failure: Exception | None = None
    try:
        _run(model, batches, seen)
    except Exception as error:
        failure = error
    seen = {name: each for name, each in seen.items() if not each.released}
    if process_group is not None or number_of_processes() > 1:
        _agree(seen, failure, process_group)
    if failure is not None:
        raise failure
    _reshard(model)
    report = {name: each.set() for name, each in seen.items()}
    left = [name for name, value in report.items() if value is None]
    if left:
        warnings.warn(
            f"calibrate: no scale is set for {left}, which were given nothing, or nothing but zeros", stacklevel=2
        )
    return {name: value for name, value in report.items() if value is not None}


def _is_unset(quantizer: UniformQuantizer) -> bool:
    quantizer._confirm()
    # What is confirmed in a forward alone, a sharded weight's, is found anew.
    return (
        quantizer._attached is not None
        or not bool((quantizer.initialized >= 1).all())
        or not bool((_whole(quantizer.scale) != 0).any())
    )


def _whole(tensor: Any) -> Tensor:
    """Of a DTensor everything: torch.distributed is not imported for the question."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _placed_as(held: Any, value: Tensor) -> Tensor:
    if not hasattr(held, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(held.device, held.dtype)
    return distribute_tensor(value, held.device_mesh, held.placements, src_data_rank=None)  # every process has it


def _reshard(model: nn.Module) -> None:
    """Puts the sharded parameters back, which alone last; the root keeps the whole ones after a forward."""
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if fsdp_manages(module) and reshard is not None:
            reshard()


class _Seen:
    """What a quantizer was given so far. It stands in the place of its forward."""

    def __init__(self, quantizer: UniformQuantizer) -> None:
        self.quantizer, self.batch, self.released = quantizer, 0, False
        self.kept: dict[str, Tensor] = {}
        self.first_bad: Tensor | None = None  # the first batch with a NaN or an infinity, asked for at the end

    def __call__(self, x: Tensor) -> Tensor:
        quantizer = self.quantizer
        if quantizer._attached is not None and quantizer._fits(x):
            quantizer._attached, quantizer._settled, self.released = None, True, True
            del quantizer.forward
            return type(quantizer).forward(quantizer, x)  # type: ignore[no-any-return]
        quantizer._check_channels()
        wide = _whole(x.detach())
        wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
        if wide.numel() == 0:
            return x
        bad = torch.where(wide.isfinite().all(), torch.inf, float(self.batch))
        self.first_bad = bad if self.first_bad is None else torch.minimum(self.first_bad, bad)
        for key, value in quantizer._seen(quantizer._rows(torch.where(wide.isfinite(), wide, 0.0))).items():
            self.kept[key] = _JOINED.get(key, torch.add)(self.kept[key], value) if key in self.kept else value
        return x

    def empty(self) -> dict[str, Tensor]:
        """As if nothing was given, in the form that the other processes have."""
        quantizer, start = self.quantizer, {"min": torch.inf, "max": -torch.inf}
        one = quantizer._seen(quantizer.initialized.new_zeros([1] * 8))
        shape = tuple(quantizer.scale.shape)
        return {key: value.new_full(shape, start.get(key, 0.0)) for key, value in one.items()}

    def set(self) -> Tensor | None:
        quantizer = self.quantizer
        found = quantizer._of_seen(self.kept) if self.kept else {}
        if not found or not bool(quantizer._usable(found)):
            return None
        quantizer._attached = None
        for key, value in found.items():
            held = getattr(quantizer, key)
            held.copy_(_placed_as(held, value))
        quantizer.initialized.fill_(1.0)
        quantizer._settled, quantizer._look = True, None
        return _whole(quantizer.scale.detach()).clone()


def _run(model: nn.Module, batches: Iterable[Any], seen: dict[str, _Seen]) -> None:
    if isinstance(batches, (Tensor, dict)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"calibrate: batches must be an iterable of batches, as [batch] is, got {type(batches).__name__}"
        )
    modes = {module: module.training for module in model.modules()}
    for each in seen.values():
        each.quantizer.forward = each  # type: ignore[method-assign]
    count = 0
    try:
        with torch.compiler.set_stance("force_eager"):
            for count, (args, kwargs) in enumerate(_arguments(batches), 1):
                for each in seen.values():
                    each.batch = count - 1
                model(*args, **kwargs)
    finally:
        for each in seen.values():
            vars(each.quantizer).pop("forward", None)
        for module, training in modes.items():
            module.training = training
    if count == 0:
        raise ValueError("calibrate: batches must hold at least one batch, got none")
    for name, each in seen.items():
        if each.first_bad is not None and bool(each.first_bad.isfinite()):
            raise ValueError(f"calibrate: batch {int(each.first_bad)} gives {name!r} a NaN or an infinity")


def _arguments(batches: Iterable[Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for place, batch in enumerate(batches):
        if isinstance(batch, Tensor):
            yield (batch,), {}
        elif isinstance(batch, tuple):
            yield batch, {}
        elif isinstance(batch, dict):
            yield (), batch
        else:
            raise TypeError(
                f"calibrate: a batch must be a tensor, a tuple of arguments or a dict of keyword arguments, got "
                f"{type(batch).__name__} as batch {place}; of a loader with labels, (x for x, _ in loader) gives them"
            )


def _agree(seen: dict[str, _Seen], failure: Exception | None, group: Any) -> None:
    """Reduces what the processes have seen, after they told each other that nothing keeps them from it."""
    device = next((each.quantizer.initialized.device for each in seen.values()), torch.device("cpu"))
    if dist.get_backend(group) == "nccl" and device.type != "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    shapes = [(name, type(s.quantizer).__name__, tuple(s.quantizer.scale.shape)) for name, s in seen.items()]
    signature = int.from_bytes(hashlib.sha256(repr(shapes).encode()).digest()[:7], "big")
    mine = torch.tensor([int(failure is not None), signature, len(seen)], device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    failed = [rank for rank, theirs in enumerate(every) if theirs[0]]
    if failed and failure is None:
        raise RuntimeError(f"calibrate: it failed on rank {failed[0]}, so nothing is set on this one either")
    if failed:
        return
    if any(int(theirs[1]) != signature for theirs in every):
        raise RuntimeError(
            "calibrate: every process must have the same scales to set, but they have "
            f"{[int(theirs[2]) for theirs in every]} of them (here {list(seen)}); call reset_parameters of the "
            "quantizers that some of them set alone"
        )
    operations = {"min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
    for each in seen.values():
        each.kept = {**each.empty(), **each.kept}
        for key in sorted(each.kept):
            value = each.kept[key].to(device)
            dist.all_reduce(value, operations.get(key, dist.ReduceOp.SUM), group=group)
            each.kept[key] = value.to(each.quantizer.initialized.device)
