"""What Dynamo is told where it is loaded, and that it was told so here."""

import importlib
import importlib.util
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import ste_ops
from ste_ops import _dynamo
from ste_ops._functions.base import NativeFunction
from ste_ops._functions.binarize import binarize


def subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_dynamo_takes_every_function_into_the_graph():
    allowed = torch._dynamo.trace_rules.is_callable_allowed
    functions = [cls for cls in subclasses(NativeFunction) if cls.__module__.startswith("ste_ops.")]
    assert len(functions) > 30
    assert [cls.__name__ for cls in functions if not allowed(cls)] == []
    assert allowed(binarize)

    class Late(NativeFunction):
        pass

    assert allowed(Late)
    assert _dynamo._waiting[_dynamo._DYNAMO] == []


def test_a_graph_ends_before_what_waits_for_the_device():
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(lambda x: (x + 1, ste_ops.check_deferred_errors(), x + 2))(torch.ones(2))
    assert explanation.graph_break_count == 1
    assert "torch.compiler.disable" in str(explanation.break_reasons[0])


def test_nothing_is_compiled_within_what_is_never_compiled():
    def inner(x):
        return x.sin() + 1

    torch._dynamo.reset()
    outside = _dynamo.never_compiled(lambda x: inner(x))
    counter = CompileCounter()
    compiled = torch.compile(lambda x: outside(x), backend=counter)
    assert torch.equal(compiled(torch.ones(2)), inner(torch.ones(2)))
    assert counter.frame_count == 0


@pytest.fixture
def module_in_place_of_dynamo(tmp_path, monkeypatch):
    """A module that is found as Dynamo is; it runs the file that the test writes."""
    monkeypatch.setattr(_dynamo, "_waiting", {"in_place_of_dynamo": []})
    others = [finder for finder in sys.meta_path if not isinstance(finder, _dynamo._Finder)]
    monkeypatch.setattr(sys, "meta_path", [_dynamo._Finder(), *others])
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path / "in_place_of_dynamo.py"
    sys.modules.pop("in_place_of_dynamo", None)


def test_what_waits_is_told_behind_the_import(module_in_place_of_dynamo):
    told = []
    _dynamo._tell(
        "in_place_of_dynamo", lambda word: told.append((word, sys.modules["in_place_of_dynamo"].READY)), "before"
    )
    module_in_place_of_dynamo.write_text("raise ValueError('not yet')")
    with pytest.raises(ValueError, match="not yet"):
        importlib.import_module("in_place_of_dynamo")
    assert told == []
    module_in_place_of_dynamo.write_text("READY = True  # with a size of its own, which the cache looks at")
    assert importlib.util.find_spec("in_place_of_dynamo") is not None  # to look for it is not to load it
    assert told == []
    module = importlib.import_module("in_place_of_dynamo")
    assert told == [("before", True)]
    assert "exec_module" not in vars(module.__spec__.loader)
    _dynamo._tell("in_place_of_dynamo", told.append, "after")
    assert told == [("before", True), "after"]


def test_an_inductor_that_is_not_known_calls_the_operators(monkeypatch):
    from torch._inductor import decomposition, lowering

    def ours():
        return {op: f for op, f in decomposition.decompositions.items() if op.namespace == "ste_ops"}

    def changed(*args, **kwargs):
        raise TypeError("make_fallback() takes another argument")

    before = ours()
    assert torch.ops.ste_ops.lsq.default in before
    monkeypatch.setattr(lowering, "make_fallback", changed)
    try:
        with pytest.warns(UserWarning, match=r"does not know the Inductor of torch .* \(TypeError: make_fallback"):
            _dynamo.takes_alike(torch.ops.ste_ops.lsq_backward_of_scale.default)
        assert ours() == {}
        assert torch.ops.ste_ops.lsq.default not in decomposition.fast_random_decomps()
    finally:
        decomposition.decompositions.update(before)
        decomposition.fast_random_decomps.cache_clear()
