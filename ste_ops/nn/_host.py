"""What the host knows of a scale, and does with it: at a layer, after loading, where several processes train."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._torch import constant_in_graphs, dispatch_modes, functorch_active
from ste_ops.nn._processes import forgets_parameters, refuse_to_differ, refuse_to_forget
from ste_ops.nn.quantizer import Quantizer

_warned: list[list[str] | None] = [None]  # the missing keys of the load that was last warned of, one list a load


class HostSide(Quantizer):
    """A quantizer whose scale is searched on the device, as seen from the host.

    What the host knows for itself, `_settled`, only saves the pass over x once the scale is set: without it (a
    DataParallel replica loses it) the same scale comes out, more slowly. A layer's weights set it when they are given
    to it, and once more in their first forward: they may be initialized in between.
    """

    scale: Tensor
    initialized: Tensor
    _settled: bool
    _given: list[float] | None
    # A layer's weights, which have no batch.
    _of_weight = False
    _look: tuple[Tensor, torch.cuda.Event] | None = None  # a copy of what says it is set, on its way to the host
    # The layer whose weight gave the scale, and that scale, until the first forward.
    _attached: tuple[weakref.ref[nn.Module], Tensor] | None = None
    _weight_name = "weight"  # of that layer
    # What is the module's own and not there for one call (`torch.func.functional_call`, the unsharded in fully_shard).
    _own: tuple[weakref.ref[Tensor], ...] = ()

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _rows(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _fit_channels(self, weight: Tensor) -> None:
        raise NotImplementedError

    def _initialize(self, x: Tensor, lasting: bool = False) -> None:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _attach_to(self, layer: nn.Module, name: str = "weight") -> None:
        """Sets the scale from the weight of a layer, which calls this; one that is set already stays."""
        weight: Any = getattr(layer, name)
        self._fit_channels(weight)
        if self._settled or not self._readable(weight) or bool(self._is_set()):
            return
        self._initialize(weight, lasting=True)
        self._watch(layer, name)

    def _watch(self, layer: nn.Module, name: str) -> None:
        """Has the scale confirmed in the first forward, unless it was given or the weight is computed: to compute a
        parametrized one once more may change it (spectral norm)."""
        if self._given is None and name in layer._parameters:
            self._attached, self._weight_name = (weakref.ref(layer), self.scale.detach().clone()), name
            self._settled, self._look = False, None

    def _confirm(self, whole: Tensor | None = None) -> None:
        """Finds the scale of a layer's weight again before its first use, unless something else was put there.

        `whole` is that weight where it is about to be divided among processes.
        """
        layer = self._attached[0]() if self._attached else None
        if self._attached is None or layer is None:
            self._attached = None
            return
        weight: Any = getattr(layer, self._weight_name) if whole is None else whole
        if not self._readable(weight):
            return
        if forgets_parameters(self) and isinstance(self.scale, nn.Parameter):
            if not self._fits(weight):
                refuse_to_forget(self, "the weight was written since its scale was found")
            self._attached = None
            return
        found, self._attached = self._attached[1].to(self.scale), None
        with torch.no_grad():
            changed = (self.scale != found).any()
            self.initialized.mul_(changed)
        self._initialize(weight, lasting=True)

    def _fits(self, weight: Tensor) -> bool:
        """Whether the scale is not the one that attaching gave, or the weight not written since; the host waits."""
        found = self._attached[1].to(self.scale) if self._attached else self.scale
        now = self._statistics(self._rows(weight.detach().to(found.dtype)))["scale"].to(found)
        # Mixed precision rounds the weight.
        return not torch.equal(self.scale, found) or torch.allclose(now, found, rtol=0.05, atol=0.0)

    def _readable(self, weight: Tensor) -> bool:
        """Whether numbers can be read of a weight and written into the scale: neither meta nor fake nor sharded."""
        return not (
            dispatch_modes()
            or functorch_active()
            or torch.jit.is_tracing()
            or any(type(t) not in (Tensor, nn.Parameter) or t.is_meta for t in (weight, self.scale, self.initialized))
        )

    def _is_set(self) -> Tensor:
        """0 in the scale says that its write did not last, whatever the flag says."""
        return (self.initialized >= 1).all() & (self.scale != 0).any()

    @constant_in_graphs
    def _host_knows(self, whole: bool) -> bool:
        """What the host alone can do before a scale is searched; whether it then knows that the scale is set.

        In a graph this runs once, while it is traced, with the tensors themselves, and may wait for them.
        """
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            return False
        self._confirm()
        self._learn(wait=torch.compiler.is_dynamo_compiling())
        return self._settled or refuse_to_differ(self, whole)

    def _note_own(self) -> None:
        self._own = weakref.ref(self.scale), weakref.ref(self.initialized)

    def _learn(self, wait: bool = False) -> None:
        """The host looks whether the scale is set, where it need not wait for that.

        Of CUDA a copy is sent for, and looked at once it is there. Where a mode watches or a graph is recorded, or the
        tensors are there for one call only, nothing is learned: then the search goes on, and gives the same scale.
        """
        if self._settled or self._attached is not None or not self._readable(self.scale):
            return
        if len(self._own) != 2 or self._own[0]() is not self.scale or self._own[1]() is not self.initialized:
            return
        if self.scale.is_cpu or wait:
            self._settled, self._look = bool(self._is_set()), None
        elif self.scale.is_cuda and not torch.cuda.is_current_stream_capturing():
            if self._look is None:
                flag = self._is_set()
                host = torch.empty(flag.shape, dtype=flag.dtype, device="cpu", pin_memory=True)
                host.copy_(flag, non_blocking=True)
                self._look = host, torch.cuda.current_stream(flag.device).record_event()
            elif self._look[1].query():
                self._settled, self._look = bool(self._look[0]), None

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self._note_own()
        self._learn()  # a compiled forward cannot
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._note_own()
        return self

    def _replicate_for_data_parallel(self) -> Any:
        if self._attached is not None:
            self._confirm()  # what a replica learns is lost
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]

    def _learn_loaded(self, scale: bool) -> None:
        """Loading is the host's work anyway, so it may look; `scale` says whether one was loaded."""
        self._note_own()
        if scale:
            self._attached = None
        self._settled, self._look = False, None
        if self._readable(self.scale):
            self._learn(wait=True)
        elif not self.initialized.is_meta:
            self._settled = bool(self.initialized >= 1)

    def _left_out(
        self, layer: nn.Module, state_dict: dict[str, Any], prefix: str, name: str, missing_keys: list[str]
    ) -> None:
        """A layer loads a state, before its quantizers do: its weight may come without the scales, as a float one's."""
        given = any(key in state_dict for key in (f"{prefix}{name}.scale", f"{prefix}{name}.parametrizations.scale"))
        loaded = any(
            key.startswith((f"{prefix}weight", f"{prefix}parametrizations.weight."))
            and not key.startswith((f"{prefix}weight_quantizer.", f"{prefix}input_quantizer."))
            for key in state_dict
        )
        if given or not loaded or self._given is not None:
            return
        if name == "weight_quantizer":
            self.reset_parameters()
            if "weight" in layer._parameters:  # what parametrizes it is loaded later, and found in the next forward
                self._attach_to(layer)
        elif (self._settled or (self._readable(self.scale) and self._is_set())) and _warned[0] is not missing_keys:
            _warned[0] = missing_keys
            warnings.warn(
                f"{type(self).__name__}: {prefix}{name}.scale is not in the state that is loaded with the weight, and "
                "stays as it was, which may not fit (as all others among the missing keys); reset_parameters of the "
                "quantizer and then a batch or ste_ops.nn.calibrate find it again",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        # An average of models goes its own way from its first forward on, so a copy takes the scale as it is.
        return {key: value for key, value in self.__dict__.items() if key not in ("_look", "_own", "_attached")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._note_own()
