"""What import says when it cannot work, what build_info tells, and one name for an operator on every floor."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ste_ops
from ste_ops import _library, reference
from ste_ops._functions.base import FAKES
from ste_ops._library import ops

PACKAGE = Path(ste_ops.__file__).parent


def import_a_copy(folder, change=lambda copy: None, before="", after="", **environment):
    """Imports a changed copy of the package in a process of its own; what that printed."""
    copy = folder / "ste_ops"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    change(copy)
    done = subprocess.run(
        [sys.executable, "-c", f"import torch\n{before}\nimport ste_ops\n{after}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr.strip().splitlines()


def import_error(*args, **kwargs):
    code, _, lines = import_a_copy(*args, **kwargs)
    assert code != 0
    assert lines[-1].startswith("ImportError: ste_ops: "), "\n".join(lines)
    return lines[-1]


def test_an_unchanged_copy_imports(tmp_path):
    code, out, lines = import_a_copy(tmp_path, after="print(ste_ops.__file__); print(ste_ops.sign(torch.zeros(2)))")
    assert code == 0, lines
    assert out.splitlines() == [str(tmp_path / "ste_ops" / "__init__.py"), "tensor([1., 1.])"]


def test_a_missing_library(tmp_path):
    message = import_error(tmp_path, lambda copy: (copy / "_C.abi3.so").unlink())
    assert f"the compiled library _C.abi3.so is missing from {tmp_path / 'ste_ops'}" in message
    assert "expected it beside __init__.py" in message
    assert "To mend it: pip install --no-build-isolation" in message


def test_a_library_that_is_none(tmp_path):
    def spoil(copy):
        (copy / "_C.abi3.so").unlink()
        (copy / "_C.abi3.so").write_bytes(b"no shared object")

    message = import_error(tmp_path, spoil)
    assert f"_C.abi3.so does not load with torch {torch.__version__}" in message
    assert "expected a library built against torch >= 2.11" in message
    assert "To mend it: pip install --no-build-isolation" in message


def test_a_torch_that_is_too_old(tmp_path):
    version = "2.10.1+cu128"
    message = import_error(tmp_path, before=f"torch.__version__ = {version!r}")
    assert f"torch {version} is installed; expected torch >= 2.11. To mend it: pip install 'torch>=2.11'" in message


@pytest.mark.parametrize(
    ("version", "enough"), [("2.11.0", True), ("2.14.0a0+git1234", True), ("3.0.0", True), ("2.9.1+cpu", False)]
)
def test_versions_compare_as_numbers(monkeypatch, version, enough):
    monkeypatch.setattr(torch, "__version__", version)
    assert (_library._torch_version() >= _library.MINIMUM_TORCH) == enough


@pytest.mark.skipif(ste_ops.build_info()["cuda"], reason="the CUDA kernels are loaded")
def test_a_cuda_library_that_is_none(tmp_path):
    def spoil(copy):
        (copy / "_cuda.abi3.so").unlink(missing_ok=True)
        (copy / "_cuda.abi3.so").write_bytes(b"no shared object")

    message = import_error(tmp_path / "with", spoil, before="torch.version.cuda = '13.0'")
    assert "_cuda.abi3.so does not load with torch" in message
    # Nothing opens it where torch has no CUDA, or the user said no.
    show = "print(ste_ops.build_info()['cuda'], ste_ops.build_info()['cuda_reason'])"
    code, out, _ = import_a_copy(tmp_path / "without", spoil, before="torch.version.cuda = None", after=show)
    assert (code, out) == (0, f"False torch {torch.__version__} has no CUDA\n")
    code, out, _ = import_a_copy(
        tmp_path / "off", spoil, before="torch.version.cuda = '13.0'", after=show, STE_OPS_CUDA="0"
    )
    assert (code, out) == (0, "False STE_OPS_CUDA=0 is set\n")


def test_another_cuda_major():
    with pytest.raises(ImportError) as caught:
        _library._check_cuda_major("13.0", "12.8")
    message = str(caught.value)
    assert f"_cuda.abi3.so was built with CUDA 13.0, but torch {torch.__version__} has CUDA 12.8" in message
    assert "expected the same CUDA major version" in message
    assert "install a torch for CUDA 13, or rebuild with an nvcc of CUDA 12" in message
    assert "STE_OPS_CUDA=0" in message
    _library._check_cuda_major("13.0", "13.2")


def test_an_operator_that_the_library_lacks():
    with pytest.raises(AttributeError, match=r"the compiled library has no operator 'nothing'; pip install"):
        _ = ops.nothing


def test_build_info():
    info = ste_ops.build_info()
    assert info["version"] == ste_ops.__version__
    assert info["torch"] == torch.__version__
    assert tuple(map(int, info["built_with_torch"].split("."))) >= _library.MINIMUM_TORCH
    assert info["abi_target"] == "2.11" == ".".join(map(str, _library.MINIMUM_TORCH))
    assert info["compiler"]
    assert str(PACKAGE / "_C.abi3.so") in info["libraries"]
    assert isinstance(info["cuda"], bool)
    assert info["cuda"] == (info["cuda_reason"] == "")
    assert ("cuda_archs" in info) == ("built_with_cuda" in info) == info["cuda"]
    if not (PACKAGE / "_cuda.abi3.so").exists():
        assert info["cuda_reason"] == "this build of ste_ops has no CUDA kernels (_cuda.abi3.so is missing)"


# ste_ops.testing is for users, so it needs no tools of these tests; the others take longer to load than torch itself.
NOT_LOADED = {"pytest", "hypothesis", "pybind11", "sklearn", "ste_ops.testing", "ste_ops.reference"}
NOT_LOADED |= {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx", "sympy"}


def test_import_and_eager_calls_load_neither_test_tools_nor_dynamo():
    script = f"""
