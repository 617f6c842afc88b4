"""The errors in the values of CUDA tensors, which the host learns of later."""

from __future__ import annotations

import torch

from ste_ops._dynamo import never_compiled
from ste_ops._library import CUDA_LOADED, ops


@never_compiled
def check_deferred_errors(device: torch.device | str | int | None = None) -> None:
    """Waits for a device and raises what the sampling operators have found wrong with values there.

    An operator that would check the values of a CUDA tensor at once would make the host wait for the device. Instead
    the kernel marks what it cannot draw (`multinomial` with -1, `bernoulli_ste` with NaN) and notes the first fault in
    a record of its device. The next sampling operator on that device whose call finds the note raises it, without
    waiting, and names the earlier operator; this function waits first. So it belongs behind a loop, or wherever the
    host waits anyway. Either way the note is gone then. Notes are also taken by replays of CUDA graphs and by compiled
    graphs. On the CPU every operator raises at once, also when compiled, and nothing is ever noted.

    Args:
        device: the device to wait for; default: the current CUDA device where there is one and its kernels are
            loaded, else the CPU.

    Raises:
        RuntimeError: an earlier sampling operator on that device met bad values, in that operator's own words.

    Example:
        >>> import torch, ste_ops
        >>> drawn = ste_ops.multinomial(torch.tensor([1.0, 2.0]), 1)
        >>> ste_ops.check_deferred_errors()
    """
    if device is None:
        device = "cuda" if CUDA_LOADED and torch.cuda.is_available() else "cpu"
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    ops.raise_deferred(torch.empty(0, device=place))
