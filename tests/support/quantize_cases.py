"""What the tests of the quantizers run over: layouts with their channels, and special values of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from support.surrogate_table import LAYOUTS, Fill, bits

# Layouts of surrogate_table.py and others in which channels lie narrow, wide and across the stretches of the loops.
MORE_LAYOUTS: dict[str, Callable[[Fill], Tensor]] = {
    "wide_channels": lambda fill: fill(3, 1500),
    "many_channels": lambda fill: fill(1500, 3),
    "channels_inside": lambda fill: fill(2, 70, 30),
    "channels_last_wide": lambda fill: fill(2, 40, 7, 5).contiguous(memory_format=torch.channels_last),
    "a_long_row": lambda fill: fill(2, 2500).t(),
}
SOME_LAYOUTS = ["contiguous", "transposed", "channels_last", "sliced", "expanded_columns", "empty", "scalar"]
SOME_LAYOUTS += ["empty_inside", "one_element", "misaligned_transposed"]


def special_values(dtype: torch.dtype) -> Tensor:
    """Ties, bounds and their neighbours in steps of 0.25, whole numbers, zeros, denormals, infinities and NaN."""
    limits = torch.finfo(dtype)
    points = [k / 8 for k in range(40)] + [0.5, 1.5, 2.5, 1e4 + 0.5, 2.0**22 + 0.5, 2.0**23, 2.0**24 + 2, 2.0**53]
    points += [limits.tiny, limits.tiny / 2, limits.smallest_normal, limits.max, math.inf, math.nan]
    exact = torch.tensor(points, dtype=torch.float64).to(dtype)
    exact = torch.cat([exact, -exact])
    return torch.cat([exact, torch.nextafter(exact, exact.new_tensor(torch.inf))])


def filler(dtype: torch.dtype, device: str, seed: int = 0, special: bool = True) -> Fill:
    generator = torch.Generator().manual_seed(seed)

    def fill(*shape: int) -> Tensor:
        values = torch.randn(torch.Size(shape).numel(), generator=generator, dtype=torch.float64).mul(1.5).to(dtype)
        if special:
            points = special_values(dtype)
            points = points[torch.randperm(len(points), generator=generator)][: max(len(values) // 2, 1)]
            places = torch.randperm(len(values), generator=generator)[: len(points)]
            values[places] = points[: len(places)]
        return values.view(shape).to(device)

    return fill


def layouts(dtype: torch.dtype, device: str, special: bool = True) -> Iterator[tuple[str, Tensor]]:
    chosen = {**LAYOUTS, **MORE_LAYOUTS} if dtype == torch.float32 else {n: LAYOUTS[n] for n in SOME_LAYOUTS}
    for name, make in {**chosen, **MORE_LAYOUTS}.items():
        yield name, make(filler(dtype, device, special=special))


def channel_axes(x: Tensor) -> list[int | None]:
    """The whole tensor and every axis, from the front and from the back in turn."""
    return [None, *(axis if axis % 2 else axis - x.dim() for axis in range(x.dim()))]


def gradients(fn: Callable[..., Tensor], grad: Tensor, *inputs: object) -> list[Tensor]:
    """The output, and the gradient of every floating tensor among the inputs."""
    leaves = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    out = fn(*leaves)
    wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def same_bits(received: Tensor, expected: Tensor) -> bool:
    same = (bits(received) == bits(expected)) | (received.isnan() & expected.isnan())
    return received.dtype == expected.dtype and received.shape == expected.shape and bool(same.all())


def scales(x, axis, device):
    """One in (0.1, 0.6) for each channel, and zero points within the range and without."""
    count = 1 if axis is None else x.shape[axis]
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(count, generator=generator) * 0.5 + 0.1
    return scale.to(device), torch.randint(-6, 6, (count,), generator=generator).to(device)
