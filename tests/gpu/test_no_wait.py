"""The host never waits for a GPU where nobody asked for a host answer, and refuses bad arguments without harm to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.operator_calls import NAMES, calls, some
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ste_ops
from benchmarks.straight_through import CASES, Case
from ste_ops._library import ops

# What reads a value on the host: each waits for a GPU.
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}


class Refuse(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        if name in READS:
            raise RuntimeError(f"called a synchronizing operation: {name}")
        return func(*args, **(kwargs or {}))


# A third of a second or so, in which the GPU does nothing else.
BUSY = 500_000_000


@contextlib.contextmanager
def no_wait(device: str) -> Iterator[None]:
    """An error where the host waits. On a GPU torch says so of its own calls; of those of our runtime, which it does
    not see, the stream does: it is kept busy, and a host that waited comes back when it no longer is. What runs here
    has run before, since a first call may load something. Elsewhere an error where the host reads a value, which would
    wait on a GPU."""
    if device != "cuda":
        with Refuse():
            yield
        return
    busy = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(BUSY)
        busy.record()
        yield
        waited = busy.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    if waited:
        raise RuntimeError("waited for the GPU: the stream is no longer busy")


def test_a_wait_is_seen(device: str) -> None:
    x = torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="synchronizing operation"), no_wait(device):
        x.sum().item()


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_wait_that_torch_does_not_see_is_seen(device: str) -> None:
    def wait() -> None:
        done = torch.cuda.Event()
        done.record()
        while not done.query():
            pass

    with pytest.raises(RuntimeError, match="waited for the GPU"), no_wait(device):
        wait()


@pytest.mark.parametrize("name", NAMES)
def test_no_registered_operator_waits(device: str, name: str) -> None:
    for sample in some(name, 0, device):
        sample.on(device)()
        call = sample.on(device)
        with no_wait(device):
            call()


def _trained(function: Callable[..., Tensor], *shape: int) -> Callable[[str], Callable[[], Any]]:
    """Forward and backward."""

    def prepared(device: str) -> Callable[[], Any]:
        x = torch.rand(shape or (8, 12), device=device, requires_grad=True)
        return lambda: function(x).sum().backward()

    return prepared


def _of_a_case(case: Case, device: str) -> Callable[[], Any]:
    x, extra = torch.randn(1024, 12, device=device, requires_grad=True), case.extra(device)
    return lambda: case.ours(x, *extra).sum().backward()


def _clipped(function: Callable[[list[Tensor]], Any]) -> Callable[[str], Callable[[], Any]]:
    def prepared(device: str) -> Callable[[], Any]:
        parameters = [torch.randn(n, device=device, requires_grad=True) for n in (5, 300)]
        for p in parameters:
            p.grad = torch.randn_like(p)
        return lambda: function(parameters)

    return prepared


def _drawn(function: Callable[[Tensor], Any]) -> Callable[[str], Callable[[], Any]]:
    def prepared(device: str) -> Callable[[], Any]:
        weights = torch.rand(3000, device=device) + 0.1
        return lambda: function(weights)

    return prepared


def _of_a_table(device: str) -> Callable[[], Any]:
    table = ste_ops.AliasTable(torch.ones(100, device=device))  # which reads a number of each row, once
    return lambda: table.sample(50)


def _of_a_tree(device: str) -> Callable[[], Any]:
    tree, index = ste_ops.SumTree(torch.ones(100, device=device)), torch.arange(10, device=device)
    values = torch.full((10,), 2.0, device=device)

    def step() -> None:
        tree.update(index, values)
        tree.sample(20)

    return step


FACES: dict[str, Callable[[str], Callable[[], Any]]] = {
    **{case.name: partial(_of_a_case, case) for case in CASES},
    "stochastic_round": _trained(ste_ops.stochastic_round),
    "bernoulli_ste": _trained(ste_ops.bernoulli_ste),
    **{f"categorical_ste, {e}": _trained(lambda x, e=e: ste_ops.categorical_ste(x, e)) for e in ("gumbel", "reinmax")},
    "categorical_ste": _trained(ste_ops.categorical_ste),
    "subset_ste": _trained(lambda x: ste_ops.subset_ste(x, 3)),
    "clip_gradient_value": _trained(lambda x: ste_ops.clip_gradient_value(x, 0.5)),
    "clip_gradient_norm": _trained(lambda x: ste_ops.clip_gradient_norm(x, 0.5, dim=1)),
    "clip_grad_norm_": _clipped(lambda p: ste_ops.clip_grad_norm_(p, 1.0)),
    "clip_grad_norm_, a result": _clipped(lambda p: ste_ops.clip_grad_norm_(p, 1.0, return_result=True)),
    "clip_grad_norm_, skipping": _clipped(lambda p: ste_ops.clip_grad_norm_(p, 1.0, nonfinite="skip")),
    "clip_grad_value_": _clipped(lambda p: ste_ops.clip_grad_value_(p, 1.0)),
    "clip_grad_agc_": _clipped(ste_ops.clip_grad_agc_),
    "get_total_norm": _clipped(lambda p: ste_ops.get_total_norm([q.grad for q in p])),
    "clip_per_sample_": _clipped(lambda p: ste_ops.clip_per_sample_([q.grad.view(5, -1) for q in p], 1.0)),
    "multinomial": _drawn(lambda w: ste_ops.multinomial(w, 5)),
    "multinomial, few": _drawn(lambda w: ste_ops.multinomial(w, 5, True)),
    "multinomial, a table": _drawn(lambda w: ste_ops.multinomial(w, 3000, True)),
    "systematic_resample": _drawn(lambda w: ste_ops.systematic_resample(w, 3000)),
    "stratified_resample": _drawn(lambda w: ste_ops.stratified_resample(w, 3000)),
    "residual_resample": _drawn(lambda w: ste_ops.residual_resample(w, 3000)),
    "AliasTable": _of_a_table,
    "SumTree": _of_a_tree,
}


@pytest.mark.parametrize("name", FACES)
def test_no_public_function_waits(device: str, name: str) -> None:
    call = FACES[name](device)
    call()  # a first call may load what it runs
    with no_wait(device):
        call()


# What is refused before a kernel starts, of any device.
x, seeds = torch.ones(3, 4), torch.tensor([1])
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "a dtype": ("sign", (x.int(), 1, 1.0, 0.0)),
    "a surrogate": ("heaviside", (x, 99, 1.0, 0.0)),
    "a mask too short": ("binarize_backward", (x, torch.zeros(1, dtype=torch.uint8))),
    "scales too few": ("lsq", (x, torch.ones(2), -4, 3, 1)),
    "an axis": ("fake_quantize", (x, torch.ones(3), None, 1.0, 0.0, -4, 3, 7)),
    "another shape": ("curve_backward", (torch.ones(2), x, 3, 1.0, 0.0, None)),
    "two seeds": ("bernoulli", (x, torch.tensor([1, 2]))),
    "a seed's dtype": ("categorical", (x, seeds.int())),
    "a table of floats": ("alias_sample", (x, torch.ones(3, dtype=torch.int64), seeds, 0, 5)),
    "draws": ("multinomial_without_replacement", (x, seeds, -3, "multinomial_without_replacement")),
    "a tree too small": ("sum_tree_sample", (torch.ones(1, dtype=torch.int64), 10**6, seeds, 0, 4)),
    "k": ("subset", (x, seeds, 9)),
    "samples": ("clip_per_sample_", ([x], [torch.ones(5)], 1.0)),
}
# On a GPU alone: one of the tensors lies on the CPU.
PARTED = {"a mask": ("binarize_backward", 1), "a scale": ("lsq", 1), "a seed": ("bernoulli", 1)}
PARTED |= {f"the first of {name}": (name, 0) for name in ("binarize_backward", "lsq", "bernoulli", "categorical")}
PARTED |= {
    "the rows' seed": ("categorical_backward", 2),
    "nodes": ("sum_tree_update_", 1),
    "a norm": ("clip_grads_with_norm_", 1),
}


def still_works(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    assert ste_ops.sign(torch.tensor([-2.0, 3.0], device=device)).tolist() == [-1, 1]


@pytest.mark.parametrize("what", REFUSED)
def test_bad_arguments_are_refused(device: str, what: str) -> None:
    operator, arguments = REFUSED[what]
    moved = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), arguments)
    with pytest.raises(RuntimeError, match=rf"\b{operator}\w*: "):
        getattr(ops, operator)(*moved)
    still_works(device)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("what", PARTED)
def test_tensors_of_two_devices_are_refused(device: str, what: str) -> None:
    operator, place = PARTED[what]
    sample = next(calls(operator, seed=0))
    arguments = list(sample.on(device).arguments)
    arguments[place] = sample.arguments[place]
    with pytest.raises(RuntimeError, match=rf"\b{operator}\w*: .*on (one|the) .*device"):
        getattr(ops, operator)(*arguments)
    still_works(device)


@pytest.mark.parametrize("index", [-1, 40, 2**62])
def test_bad_values_do_no_harm(device: str, index: int) -> None:
    """Where only a kernel can see them: it writes nothing outside, and says so then or later."""
    w = torch.rand(40, device=device)
    nodes, before = ops.sum_tree(w)[1], w.clone()
    bad = torch.tensor([3, index], device=device)

    def update() -> None:
        ops.sum_tree_update_(w, nodes, bad, torch.ones(2, device=device))
        ste_ops.check_deferred_errors(device)

    with pytest.raises(RuntimeError, match=rf"indices must be in \[0, 40\), got {index} at position 1"):
        update()
    assert torch.equal(w, before)
    still_works(device)