import sys, torch, ste_ops
w = torch.ones(3, requires_grad=True)
ste_ops.sign(w).sum().backward()
ste_ops.clip_grad_norm_([w], 1.0)
ste_ops.multinomial(w.detach(), 2)
ste_ops.check_deferred_errors()
print(sorted({NOT_LOADED!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# One name on every floor.


def public_functions():
    """The functions that ste_ops exports, by the name of the family that defines them."""
    functions = {name: getattr(ste_ops, name) for name in dir(ste_ops) if inspect.isfunction(getattr(ste_ops, name))}
    return {name: fn for name, fn in functions.items() if name != "build_info"}


# fold_grad_clip_ changes what an optimizer's step does; clip_grad_norm_ and the step are its reference. A reference
# raises at once.
WITHOUT_REFERENCE = {"fold_grad_clip_", "check_deferred_errors"}


def parameters_of(fn):
    """Names, kinds and defaults; a reference knows one process."""
    parameters = inspect.signature(fn).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.name != "process_group"]


@pytest.mark.parametrize("name", sorted(set(public_functions()) - WITHOUT_REFERENCE))
def test_every_function_has_a_reference_of_its_name_and_signature(name):
    fn, slow = public_functions()[name], getattr(reference, name)
    assert parameters_of(slow) == parameters_of(fn)
    family = re.sub(r"\bclip\.\w+", "clip", fn.__module__.removeprefix("ste_ops.functional."))
    assert slow.__module__ == f"ste_ops.reference.{family}"
    assert slow.__doc__
    assert slow is not fn


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_every_function_is_documented(name):
    fn = public_functions()[name]
    parts = ["Args:", "Raises:", "Example:", ">>> "]
    if inspect.signature(fn).return_annotation != "None":
        parts.append("Returns:")
    assert [part for part in parts if part not in inspect.getdoc(fn)] == []


def test_every_surrogate_stands_on_every_floor():
    for name, saves in (entry.split(":") for entry in ops.surrogates().split()):
        surrogate = getattr(ste_ops.surrogate, name)
        assert (surrogate.__name__, surrogate.saves) == (name, saves)
        assert {"_derivative", "primitive"} <= vars(surrogate).keys()


def test_every_operator_with_a_tensor_has_a_fake_kernel():
    names = set(_library._operator_names("ste_ops"))
    assert set(FAKES) == names - {"surrogates", "build_info", "cuda_build_info"}


def test_every_operator_has_a_kernel_and_refusals():
    for name in FAKES:
        for key in ("CPU", "Meta", *_library._UNSUPPORTED_KEYS):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ste_ops::{name}", key), (name, key)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ste_ops::{name}", "CUDA"), name


def test_python_calls_operators_through_ops_alone():
    """The tests point `ops` at the emulated kernels; torch.ops.ste_ops elsewhere would slip past them."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "_library.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            direct = isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.ops.ste_ops")
            assert not direct, f"{path}:{node.lineno}"
