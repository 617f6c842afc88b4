"""ONNX files of models on ste_ops: `export`, and `translations` for `torch.onnx.export`.

It needs onnx and onnxscript, ``pip install 'ste_ops[onnx]'``; nothing of them is imported before one of the two is
called.
"""

from ste_ops._names import show_public_names as _show_public_names
from ste_ops.onnx._export import export, translations

__all__ = ["export", "translations"]

_show_public_names(__name__)
