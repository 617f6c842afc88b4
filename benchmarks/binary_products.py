"""Products of signs, packing included, against torch's on the floats +1 and -1, each on one core.

Layers hold such floats at hand, so nothing is counted for making them. `STE_OPS_CPU_CAPABILITY=avx2` measures that
level; torch runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

import ste_ops
from benchmarks.measure import Count, Row
from ste_ops.functional.binarize.convolutions import conv2d_by_sizes
from ste_ops.functional.binarize.products import weight_panels

# Channels and height of the 3 x 3 convolutions of ResNet-18.
RESNET = ((64, 56), (128, 28), (256, 14), (512, 7))
SMALL = ((32, 32, 32), (64, 64, 64), (32, 32, 1024), (1024, 32, 32), (32, 1024, 32), (32, 1024, 1024))


def _signs(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return ste_ops.sign(torch.randn(shape, device=device)).to(dtype)


def _linear(rows: int, numbers: int, features: int, device: str, dtype: torch.dtype, bound: float) -> Row:
    x, weight = (_signs(n, numbers, device=device, dtype=dtype) for n in (rows, features))
    name = str(dtype).removeprefix("torch.")
    return Row(
        f"binary_linear, {rows} x {numbers} x {features}, {name}",
        f"F.linear, {name}",
        lambda: ste_ops.binary_linear(x, weight),
        lambda: F.linear(x, weight),
        bound,
        at_most=False,
        rounds=31,
    )


def _convolution(channels: int, height: int, batch: int, device: str, packed: bool, bound: float) -> Row:
    x, weight = (
        _signs(*shape, device=device) for shape in ((batch, channels, height, height), (channels, channels, 3, 3))
    )
    panels = weight_panels(weight, channels)
    sizes = (None, None, channels, channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    ours: Callable[[], Tensor] = lambda: ste_ops.binary_conv2d(x, weight, padding=1)  # noqa: E731
    if packed:
        ours = lambda: conv2d_by_sizes("binary_conv2d", x, panels, *sizes)  # noqa: E731
    held = "packed once" if packed else "of floats"
    return Row(
        f"binary_conv2d, 3 x 3, {channels} x {height}^2, batch {batch}, weight {held}",
        "F.conv2d, float32",
        ours,
        lambda: F.conv2d(x, weight, padding=1),
        bound,
        at_most=False,
        rounds=15,
    )


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        narrow = ste_ops.build_info()["cpu_capability"] != "avx512 vpopcntdq"
        side = 128 if quick else 1024
        yield _linear(side, side, side, device, torch.float32, 4 if narrow else 10)
        yield _linear(side, side, side, device, torch.bfloat16, 2 if narrow else 5)
        for shape in SMALL[: 1 if quick else None]:
            yield _linear(*shape, device, torch.float32, 1)
        for channels, height in RESNET[: 1 if quick else None]:
            for batch in (1,) if quick else (1, 8):
                for packed in (False, True):
                    yield _convolution(channels, height, batch, device, packed, 6)
    finally:
        torch.set_num_threads(threads)
