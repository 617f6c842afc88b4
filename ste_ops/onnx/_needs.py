"""What has to be installed for an export."""

from __future__ import annotations

import importlib.util

PACKAGES = ("onnx", "onnxscript")


def check_packages(name: str) -> None:
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"{name}: {' and '.join(PACKAGES)} must be installed, {' and '.join(missing)} not found; "
            "pip install 'ste_ops[onnx]'"
        )
