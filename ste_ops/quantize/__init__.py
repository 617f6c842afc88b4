"""Quantizers with straight-through gradients."""

from ste_ops.quantize.sparse import sr_ste

__all__ = ["sr_ste"]
