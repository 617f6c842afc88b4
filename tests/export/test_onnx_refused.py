"""What no ONNX file holds, and what an export refuses or leaves as it was."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from torch import nn

import ste_ops
from ste_ops._library import _operator_names
from ste_ops.nn import LSQ, QuantLinear, Sign, StochasticRound
from ste_ops.onnx._refused import REFUSED

INFORMATION = {"surrogates", "build_info", "cuda_build_info"}


@pytest.fixture
def packages():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


@pytest.mark.usefixtures("packages")
def test_every_operator_is_translated_or_refused():
    from ste_ops.onnx._translate.table import BY_INTEGERS, TRANSLATED

    assert not TRANSLATED.keys() & REFUSED.keys()
    assert TRANSLATED.keys() | REFUSED.keys() == set(_operator_names("ste_ops")) - INFORMATION
    assert BY_INTEGERS.keys() <= TRANSLATED.keys()
    assert len(ste_ops.onnx.translations()) == len(TRANSLATED) + len(REFUSED)


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Call(ste_ops.bernoulli_ste))

    def forward(self, x):
        return self.inner(x)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.usefixtures("packages")
def test_an_operator_that_draws_is_refused_by_name_and_place():
    refused = r"export: ste_ops.bernoulli cannot be exported to ONNX: it draws at random.*, in inner.1"
    with pytest.raises(NotImplementedError, match=refused):
        ste_ops.onnx.export(Draws(), (torch.rand(2, 4),))
    for draw in (ste_ops.categorical_ste, ste_ops.stochastic_round, lambda x: ste_ops.multinomial(x, 2, True)):
        with pytest.raises(NotImplementedError, match="it draws at random"):
            ste_ops.onnx.export(Call(draw), (torch.rand(2, 4),))


@pytest.mark.usefixtures("packages")
def test_torch_names_what_the_table_refuses():
    program = torch.export.export(Call(ste_ops.stochastic_round), (torch.rand(2, 4),))
    with pytest.raises(Exception, match=r"ste_ops\.stochastic_round cannot be exported to ONNX"):
        torch.onnx.export(program, custom_translation_table=ste_ops.onnx.translations(), verbose=False)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "model must be a module, got function", {"model": ste_ops.sign}),
        (TypeError, "args must be a tuple of example inputs", {"args": torch.rand(2, 4)}),
        (ValueError, "opset_version must be", {"opset_version": 18}),
        (ValueError, "give one of them", {"dynamic_batch": True, "dynamic_shapes": ({0: "batch"},)}),
        (ValueError, r"two samples or more, got shape \(1, 4\)", {"dynamic_batch": True, "args": (torch.rand(1, 4),)}),
        (RuntimeError, "no scale is set yet", {"model": LSQ(4)}),
    ],
)
def test_bad_arguments_are_refused(error, words, change):
    given = {"model": Sign(), "args": (torch.rand(2, 4),), **change}
    with pytest.raises(error, match=words):
        ste_ops.onnx.export(given.pop("model"), given.pop("args"), **given)


@pytest.mark.usefixtures("packages")
def test_a_model_is_exported_as_in_evaluation_and_stays_as_it_is(tmp_path):
    layer = QuantLinear(4, 3, weight_quantizer=LSQ(4, axis=0), input_quantizer=StochasticRound())
    model = nn.Sequential(layer, nn.Dropout(0.5)).train()
    model[1].eval()
    model(torch.rand(2, 4))  # sets the scale
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ste_ops.onnx.export(model, (torch.rand(2, 4),), tmp_path / "model.onnx")
    assert [model.training, layer.training, model[1].training] == [True, True, False]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert type(model[0].weight_quantizer) is LSQ
    content = (tmp_path / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert b"stack_trace" not in content
    assert str(tmp_path.parents[0]).encode() not in content


def test_a_missing_package_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    for call in (ste_ops.onnx.translations, lambda: ste_ops.onnx.export(Sign(), (torch.rand(2, 4),))):
        with pytest.raises(ImportError, match=r"onnxscript.* not found; pip install 'ste_ops\[onnx\]'"):
            call()
