"""Modules for quantization-aware training: a module for each quantizer, layers that use them, and `quantize_`.

A quantizer is any module or function from a tensor to a tensor of the same shape: the modules here, the functions of
`ste_ops` (``weight_quantizer=ste_ops.sign``), or one of yours.
"""

from ste_ops.nn.binarize import Heaviside, Sign, Ternary
from ste_ops.nn.calibration import calibrate
from ste_ops.nn.clip import ClipGradientNorm, ClipGradientValue
from ste_ops.nn.codes import Codes
from ste_ops.nn.convert import quantize_
from ste_ops.nn.dequantize import dequantize_
from ste_ops.nn.fake_quantize import FakeQuantize
from ste_ops.nn.fold_batch_norm import Folded, FoldedNorm, fold_batch_norm_, folded
from ste_ops.nn.layers import QuantConv1d, QuantConv2d, QuantConv3d, QuantLayer, QuantLinear
from ste_ops.nn.offset import LSQPlus
from ste_ops.nn.pack import pack_
from ste_ops.nn.packed import PackedConv1d, PackedConv2d, PackedConv3d, PackedLayer, PackedLinear
from ste_ops.nn.quantizer import Quantizer
from ste_ops.nn.recompute import Recomputed, Saved, recompute_, recomputed
from ste_ops.nn.report import Row, Summary, summary
from ste_ops.nn.rounding import StochasticRound
from ste_ops.nn.scaled import BitNetActivation, BitNetWeight, DoReFaWeight, MagnitudeAwareSign, XNORWeight
from ste_ops.nn.schedule import disable_quantization, enable_quantization, freeze_scales, unfreeze_scales
from ste_ops.nn.sparse import SRSTE
from ste_ops.nn.threshold import ChannelThreshold
from ste_ops.nn.to_torchao import to_torchao_
from ste_ops.nn.uniform import LSQ, PACT, DoReFaActivation

__all__ = [
    "LSQ",
    "PACT",
    "SRSTE",
    "BitNetActivation",
    "BitNetWeight",
    "ChannelThreshold",
    "ClipGradientNorm",
    "ClipGradientValue",
    "Codes",
    "DoReFaActivation",
    "DoReFaWeight",
    "FakeQuantize",
    "Folded",
    "FoldedNorm",
    "Heaviside",
    "LSQPlus",
    "MagnitudeAwareSign",
    "PackedConv1d",
    "PackedConv2d",
    "PackedConv3d",
    "PackedLayer",
    "PackedLinear",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantLayer",
    "QuantLinear",
    "Quantizer",
    "Recomputed",
    "Row",
    "Saved",
    "Sign",
    "StochasticRound",
    "Summary",
    "Ternary",
    "XNORWeight",
    "calibrate",
    "dequantize_",
    "disable_quantization",
    "enable_quantization",
    "fold_batch_norm_",
    "folded",
    "freeze_scales",
    "pack_",
    "quantize_",
    "recompute_",
    "recomputed",
    "summary",
    "to_torchao_",
    "unfreeze_scales",
]
