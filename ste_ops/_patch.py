"""Torch's own names for clipping, led here, for trainers that call them by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from ste_ops.functional import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

_OURS: tuple[Callable[..., Any], ...] = (clip_grad_norm_, clip_grad_value_, get_total_norm, clip_grads_with_norm_)


class patch_torch:
    """Puts `clip_grad_norm_`, `clip_grad_value_`, `get_total_norm` and `clip_grads_with_norm_` in the place of torch's.

    For trainers that clip by ``torch.nn.utils``: Hugging Face's, Lightning, Fabric and Accelerate look there at each
    step. As a call it holds until `restore`; as a context, until its end. Modules that took the functions by
    ``from torch.nn.utils import clip_grad_norm_`` before are led here too, under that name; what has another name, or
    lies in a closure, keeps torch's. A second call finds nothing to replace, and gives nothing back; one object may be
    entered again, before its end, which is that of the outermost context, and after it.

    Attributes:
        replaced: the full names that it replaced; its ``repr`` says them too.

    Example:
        >>> import torch, ste_ops
        >>> with ste_ops.patch_torch() as patched:
        ...     torch.nn.utils.clip_grad_norm_ is ste_ops.clip_grad_norm_
        True
        >>> torch.nn.utils.clip_grad_norm_ is ste_ops.clip_grad_norm_
        False
        >>> "torch.nn.utils.clip_grad_norm_" in patched.replaced
        True
    """

    def __init__(self) -> None:
        self._places: list[tuple[Any, str, Any, Any]] = []
        self._entered = 0
        self._replace_all()

    def _replace_all(self) -> None:
        for ours in _OURS:
            name = ours.__name__
            theirs = getattr(torch.nn.utils, name)
            if theirs is not ours:
                self._replace(name, theirs, ours)
        self.replaced = tuple(f"{module.__name__}.{name}" for module, name, _, _ in self._places)

    def _replace(self, name: str, theirs: Any, ours: Any) -> None:
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(name) is theirs:
                setattr(module, name, ours)
                self._places.append((module, name, theirs, ours))

    def restore(self) -> None:
        """Gives torch's functions back, where nobody has put others since."""
        for module, name, theirs, ours in self._places:
            if vars(module).get(name) is ours:
                setattr(module, name, theirs)
        self._places.clear()

    def __enter__(self) -> patch_torch:
        if not self._places:  # given back since
            self._replace_all()
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self.restore()

    def __repr__(self) -> str:
        return f"patch_torch() replaced {', '.join(self.replaced) or 'nothing'}"
