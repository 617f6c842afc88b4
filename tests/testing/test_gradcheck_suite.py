"""The suite passes every operator, shows what is broken, and the command says so; check_gradients catches."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import torch
from torch.autograd.function import once_differentiable

import ste_ops
from ste_ops import __main__ as command
from ste_ops import reference
from ste_ops._functions import binarize as functions
from ste_ops.surrogate import Clip
from ste_ops.testing import CHECKS, IntegerWindow, Window, check_gradients, check_ste, gradcheck_suite
from ste_ops.testing import _operators as table

# They have no gradient, or only ever write into one.
WITHOUT_GRADIENT = {
    "AliasTable",
    "ClipResult",
    "SumTree",
    "__version__",
    "patch_torch",
    "build_info",
    "check_deferred_errors",
    "clip_grad_agc_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "clip_per_sample_",
    "pack_bits",
    "unpack_bits",
    "data",
    "fold_grad_clip_",
    "get_total_norm",
    "multinomial",
    "nn",
    "onnx",
    "reference",
    "residual_resample",
    "sr_ste_decay_",
    "stratified_resample",
    "surrogate",
    "systematic_resample",
    "testing",
}


def test_the_whole_suite_passes(device):
    report = gradcheck_suite(device)
    assert report.passed, str(report)
    assert {row.operator for row in report.rows} == set(dir(ste_ops)) - WITHOUT_GRADIENT
    for row in report.rows:
        assert tuple(row.results) == CHECKS
        assert all(result.compared > 0 for result in row.results.values() if result.passed)
        assert all(result.message for result in row.results.values() if result.passed is None)


def test_one_of_each_kind_compiles():
    kinds = ["bernoulli_ste", "fake_quantize", "lsq", "xnor_weight", "sr_ste", "clip_gradient_norm"]
    report = gradcheck_suite("cpu", kinds, compile="aot_eager")
    assert report.passed, str(report)
    compiled = {row.operator for row in report.rows if row.results["compile"].passed}
    assert compiled == {row.operator for row in report.rows} - {"bernoulli_ste"}


def failed(report):
    return {check for _, check in report.failures}


def test_a_broken_backward_fails(monkeypatch):
    monkeypatch.setattr(functions, "saved_mask_gradient", lambda ctx, grad, order: grad)
    report = gradcheck_suite("cpu", ["sign"])
    assert failed(report) >= {"backward", "derivative", "nonfinite", "second_order", "forward_mode", "func"}
    assert {row.arguments for row, _ in report.failures} >= {"Clip(threshold=1.0)"}
    assert "Identity()" not in {row.arguments for row, _ in report.failures}


def doubled(out):
    if isinstance(out, tuple):
        return tuple(map(doubled, out))
    return 2 * out if isinstance(out, torch.Tensor) and out.is_floating_point() else out


FUNCTIONS = {
    "heaviside": "binarize.Heaviside",
    "bernoulli_ste": "sampling.bernoulli.Bernoulli",
    "categorical_ste": "sampling.categorical.Categorical",
    "subset_ste": "sampling.subset.Subset",
    "round": "quantize.rounding.Round",
    "fake_quantize": "quantize.uniform.FakeQuantize",
    "lsq": "quantize.lsq.LSQ",
    "lsq_plus": "quantize.lsq.LSQPlus",
    "pact": "quantize.uniform.PACT",
    "dorefa_activation": "quantize.uniform.DorefaActivation",
    "dorefa_weight": "quantize.scaled.DoReFaWeight",
    "xnor_weight": "quantize.scaled.XNORWeight",
    "bitnet_weight": "quantize.scaled.BitNetWeight",
    "sr_ste": "quantize.sparse.SRSTE",
    "clip_gradient_norm": "clip.ClipGradientNorm",
}


@pytest.mark.parametrize("operator", FUNCTIONS)
@pytest.mark.parametrize(("method", "check"), [("backward", "backward"), ("jvp", "forward_mode"), ("vmap", "vmap")])
def test_twice_of_what_is_right_fails(monkeypatch, operator, method, check):
    """Every row, so of each operator every gradient, but for those that the row does not take."""
    module, name = FUNCTIONS[operator].rsplit(".", 1)
    function = getattr(importlib.import_module(f"ste_ops._functions.{module}"), name)
    right = getattr(function, method)

    def wrong(*args):
        if method != "vmap":
            return doubled(right(*args))
        out, dims = right(*args)
        return doubled(out), dims

    monkeypatch.setattr(function, method, staticmethod(wrong))
    report = gradcheck_suite("cpu", [operator], [torch.float32])
    results = {row.name: row.results[check] for row in report.rows if row.results[check].passed is not None}
    assert results or check == "vmap"
    # These are other Functions.
    others = {"heaviside(Custom(...))", "dorefa_weight(w, bits=1)", "lsq(x, constant scale)"}
    others.add("xnor_weight(w, ApproxSign())")
    others.add("lsq_plus(x, constant scale, offset 0.125)")
    others |= {name for name in results if name.startswith("heaviside(x, learned ") or name.endswith("at_zero=1)")}
    assert {name for name, result in results.items() if result.passed} <= others


def test_a_broken_forward_fails(monkeypatch):
    monkeypatch.setattr(ste_ops, "sign", ste_ops.heaviside)
    report = gradcheck_suite("cpu", ["sign"])
    assert failed(report) == {"forward"}


def test_an_operator_that_raises_fails_every_check_and_hides_no_other(monkeypatch, capsys):
    def broken(x, clip_value):
        raise RuntimeError("planted\nin two lines")

    monkeypatch.setattr(ste_ops, "clip_gradient_value", broken)
    with pytest.raises(SystemExit) as stopped:
        command.main(["gradcheck", "--op", "clip_gradient_value", "clip_gradient_norm", "--dtype", "float32"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    lines = {line.split("(")[0]: line for line in printed.splitlines() if line[:5] == "clip_"}
    assert lines["clip_gradient_value"].count("FAIL") == 7
    assert "pass" not in lines["clip_gradient_value"]
    assert "FAIL" not in lines["clip_gradient_norm"]
    assert "FAIL clip_gradient_value(x, 1.5) backward: " in printed
    assert "RuntimeError: planted\n" in printed


def test_a_row_that_cannot_be_made_fails(monkeypatch):
    def cases():
        for case in original():
            yield dataclasses.replace(case, make=lambda setting: 1 / 0)

    original = table.cases
    monkeypatch.setattr(table, "cases", cases)
    report = gradcheck_suite("cpu", ["clip_gradient_norm"])
    assert failed(report) == set(CHECKS)
    assert "ZeroDivisionError" in str(report)


def test_the_command_prints_a_table(capsys):
    command.main(["gradcheck", "--op", "clip_gradient_norm", "bernoulli_ste", "--dtype", "float32", "float16"])
    printed = capsys.readouterr().out
    header, *rows = printed.splitlines()
    assert header.split()[:3] == ["operator", "forward", "backward"]
    assert [row.split("(")[0] for row in rows[:2]] == ["bernoulli_ste", "clip_gradient_norm"]
    assert rows[0].count("pass") == 7
    assert "- vmap: a draw belongs to its place in memory, which another batch changes (bernoulli_ste)" in printed
    assert "- compile: not asked for" in printed
    assert "cpu; forward, derivative and nan/inf in float32, float16; the others in float64" in printed
    assert ", 0 failed, " in printed


def test_the_command_prints_json(capsys):
    command.main(["gradcheck", "--op", "clip_gradient_norm", "--dtype", "float32", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"]
    assert (printed["device"], printed["dtypes"]) == ("cpu", ["float32"])
    results = printed["rows"][0]["results"]
    assert tuple(results) == CHECKS
    assert results["backward"]["passed"]
    assert results["compile"] == {"passed": None, "compared": 0, "message": "not asked for"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "signum"], "operators must be some of heaviside, sign, .*, got signum"),
        (["--device", "mps"], "device must be cpu or cuda, got mps"),
        (["--device", "cuda:99"], "device cuda:99 is not there: torch .* sees "),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_the_command_refuses(arguments, message):
    with pytest.raises(SystemExit, match=f"ste_ops gradcheck: .*{message}"):
        command.main(["gradcheck", *arguments])


def test_no_dtype_is_refused():
    with pytest.raises(ValueError, match=r"dtypes must be some of float64, .*, got \[torch.int32\]"):
        gradcheck_suite(dtypes=[torch.int32])


# check_gradients.

WEIGHT = torch.tensor([[-1.5, -0.5, 0.25, 0.75], [0.1, 2.0, -0.3, -0.9]], dtype=torch.float64)


def stand_in(w):
    passed = torch.where(WEIGHT >= 0, 1.0, -1.0) + w.clamp(-1, 1) - WEIGHT.clamp(-1, 1)
    return passed * w.abs().mean(1, keepdim=True)


def scaled_sign(w):
    return ste_ops.sign(w) * w.abs().mean(1, keepdim=True)


def test_check_gradients_passes_a_right_operator():
    report = check_gradients(scaled_sign, stand_in, WEIGHT, reference=reference.xnor_weight, compile="eager")
    assert tuple(report.checked) == tuple(check for check in CHECKS if check != "nonfinite")
    assert report.operator == "scaled_sign"
    assert report.reasons == {"nonfinite": "for elementwise operators"}
    assert min(report.checked.values()) == WEIGHT.numel()


class Halved(torch.autograd.Function):
    """Half the gradient, or what else is put in place of its methods."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w):
        return w.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad / 2

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


