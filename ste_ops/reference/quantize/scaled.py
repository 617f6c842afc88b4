"""Weights and tokens, whose scale is a statistic of themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import widen
from ste_ops.reference.binarize.steps import sign
from ste_ops.reference.quantize._through import through
from ste_ops.surrogate import Clip, Surrogate

_DEFAULT = Clip(1.0)


def _sign(x: Tensor) -> Tensor:
    """Never 0, as `ste_ops.sign`, but for a NaN, which stays."""
    return torch.where(x.isnan(), x, torch.where(x >= 0, 1.0, -1.0).to(x.dtype))


def _rows(w: Tensor) -> list[int]:
    """The dimensions of one output channel; all of a vector's."""
    return list(range(1, w.dim())) if w.dim() > 1 else list(range(w.dim()))


def _by_groups(w: Tensor, group_size: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """Each `group_size` neighbours in row-major order by themselves, as a vector."""
    groups = [quantize(group) for group in w.reshape(-1).split(group_size)]
    return torch.cat(groups).reshape(w.shape) if w.numel() else quantize(w)


def _mean_magnitude(w: Tensor, dims: list[int]) -> Tensor:
    return w.abs().double().mean(dims, keepdim=True).to(w.dtype) if dims else w.abs()


def dorefa_weight(w: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """2 * quantize(tanh(w) / (2 max(abs(tanh(w)))) + 1/2) - 1 in 2^bits - 1 steps (DoReFa-Net, eq. 9).

    The rounding passes the gradient and everything else is differentiated, the maximum too (equal ones share). A
    maximum below 2^-14 counts as 1. With one bit sign(w) * mean(abs(w)) and the identity as gradient (eq. 7 and 8).
    """
    if group_size is not None:
        return _by_groups(w, group_size, lambda group: dorefa_weight(group, bits))
    wide = widen(w)
    if bits == 1:
        return through(_sign(wide) * _mean_magnitude(wide, list(range(w.dim()))), w)
    n = 2**bits - 1
    t = torch.tanh(wide)
    largest = t.abs().amax() if t.numel() else t.new_ones(())
    unit = t / torch.where(largest < 2**-14, 1.0, largest)
    rounded = torch.round((unit * 0.5 + 0.5) * n) / n * 2 - 1
    return through(rounded, unit).to(w.dtype)


def _passing_sign(x: Tensor, surrogate: Surrogate) -> Tensor:
    """The sign with the surrogate's gradient; a NaN stays."""
    if surrogate == _DEFAULT:
        return through(_sign(x), x, ~(x.detach().abs() > 1))
    return torch.where(x.isnan(), x.detach(), sign(x, surrogate))


def xnor_weight(w: Tensor, surrogate: Surrogate = _DEFAULT, group_size: int | None = None) -> Tensor:
    """sign(w) * mean(abs(w)), the mean over each output channel (dim 0) (XNOR-Net, arXiv:1603.05279, eq. 6).

    The sign's gradient is the surrogate's; the mean is differentiated, with the derivative of abs(w) the sign that is
    put out, +1 at zeros.
    """
    if group_size is not None:
        return _by_groups(w, group_size, lambda group: xnor_weight(group, surrogate))
    wide = widen(w)
    magnitude = wide * _sign(wide.detach())
    mean = magnitude.double().mean(_rows(w), keepdim=True).to(wide.dtype) if w.dim() else magnitude
    return (_passing_sign(wide, surrogate) * mean).to(w.dtype)


def magnitude_aware_sign(w: Tensor, surrogate: Surrogate = _DEFAULT, group_size: int | None = None) -> Tensor:
    """sign(w) * mean(abs(w)) as `xnor_weight`, but with the mean taken as a constant (Bi-Real Net, Larq)."""
    if group_size is not None:
        return _by_groups(w, group_size, lambda group: magnitude_aware_sign(group, surrogate))
    wide = widen(w)
    mean = _mean_magnitude(wide.detach(), _rows(w))
    return (_passing_sign(wide, surrogate) * mean).to(w.dtype)


def bitnet_weight(w: Tensor, group_size: int | None = None) -> Tensor:
    """-1, 0 or 1 times mean(abs(w)), the mean over all of w and at least 1e-5 (BitNet b1.58, arXiv:2402.17764, eq. 1).

    The gradient passes.
    """
    if group_size is not None:
        return _by_groups(w, group_size, bitnet_weight)
    wide = widen(w.detach())
    if w.numel() == 0:
        return through(wide, w)
    mean = _mean_magnitude(wide, list(range(w.dim()))).clamp(min=1e-5)
    return through(torch.round(wide / mean).clamp(-1, 1) * mean, w)


def bitnet_activation(x: Tensor, bits: int = 8) -> Tensor:
    """Each token (the last dimension) in steps of max(abs(x)) / (2^(bits-1) - 1), the maximum at least 1e-5.

    The gradient passes.
    """
    wide, n = widen(x.detach()), 2 ** (bits - 1) - 1
    if x.numel() == 0:
        return through(wide, x)
    largest = wide.abs().amax(-1, keepdim=True) if x.dim() else wide.abs()
    step = largest.clamp(min=1e-5) / n
    return through(torch.round(wide / step).clamp(-n - 1, n) * step, x)
