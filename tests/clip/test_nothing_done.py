"""What would do nothing says so: a warning at the caller's line, or an error that names what was meant."""

from __future__ import annotations

import itertools
import types
import warnings

import numpy as np
import pytest
import torch
from support.clip_cases import parameter

import ste_ops

CLIPS = {
    "clip_grad_norm_": lambda ps: ste_ops.clip_grad_norm_(ps, 1.0),
    "clip_grads_with_norm_": lambda ps: ste_ops.clip_grads_with_norm_(ps, 1.0, torch.tensor(5.0)),
    "clip_grad_value_": lambda ps: ste_ops.clip_grad_value_(ps, 1.0),
    "clip_grad_agc_": lambda ps: ste_ops.clip_grad_agc_(ps, 1.0),
}
EMPTY = {
    "generator": lambda: (p for p in []),
    "filter": lambda: filter(None, []),
    "chain": lambda: itertools.chain([]),
    "map": lambda: map(abs, []),
    "list_iterator": lambda: iter([]),
}


@pytest.mark.parametrize("name", CLIPS)
def test_gradients_in_place_of_parameters(name):
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])]
    for given in (grads, grads[0], iter(grads)):
        with pytest.warns(UserWarning, match=f"{name}: none of the .* It takes the parameters") as caught:
            CLIPS[name](given)
        assert [w.filename for w in caught] == [__file__]
    assert grads[0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", CLIPS)
def test_silent_where_there_may_be_nothing_to_do(name):
    """Before the first backward, of an empty list, and where a gradient stands beside a frozen parameter."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLIPS[name]([])
        CLIPS[name](torch.nn.Linear(2, 1).parameters())
        CLIPS[name]([torch.zeros(2), parameter(torch.ones(2))])


def test_an_optimizer_none_of_whose_parameters_can_have_a_gradient():
    p, q = torch.zeros(2, requires_grad=True), torch.zeros(2)
    optimizer = torch.optim.SGD([p, q], lr=1.0, fused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ste_ops.fold_grad_clip_(optimizer, 1.0)  # before the first backward
        p.requires_grad_(False).grad = torch.ones(2)
        ste_ops.fold_grad_clip_(optimizer, 1.0)
        p.grad = None
    message = "fold_grad_clip_: none of the 2 tensors of the optimizer has a gradient or requires one, no gradient"
    with pytest.warns(UserWarning, match=message) as caught:
        ste_ops.fold_grad_clip_(optimizer, 1.0)
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize("name", CLIPS)
def test_a_graph_holds_no_warning(name):
    torch._dynamo.reset()
    grads = [torch.tensor([3.0, 4.0])]
    for given in (lambda: grads, lambda: (g for g in [])):
        torch.compile(lambda given=given: CLIPS[name](given()), fullgraph=True, backend="eager")()
    assert grads[0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("name", [*CLIPS, "get_total_norm"])
def test_an_iterator_that_is_empty(name, kind):
    argument = "tensors" if name == "get_total_norm" else "parameters"
    with pytest.warns(UserWarning, match=f"`{argument}` is an empty {kind}, no gradient clipping") as caught:
        CLIPS.get(name, ste_ops.get_total_norm)(EMPTY[kind]())
    assert [w.filename for w in caught] == [__file__]


def test_a_generator_that_the_call_before_used_up():
    p = parameter(torch.tensor([3.0, 4.0]))
    generator = (q for q in [p])
    norm = ste_ops.get_total_norm(q.grad for q in generator)
    with pytest.warns(UserWarning, match="is an empty generator"):
        ste_ops.clip_grads_with_norm_(generator, 1.0, norm)
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", CLIPS)
def test_what_holds_parameters_and_is_none(name):
    linear = torch.nn.Linear(2, 1)
    named = torch.nn.ParameterDict({"w": linear.weight})
    for given, message in [
        (linear, r"got the module Linear; its parameters\(\)"),
        (torch.nn.Sequential(linear), r"got the module Sequential; its parameters\(\)"),
        ([linear], r"got the module Linear; its parameters\(\)"),
        (named, r"got the module ParameterDict; its parameters\(\)"),
        (linear.named_parameters(), r"got a tuple; named_parameters\(\)"),
        (linear.state_dict(), r"got a OrderedDict; the values\(\)"),
        (types.MappingProxyType({"w": linear.weight}), r"got a mappingproxy; the values\(\)"),
        (torch.optim.SGD(linear.parameters()).param_groups, r"got a dict; the values\(\)"),
        (3, "got 'int'"),
    ]:
        with pytest.raises(
            TypeError, match=f"{name}: parameters must be a tensor or an iterable of tensors, {message}"
        ):
            CLIPS[name](given)


def test_a_list_of_parameters_that_is_a_module():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    assert ste_ops.clip_grad_norm_(torch.nn.ParameterList([p]), 1.0) == 5


META = torch.tensor(1.0, device="meta")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "must be a number, got None"),
        ("ab", "must be a number, got 'ab'"),
        (10**400, "must be a number, got 1000"),
        (np.array([1.0, 2.0]), "must be a number, got array"),
        (META, "must hold a number, got a meta tensor"),
    ],
    ids=["None", "a word", "an integer too large", "two numbers", "a meta tensor"],
)
def test_no_bound(bad, message):
    p = parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0, fused=True)
    for call, argument in [
        (lambda: ste_ops.clip_grad_norm_(p, bad), "clip_grad_norm_: max_norm"),
        (lambda: ste_ops.clip_grads_with_norm_(p, bad, torch.tensor(1.0)), "clip_grads_with_norm_: max_norm"),
        (lambda: ste_ops.fold_grad_clip_(optimizer, bad), "fold_grad_clip_: max_norm"),
        (lambda: ste_ops.clip_grad_value_(p, bad), "clip_grad_value_: clip_value"),
        (lambda: ste_ops.clip_grad_agc_(p, bad), "clip_grad_agc_: clip_factor"),
        (lambda: ste_ops.clip_gradient_norm(p, bad), "clip_gradient_norm: max_norm"),
        (lambda: ste_ops.clip_gradient_value(p, bad), "clip_gradient_value: clip_value"),
        (lambda: ste_ops.get_total_norm(p, bad), "get_total_norm: norm_type"),
    ]:
        with pytest.raises((TypeError, ValueError, OverflowError), match=f"{argument} {message}"):
            call()
    assert p.grad.tolist() == [1.0, 1.0]


def with_negative_bit(values, device):
    grad = torch.complex(torch.zeros_like(values), -values).to(device).conj().imag
    assert grad.is_neg()
    return grad


def test_a_gradient_with_the_negative_bit(device):
    """`z.conj().imag` is what is in memory with the other sign: the memory is what must be clipped."""
    values = torch.tensor([[3.0, -4.0], [0.3, -0.4]])
    beside = torch.tensor([12.0], device=device)
    for clip in CLIPS.values():
        ours, plain = parameter(with_negative_bit(values, device)), parameter(values.clone().to(device))
        results = [clip([p, parameter(beside.clone())]) for p in (ours, plain)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(ours.grad.resolve_neg(), plain.grad, rtol=0, atol=0)
    _, norms = ste_ops.get_total_norm([with_negative_bit(values, device), beside], return_norms=True)
    assert norms.tolist() == [pytest.approx(25.25**0.5), 12]
