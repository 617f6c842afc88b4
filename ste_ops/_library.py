"""Loads the compiled libraries and resolves their operators; explains what is wrong where that fails."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from ste_ops._torch import (
    all_operator_names,
    dispatch_modes,
    function_modes,
    functorch_active,
    jit_tracing,
    profiled,
    tree_leaves,
)

MINIMUM_TORCH = (2, 11)
_FOLDER = Path(__file__).parent
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ste_ops (or '.' in a clone)"


def _fail(found: str, expected: str, mend: str) -> NoReturn:
    raise ImportError(f"ste_ops: {found}; expected {expected}. To mend it: {mend}")


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        _fail(
            f"{path.name} does not load with torch {torch.__version__}: {error}",
            f"a library built against torch >= {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]} for this platform",
            _REBUILD,
        )


def _info_of(operator: str) -> dict[str, str]:
    lines = getattr(torch.ops.ste_ops, operator).default().splitlines()
    return dict(line.split("=", 1) for line in lines)


def _check_cuda_major(built: str, running: str) -> None:
    if built.split(".")[0] != running.split(".")[0]:
        _fail(
            f"_cuda.abi3.so was built with CUDA {built}, but torch {torch.__version__} has CUDA {running}",
            "the same CUDA major version",
            f"install a torch for CUDA {built.split('.')[0]}, or rebuild with an nvcc of CUDA "
            f"{running.split('.')[0]}: {_REBUILD}; STE_OPS_CUDA=0 in the environment loads the CPU kernels alone",
        )


def _load_cpu() -> None:
    if _torch_version() < MINIMUM_TORCH:
        _fail(
            f"torch {torch.__version__} is installed",
            f"torch >= {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]}",
            f"pip install 'torch>={MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]}'",
        )
    path = _FOLDER / "_C.abi3.so"
    if not path.exists():
        _fail(f"the compiled library {path.name} is missing from {_FOLDER}", "it beside __init__.py", _REBUILD)
    _load(path)


def _load_cuda() -> tuple[bool, str]:
    """Whether the CUDA kernels are loaded, and why not where they are not."""
    path = _FOLDER / "_cuda.abi3.so"
    if not path.exists():
        return False, f"this build of ste_ops has no CUDA kernels ({path.name} is missing)"
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} has no CUDA"
    if os.environ.get("STE_OPS_CUDA") == "0":
        return False, "STE_OPS_CUDA=0 is set"
    _load(path)
    _check_cuda_major(_info_of("cuda_build_info")["cuda"], torch.version.cuda)
    return True, ""


def _operator_names(namespace: str) -> list[str]:
    """The operators that have kernels: autograd_* stand for Functions (ste_ops/_functions/base.py)."""
    names = (name.split("::")[1] for name in all_operator_names() if name.startswith(namespace + "::"))
    return sorted(name for name in names if not name.startswith("autograd_"))


# Dispatch keys under which a user may arrive with a tensor that no kernel here takes.
_UNSUPPORTED_KEYS = ("MPS", "XPU", "HPU", "SparseCPU", "SparseCUDA", "SparseCsrCPU", "SparseCsrCUDA", "QuantizedCPU")


def _refuse(library: torch.library.Library, operator: str, key: str, why: str, mend: str) -> None:
    def refusal(*args: Any, **kwargs: Any) -> NoReturn:
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        got = ", ".join(sorted({f"{t.dtype} {t.layout} on {t.device}" for t in tensors})) or key
        raise RuntimeError(f"{operator}: {why}, got {got}. {mend}")

    library.impl(operator, refusal, key)


def _explain_missing_kernels(cuda: bool, cuda_reason: str) -> list[torch.library.Library]:
    """No silent fallback: a tensor without a kernel gets an error that says what mends it."""
    library = torch.library.Library("ste_ops", "IMPL")
    for operator in _operator_names("ste_ops"):
        for key in _UNSUPPORTED_KEYS:
            _refuse(library, operator, key, "tensors must be dense (strided) on cpu or cuda", "Move or convert them")
        if not cuda:
            mend = f"Build with nvcc present or FORCE_CUDA=1: {_REBUILD}"
            _refuse(library, operator, "CUDA", f"no CUDA kernel is loaded, because {cuda_reason}", mend)
    return [library]


@functools.cache
def _resolved(namespace: str) -> dict[str, Any]:
    return {name: getattr(getattr(torch.ops, namespace), name).default for name in _operator_names(namespace)}


class Operators:
    """The resolved operators as attributes: `ops.heaviside(...)` skips the lookups of `torch.ops`.

    The tests point it at the emulated CUDA kernels, which live in a namespace of their own.
    """

    namespace: str

    def __init__(self, namespace: str) -> None:
        self.use(namespace)

    def use(self, namespace: str) -> None:
        self.namespace = namespace
        vars(self).update(_resolved(namespace))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ste_ops: the compiled library has no operator {name!r}; {_REBUILD}")


_load_cpu()
CUDA_LOADED, CUDA_REASON = _load_cuda()
_libraries = _explain_missing_kernels(CUDA_LOADED, CUDA_REASON)
ops = Operators("ste_ops")


def watched() -> bool:
    """Whether a call past the dispatcher would hide from someone: Dynamo, a mode, a transform, a trace, the profiler.

    Or where the kernels are others than those of the library.
    """
    return (
        torch.compiler.is_compiling()
        or ops.namespace != "ste_ops"
        or dispatch_modes() > 0
        or function_modes() > 0
        or functorch_active()
        or jit_tracing()
        or profiled()
    )


def stand_in(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The operator `autograd_name`, with the Python function `run` as its kernel (ste_ops/_functions/base.py)."""
    library = torch.library.Library("ste_ops", "IMPL")
    _libraries.append(library)
    # The second is where a transform of torch.func would begin: a Function has rules of its own for them.
    for key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
        library.impl(f"autograd_{name}", run, key)
    return getattr(torch.ops.ste_ops, f"autograd_{name}").default


def build_info() -> dict[str, Any]:
    """What the compiled libraries were built with, and what of them is loaded.

    Returns:
        A dict: ``version`` of ste_ops; ``torch`` that is running and ``built_with_torch``; ``abi_target``, the oldest
        torch the libraries load on; ``compiler``; ``cpu_capability``, the instructions of loops that are written for
        several, which STE_OPS_CPU_CAPABILITY (default, avx2, avx512) in the environment lowers; ``cuda``, whether the
        CUDA kernels are loaded; ``cuda_reason``, why not where they are not; ``built_with_cuda`` and ``cuda_archs``
        where they are; ``libraries``, their paths.

    Example:
        >>> import ste_ops
        >>> ste_ops.build_info()["abi_target"]
        '2.11'
    """
    from ste_ops import __version__

    cpu = _info_of("build_info")
    info: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "built_with_torch": cpu["torch"],
        "abi_target": cpu["abi_target"],
        "compiler": cpu["compiler"],
        "cpu_capability": cpu["cpu_capability"],
        "cuda": CUDA_LOADED,
        "cuda_reason": CUDA_REASON,
        "libraries": sorted(str(path) for path in _FOLDER.glob("*.abi3.so")),
    }
    if CUDA_LOADED:
        cuda = _info_of("cuda_build_info")
        info |= {"built_with_cuda": cuda["cuda"], "cuda_archs": cuda["archs"].split("/")}
    return info
