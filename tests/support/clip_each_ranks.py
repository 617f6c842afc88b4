"""What every rank does and checks in the tests of clipping on several machines that look at each gradient and group."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import ste_ops
from support.clip_cases import parameter, rounding
from support.clip_ranks import NORM_TYPES, check_norm, same_on_every_rank, sharded


def norms_of_each(rank, world):
    """Over each one's mesh, and so the first bad gradient is the same on every rank, whoever holds it."""
    mesh = init_device_mesh("cpu", (world,))
    full = [torch.randn(7, 5), torch.randn(1, 3), torch.randn(2, 6), torch.randn(4), torch.randn(5)]
    of = [Shard(0), Shard(0), Shard(1), Replicate()]
    for norm_type in NORM_TYPES:
        ours = [sharded(g, mesh, [p]) for g, p in zip(full, of, strict=False)] + [parameter(full[-1].clone())]
        expected = ste_ops.get_total_norm(full, norm_type, return_norms=True)
        for received in (
            ste_ops.get_total_norm([p.grad for p in ours], norm_type, return_norms=True),
            ste_ops.clip_grad_norm_(ours, 1e9, norm_type, return_result=True)[:2],
        ):
            torch.testing.assert_close(received, expected, rtol=2e-7, atol=0)
            same_on_every_rank(received[1])
    part = ours[2].grad.to_local()
    if rank == 1:
        part[0, 0] = math.nan
    if rank == 0:
        ours[1].grad = None  # of which this rank holds the only row
    result = ste_ops.clip_grad_norm_(ours, 1.0, nonfinite="skip", return_result=True)
    assert result.first_bad_name((str(i), p) for i, p in enumerate(ours)) == "2"
    assert result.norms[1] == 0
    assert result.positions == tuple(range(5))
    if rank == 1:
        part[0, 0] = 0.0
    result = ste_ops.clip_grad_norm_(ours, 1.0, return_result=True, process_group=dist.group.WORLD)
    assert (result.first_bad, result.norms.shape) == (-1, (5,))


def groups(rank, world):
    """What is no group of this rank is refused by name, and the ranks of one find the same dtype and bits."""
    p = parameter(torch.tensor([3.0, 4.0]))
    mesh = init_device_mesh("cpu", (world,))
    of_mesh = r"DeviceMesh.*; mesh\.get_group\(dim\) gives one"
    for group, got in ((mesh, of_mesh), ("world", "'world'"), (0, "0")):
        message = rf"process_group must be a torch\.distributed\.ProcessGroup or None, got {got}"
        for call in (
            lambda group: ste_ops.clip_grad_norm_([p], 1.0, process_group=group),
            lambda group: ste_ops.get_total_norm([p.grad], process_group=group),
            lambda group: ste_ops.fold_grad_clip_(torch.optim.SGD([p], 1.0, fused=True), 1.0, process_group=group),
        ):
            with pytest.raises(TypeError, match=message):
                call(group)
    first = dist.new_group([0])
    if rank == 0:
        assert ste_ops.clip_grad_norm_([p], 1e9, process_group=first) == 5
    else:
        with pytest.raises(ValueError, match=f"process_group must be one that this rank is in, .* without rank {rank}"):
            ste_ops.clip_grad_norm_([p], 1e9, process_group=first)
    own = [parameter(torch.ones(2, dtype=torch.float64 if rank == 0 else torch.float32) / 3)]
    for parameters in (own, own if rank == 0 else []):
        norm = ste_ops.clip_grad_norm_(parameters, 1e9, process_group=dist.group.WORLD)
        assert norm.dtype == torch.float64
        same_on_every_rank(norm)
    norm = ste_ops.clip_grad_norm_([p] if rank == 0 else [], 1e9, process_group=dist.group.WORLD)
    assert norm.dtype == torch.float32
    same_on_every_rank(norm)


def compiled(rank, world):
    """DTensors beside plain tensors, in one graph."""
    mesh = init_device_mesh("cpu", (world,))

    def step(parameters):
        ste_ops.clip_grad_value_(parameters, 2.0)
        norm = ste_ops.clip_grad_norm_(parameters, 1.0)
        ste_ops.clip_grads_with_norm_(parameters, 1.0, ste_ops.get_total_norm([p.grad for p in parameters]) * 2)
        return norm

    norms = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        ours = [parameter(torch.tensor([3.0, 4.0])), sharded(torch.ones(2 * world, 3), mesh, [Shard(0)])]
        norms.append(call(ours))
        check_norm(norms[-1], torch.tensor(math.sqrt(8 + 6 * world)))
        torch.testing.assert_close(ours[0].grad, torch.full((2,), 1 / norms[-1]), rtol=1e-5, atol=0)
        torch.testing.assert_close(ours[1].grad.to_local(), torch.full((2, 3), 0.5 / norms[-1]), rtol=1e-5, atol=0)


