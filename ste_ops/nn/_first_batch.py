"""A look at the first batch of a `sign`: of what is never negative it is 1 everywhere."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._torch import dispatch_modes, functorch_active

# Of fewer elements all may well be positive by chance.
_FEWEST = 16


class FirstBatch:
    """Whether it was looked at; a holder of its own, so that the replicas of a `DataParallel` share what one saw."""

    def __init__(self, place: str = "") -> None:
        self.place = place  # what the sign stands in, where that is known
        self.seen = False
        self._on_its_way: tuple[Tensor, torch.cuda.Event] | None = None  # minimum and maximum, copied to the host

    def look(self, module: nn.Module, x: Tensor, sign: object) -> None:
        """Warns where the first batch in training has no negative element, of CUDA a few calls later, without a wait.

        A batch of zeros alone says nothing yet. Weights are no batch. A compiled forward leaves all of this out.
        """
        if module.training and not torch.compiler.is_compiling() and not self.seen:
            self._look(x, sign)

    def _look(self, x: Tensor, sign: object) -> None:
        if type(x) is not Tensor or not x.is_floating_point() or x.is_meta or x.numel() < _FEWEST:
            return  # nor is a Parameter
        if dispatch_modes() or functorch_active() or torch.jit.is_tracing():
            return
        if x.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return
            if self._on_its_way is None:
                host = torch.empty(2, dtype=x.dtype, device="cpu", pin_memory=True)
                host.copy_(_range(x), non_blocking=True)
                self._on_its_way = host, torch.cuda.current_stream(x.device).record_event()
                return
            if not self._on_its_way[1].query():
                return
            found, self._on_its_way = self._on_its_way[0], None
        else:
            found = _range(x)
        least, largest = found.tolist()
        self.seen = (least, largest) != (0.0, 0.0)
        if least >= 0 and largest > 0:
            warnings.warn(
                f"{sign}{', ' if self.place else ''}{self.place}: no element of its first batch is negative (they lie "
                f"from {least:.3g} to {largest:.3g}), so it puts out 1 everywhere and the network cannot learn from "
                "it. Let no ReLU come before it: normalize (BatchNorm) or use Hardtanh there, or take Heaviside or "
                "unsigned LSQ in its place",
                UserWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_its_way": None}  # an event cannot be copied


@torch.no_grad()
def _range(x: Tensor) -> Tensor:
    return torch.stack(torch.aminmax(x.detach()))