def identity(w):
    return w


@pytest.mark.parametrize(
    ("fn", "check", "message"),
    [
        (lambda w: scaled_sign(w) * 2, "forward", r"at output\[0, 0\]: expected -0.75, received -1.5"),
        (lambda w: scaled_sign(w)[0], "forward", "expected shape"),
        (lambda w: ste_ops.sign(w) * w.abs().mean(1, keepdim=True).detach(), "backward", r"at inputs\[0\]\[0, 0\]"),
        (lambda w: scaled_sign(w) + (w - w.detach()).sum() * 0.1, "backward", r"at inputs\[0\]\[0, 0\]"),
    ],
)
def test_check_gradients_catches(fn, check, message):
    with pytest.raises(AssertionError, match=f"check_gradients: {check} of <lambda> .*{message}"):
        check_gradients(fn, stand_in, WEIGHT, reference=reference.xnor_weight)


@pytest.mark.parametrize(
    ("methods", "check"),
    [
        ({}, "backward"),
        ({"backward": once_differentiable(lambda ctx, grad: grad.clone())}, "second_order"),
        ({"backward": lambda ctx, grad: grad.clone(), "jvp": lambda ctx, tangent: tangent * 2}, "forward_mode"),
        ({"backward": lambda ctx, grad: grad.clone(), "generate_vmap_rule": False}, "vmap"),
    ],
)
def test_check_gradients_catches_a_function(methods, check):
    body = {name: staticmethod(method) if callable(method) else method for name, method in methods.items()}
    fn = type("User", (Halved,), body).apply
    with pytest.raises(AssertionError, match=f"check_gradients: {check} of User"):
        check_gradients(fn, identity, WEIGHT)