def units(rank, world):
    """Adaptive clipping: whole units are local, the norms of divided ones are joined; a rank may lack a gradient."""
    mesh = init_device_mesh("cpu", (world,))
    of = [((7, 5), Shard(0)), ((2, 6), Shard(1)), ((5,), Shard(0)), ((1,), Shard(0)), ((4, 3, 2), Replicate())]
    of += [((), Replicate()), ((4, 3, 2), Shard(2)), ((3,), None)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128):
        ours, theirs = [], []
        for shape, placement in of:
            weight, grad = torch.randn(shape, dtype=dtype), 0.02 * torch.randn(shape, dtype=dtype)
            theirs.append(nn.Parameter(weight.clone()))
            theirs[-1].grad = grad.clone()
            ours.append(nn.Parameter(weight if placement is None else distribute_tensor(weight, mesh, [placement])))
            ours[-1].grad = grad if placement is None else distribute_tensor(grad, mesh, [placement])
        before = [p.grad.clone() for p in theirs]
        versions = [p.grad._version for p in ours]
        ste_ops.clip_grad_agc_(ours)
        ste_ops.clip_grad_agc_(theirs)
        assert any(not torch.equal(b, p.grad) for b, p in zip(before, theirs, strict=True))
        for a, b, version in zip(ours, theirs, versions, strict=True):
            grad = a.grad.full_tensor() if isinstance(a.grad, DTensor) else a.grad
            torch.testing.assert_close(grad, b.grad, rtol=rounding(dtype.to_real()), atol=0)
            assert a.grad._version > version
    lacking, own = (sharded(torch.full((2 * world,), 3.0), mesh, [Shard(0)]) for _ in range(2))
    if rank == 0:
        lacking.grad = None
    ste_ops.clip_grad_agc_([lacking, own], 0.5, eps=1.0)  # one unit, of which rank 0 holds nothing
    for p, held in ((own, 2 * world), (lacking, 2 * world - 2)):
        if p.grad is not None:
            torch.testing.assert_close(p.grad.to_local(), torch.full((2,), 0.5 / math.sqrt(held)))
    own.grad = DTensor.from_local(torch.ones(2 * world), mesh, [Partial()])
    with pytest.raises(ValueError, match="clip_grad_agc_: gradients must be sharded or replicated"):
        ste_ops.clip_grad_agc_([own])
    own.grad = distribute_tensor(torch.ones(2 * world), mesh, [Replicate()])
    with pytest.raises(ValueError, match=r"clip_grad_agc_: gradients\[0\] must lie as its parameter does, .* got"):
        ste_ops.clip_grad_agc_([own])


def units_in_two_dimensions(rank, world):
    mesh = init_device_mesh("cpu", (2, world // 2))
    for shape, placements in (
        ((5, 6), [Shard(0), Shard(1)]),
        ((9, 2), [Shard(0), Shard(0)]),
        ((7,), [Shard(0), Shard(0)]),
        ((3, 8), [Replicate(), Shard(1)]),
        ((7,), [Shard(0), Replicate()]),
    ):
        ours, theirs = sharded(torch.randn(shape), mesh, placements), nn.Parameter(torch.zeros(shape))
        theirs.grad = ours.grad.full_tensor().clone()
        for p in (ours, theirs):
            ste_ops.clip_grad_agc_(p, 0.5, eps=1.0)
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=3e-7, atol=0)


def samples(rank, world):
    """A batch that is divided: the sums of the ranks' own samples are summands."""
    mesh = init_device_mesh("cpu", (world,))
    for batch, placement in ((5, Shard(0)), (1, Shard(0)), (4, Replicate())):
        full = [torch.randn(batch, 3, 4), torch.randn(batch), torch.randn(batch, 2).to(torch.bfloat16)]
        expected, norms = ste_ops.clip_per_sample_(full, 1.0, return_norms=True)
        grads = [distribute_tensor(g, mesh, [placement]) for g in full]
        sums, of_each = ste_ops.clip_per_sample_(grads, 1.0, return_norms=True)
        torch.testing.assert_close(of_each.full_tensor(), norms, rtol=1e-6, atol=0)
        assert sums[0].placements == (Replicate() if placement.is_replicate() else Partial(),)
        for _ in range(2):
            for s, e in zip(sums, expected, strict=True):
                torch.testing.assert_close(s.full_tensor(), e)
            assert ste_ops.clip_per_sample_(grads, 1.0, out=sums)[0] is sums[0]
            expected = [2 * e for e in expected]
        _, norms = ste_ops.clip_per_sample_(full, [1.0, 0.5, 2.0], return_norms=True)
        named = dict(zip("abc", grads, strict=True))
        sums, of_each = ste_ops.clip_per_sample_(named, {"a": 1.0, "b": 0.5, "c": 2.0}, return_norms=True)
        torch.testing.assert_close(of_each.full_tensor(), norms, rtol=1e-6, atol=0)
        assert list(sums) == ["a", "b", "c"]
    columns = distribute_tensor(full[2], mesh, [Shard(1)])
    for others, message in (
        ([grads[0], full[1]], "must all be DTensors, or none, got a plain tensor at index 1"),
        ([columns], r"sharded along the samples, .*\(Shard\(dim=1\),\) at index 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=r"clip_per_sample_: grad_samples .*" + message):
            ste_ops.clip_per_sample_(others, 1.0)
    with pytest.raises(ValueError, match=r"out must be DTensors with the placements .*, got a plain tensor at index 0"):
        ste_ops.clip_per_sample_(grads[:1], 1.0, out=[torch.zeros(3, 4)])


def before_a_layer_in_place(rank, world):
    """The module's result is written by the next layer, and what came in keeps its values."""
    x = distribute_tensor(torch.randn(2 * world, 3), init_device_mesh("cpu", (world,)), [Shard(0)])
    before = x.to_local().clone()
    net = nn.Sequential(ste_ops.nn.ClipGradientValue(0.1), nn.ReLU(inplace=True))
    for leaf in (x.clone().requires_grad_(), x):
        y = net(leaf)
        assert torch.equal(y.to_local(), before.relu())
        assert torch.equal(leaf.to_local(), before)
        if leaf is not x:
            y.sum().backward()
            assert torch.equal(leaf.grad.to_local(), 0.1 * (before > 0))


CASES = {
    2: [norms_of_each, groups, units, samples, compiled, before_a_layer_in_place],
    4: [norms_of_each, groups, units, units_in_two_dimensions],
}
