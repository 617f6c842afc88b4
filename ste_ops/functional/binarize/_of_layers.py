"""Products of what layers have quantized to signs, for `ste_ops.nn`: forward counted bits, backward torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import compiling as compiling
from ste_ops._functions.base import recording as recording
from ste_ops._functions.binary_layers import ConvolutionOfSigns, LinearOfSigns
from ste_ops._functions.binary_products import float_is_faster as float_is_faster


def _arguments(q: Tensor, w: Tensor, bias: Tensor | None, factor: bool) -> tuple[Tensor | None, Tensor | None]:
    """Scale and bias, in the dtype of the arithmetic."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = w.detach().flatten(1).select(1, 0).abs().to(wide).contiguous() if factor else None
    return scale, None if bias is None else bias.to(wide)


def linear_of_signs(q: Tensor, w: Tensor, bias: Tensor | None, factor: bool, *rest: Any) -> Tensor:
    """Of w with a `factor` the magnitudes are the scale; `rest` as of the operator `binary_linear`."""
    return LinearOfSigns.apply(q, w, *_arguments(q, w, bias, factor), *rest)  # type: ignore[no-any-return]


def convolution_of_signs(q: Tensor, w: Tensor, bias: Tensor | None, factor: bool, *rest: Any) -> Tensor:
    """`rest` as of the operator `binary_conv2d`."""
    return ConvolutionOfSigns.apply(q, w, *_arguments(q, w, bias, factor), *rest)  # type: ignore[no-any-return]