def test_a_potential_says_what_else_is_in_the_backward():
    def decayed(w):
        return Halved.apply(w) + 0.5 * w

    check_gradients(decayed, identity, WEIGHT, skip=("forward_mode",))
    with pytest.raises(AssertionError, match="backward of decayed"):
        check_gradients(decayed, identity, WEIGHT, potential=lambda grad, w: (grad * w).sum() + (w**2).sum())


def test_arguments():
    with pytest.raises(TypeError, match="check_gradients: inputs must be floating tensors, got float"):
        check_gradients(scaled_sign, stand_in, [1.0])
    with pytest.raises(ValueError, match=r"check_gradients: skip must name checks of .*, got speed"):
        check_gradients(scaled_sign, stand_in, WEIGHT, skip=["speed"])


# Windows, and the domain.


def test_windows_are_surrogates():
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, torch.nan])
    assert Window(0, 1).derivative(x).tolist() == [0, 1, 1, 1, 0, 0]
    assert Window(0, 1, closed="left").derivative(x).tolist() == [0, 1, 1, 0, 0, 0]
    assert Window(0, float("inf")).kinks() == [0]
    half = torch.tensor([-2.5, -2.0, 1.5, 1.49, torch.nan])
    assert IntegerWindow(-2, 1).derivative(half).tolist() == [1, 1, 0, 1, 0]
    assert IntegerWindow(0, 3, scale=0.5, zero_point=2).kinks() == [-1.25, 0.75]


def test_a_domain_keeps_the_grid_inside():
    def in_domain(x):
        assert x.min() >= 0
        assert x.max() <= 1
        return ste_ops.sign(x)

    check_ste(in_domain, Clip(2.0), torch.tensor([0.25]), domain=(0.0, 1.0), skip=("vmap", "func"))
