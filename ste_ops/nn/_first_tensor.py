"""The scale of a uniform quantizer, which is given or found from the first tensor that the module sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ste_ops._checks import checked_integer, checked_width, is_integer, is_number
from ste_ops.functional.quantize._groups import in_groups, rows_of_groups
from ste_ops.functional.quantize.uniform import LEAST_STEP
from ste_ops.nn._host import HostSide
from ste_ops.nn.quantizer import as_numbers, checked_group_size, fill, shapes_of_now

if TYPE_CHECKING:
    from typing_extensions import Self

_LARGEST = torch.finfo(torch.float32).max


class UniformQuantizer(HostSide):
    """A scale for the tensor, or one for each channel along `axis`; set from the first tensor unless given.

    Whether it is set lies in the buffer `initialized`, 1 or 0, so that it is saved, and found on the device without the
    host asking for it.
    """

    _frozen = False
    _outdated = False  # whether it trained without quantizing since its scale was found
    quant_min: int
    quant_max: int
    _follows = False  # whether it goes on to search while training, once a tensor without a range came

    def __init__(
        self,
        bits: int,
        signed: bool,
        axis: int | None,
        channels: int | None,
        scale: Any,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        self._frozen = self._outdated = False
        name = type(self).__name__
        self._set_range(bits, signed)
        self.group_size = checked_group_size(name, group_size)
        if group_size is not None and axis not in (None, 0):
            raise ValueError(f"{name}: group_size is of neighbours within dimension 0, got axis={axis!r} beside it")
        axis = axis if group_size is None else 0  # of the rows that the groups are
        if axis is not None and not is_integer(axis):
            raise TypeError(f"{name}: axis must be None or an integer, got {axis!r}")
        if channels is not None and axis is None:
            raise ValueError(f"{name}: channels is the size of x along axis, got channels={channels!r} without axis")
        if channels is not None:
            channels = checked_integer(name, "channels", channels, 1)
        self.axis = None if axis is None else int(axis)
        self._given = None if scale is None else self._checked(scale, channels)
        # Without channels there are no scales until a layer says how many.
        self._hold(torch.zeros(1 if axis is None else channels or len(self._given or ())))
        self.register_buffer("initialized", torch.zeros(1))
        self._settled = False
        UniformQuantizer.reset_parameters(self)
        self._note_own()

    def _set_range(self, bits: int, signed: bool) -> None:
        name = type(self).__name__
        if not isinstance(signed, bool):
            raise TypeError(f"{name}: signed must be True or False, got {signed!r}")
        hint = "; 1 bit is for what has no sign: signed=False" if signed and is_integer(bits) and bits == 1 else ""
        bits = checked_width(name, bits, 2 if signed else 1, hint)
        self._bits, self._signed = bits, signed
        self.quant_min, self.quant_max = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    @property
    def bits(self) -> int:
        return self._bits

    @bits.setter
    def bits(self, bits: int) -> None:
        self._set_range(bits, self._signed)

    @property
    def signed(self) -> bool:
        return self._signed

    @signed.setter
    def signed(self, signed: bool) -> None:
        self._set_range(self._bits, signed)

    def _checked(self, scale: Any, channels: int | None) -> list[float]:
        name = type(self).__name__
        numbers, shape = as_numbers(scale)
        # In Python, since on the meta device a tensor could not be asked.
        if not all(is_number(number) and 1 / _LARGEST <= number <= _LARGEST for number in numbers):
            raise ValueError(f"{name}: scale must be finite and > 0, got {scale!r}")
        expected = (channels or len(numbers),)
        if len(numbers) != 1 and (self.axis is None or shape != expected):
            words = "one number without axis" if self.axis is None else f"one number or {expected[0]} of them"
            raise ValueError(f"{name}: scale must be {words}, got shape {shape}")
        return numbers

    def _hold(self, scale: Tensor) -> None:
        raise NotImplementedError

    def _statistics(self, x: Tensor) -> dict[str, Tensor]:
        """What is found of a finite x; all of it is 0 where x is."""
        raise NotImplementedError

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        """What `calibrate` keeps of a finite x, under the name of what joins it with others: min, max or a sum."""
        raise NotImplementedError

    def _of_seen(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `_statistics` gives of all that was seen."""
        raise NotImplementedError

    def _usable(self, found: dict[str, Tensor]) -> Tensor:
        usable = (found["scale"] > 0).any() & found["scale"].isfinite().all()
        found["scale"] = found["scale"].clamp(LEAST_STEP, _LARGEST)
        return usable

    def _fit_channels(self, weight: Tensor) -> None:
        """Takes the number of channels from a weight, where `axis` came without it."""
        self._of_weight = True
        if self.axis is not None and self.scale.numel() in (0, 1):
            scale = self.scale.detach() if self.scale.numel() else self.scale.new_zeros(1)
            self._hold(scale.expand(self._rows(weight).shape[self.axis]).clone())
            self._note_own()

    def _rows(self, x: Tensor) -> Tensor:
        return x if self.group_size is None else rows_of_groups(type(self).__name__, x, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        if not self._enabled and not self._looks_on:
            return self._passed_on(x)
        if self.group_size is None:
            return self._quantize(x)
        return in_groups(type(self).__name__, x, self.group_size, self._quantize)

    def _repeats(self) -> bool:
        """Once its scale is set, for which a weight is enough. What a learned one makes comes again out of its node."""
        learns = not self._frozen and any(p is not None and p.requires_grad for p in self._parameters.values())
        return not (learns and self.group_size is None) and (self._settled or self._host_knows(whole=True))

    @property
    def _looks_on(self) -> bool:
        """Whether it also searches while it is disabled."""
        return False

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Takes the scale that was given, or forgets the one that was found: the next forward finds it again.

        It gives what the constructor gave, also in memory that is not yet set (``to_empty`` after the meta device); a
        call of it finds a scale anew after weights were loaded that the old one does not fit.
        """
        if self._given is None:
            self.scale.zero_()
        else:
            fill(self.scale, self._given)
        self.initialized.fill_(0.0 if self._given is None else 1.0)
        self._settled, self._look, self._attached = self._given is not None, None, None

    @torch.no_grad()
    def _initialize(self, x: Tensor, lasting: bool = False) -> None:
        """Sets the scale from x; from one without a range or with a NaN only for this call, or if `lasting` not at all.

        What is held is 0 while the scale is not set. In an average of modules `initialized` is therefore the part of
        them that had one, and what is held over it the average of those.
        """
        name = type(self).__name__
        # An export without Dynamo would note here what only its copies of the tensors know. With Dynamo (where torch
        # 2.11 says "exporting" in every torch.compile too) the program itself searches, in its first run.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            raise RuntimeError(f"{name}: no scale is set yet, so nothing can be exported; run one batch before")
        if isinstance(x, Proxy) or torch.jit.is_tracing():
            raise RuntimeError(f"{name}: no scale is set yet, so nothing can be traced; run one batch before")
        self._check_channels()
        x = self._rows(x.detach()).to(torch.promote_types(x.dtype, torch.float32))
        if x.numel() == 0:
            x = x.new_zeros([max(size, 1) for size in x.shape])
        finite = x.isfinite()
        found = self._statistics(torch.where(finite, x, 0.0))
        usable = finite.all() & self._usable(found)
        if self._follows and self.training and not lasting:
            usable = usable & (self.scale == 0).all()  # or a tensor without a range came before
        if lasting:  # a layer's weight and its quantizer may lie on two devices until both are moved
            usable = usable.to(self.scale.device)
            found = {key: torch.where(usable, value.to(usable.device), 0.0) for key, value in found.items()}
        known = (self.initialized > 0) & (self.scale != 0).any()
        for key, value in found.items():
            held = getattr(self, key)
            held.copy_(torch.where(known, held / self.initialized, value.to(held.dtype)))
        self.initialized.copy_(known | usable)
        if not torch.compiler.is_compiling():
            self._learn()

    def _check_channels(self) -> None:
        if self.axis is not None and self.scale.numel() == 0:
            raise RuntimeError(
                f"{type(self).__name__}: channels must be given with axis={self.axis}, unless it is the "
                "weight_quantizer of a layer"
            )

    def _others(self, x: Tensor) -> list[int]:
        """The dimensions over which a statistic runs."""
        return [d for d in range(x.dim()) if self.axis is None or d != self.axis % x.dim()]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        shapes_of_now(self, state_dict, prefix)
        if prefix + "scale" in state_dict:  # of an older state: neither frozen nor disabled
            state_dict.setdefault(prefix + "_extra_state", torch.zeros(3))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._learn_loaded(prefix + "scale" in state_dict)

    @property
    def frozen(self) -> bool:
        return self._frozen

    def freeze(self) -> Self:
        """From now on the scale stays as it is; one that is not set yet is found once more."""
        self._frozen = True
        return self

    def unfreeze(self) -> Self:
        """From now on the scale is learned again, or follows what it sees."""
        self._frozen = False
        return self

    def enable(self) -> Self:
        """From now on x is quantized. A scale that was found before training went on without it is found again."""
        super().enable()
        if self._outdated:
            self.reset_parameters()
        self._outdated = False
        return self

    def _passed_on(self, x: Tensor) -> Tensor:
        if self.training and self._given is None and not self._frozen and not self._outdated:
            self._outdated = True
        return x

    def get_extra_state(self) -> Tensor:
        """A tensor, since averages and loaders compute with all that a state holds."""
        flags = [float(self._frozen), float(not self._enabled), float(self._outdated)]
        return torch.tensor(flags, device=self.initialized.device)

    def set_extra_state(self, state: Any) -> None:
        if not state.is_meta:
            self._frozen, disabled, self._outdated = (flag >= 0.5 for flag in state.tolist())
            self._enabled = not disabled

    def extra_repr(self) -> str:
        places = "" if self.axis is None else f", axis={self.axis}"
        if self.group_size is not None:
            places = f", group_size={self.group_size}"
        return f"bits={self.bits}, signed={self.signed}{places}" + (", frozen" if self._frozen else "")
