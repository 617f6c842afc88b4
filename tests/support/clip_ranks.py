"""What every rank does and checks in the tests of clipping on several machines."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ste_ops
from support.clip_cases import parameter

NORM_TYPES = [2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5]


def same_on_every_rank(norm):
    found = [torch.empty_like(norm) for _ in range(dist.get_world_size())]
    dist.all_gather(found, norm)
    assert all(torch.equal(f, norm) for f in found)


def check_norm(norm, expected, rtol=1e-7):
    assert type(norm) is torch.Tensor
    assert norm.shape == ()
    torch.testing.assert_close(norm, expected.to(norm.dtype), rtol=rtol, atol=0)
    same_on_every_rank(norm)


def sharded(full, mesh, placements):
    p = nn.Parameter(distribute_tensor(torch.zeros_like(full), mesh, placements))
    p.grad = distribute_tensor(full, mesh, placements)
    return p


def check(ours, theirs, max_norm, norm_type, **arguments):
    """Parameters with parts of the gradients against the same with all of them on one machine."""
    norm = ste_ops.clip_grad_norm_(ours, max_norm, norm_type, **arguments)
    check_norm(norm, ste_ops.clip_grad_norm_(theirs, max_norm, norm_type))
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a.grad, DTensor):
            torch.testing.assert_close(a.grad.full_tensor(), b.grad, rtol=3e-7, atol=0)


def placements(rank, world):
    """Rows that divide evenly and not, fewer rows than ranks, columns, copies, and plain tensors beside them."""
    mesh = init_device_mesh("cpu", (world,))
    shapes = [((8, 3), Shard(0)), ((7, 5), Shard(0)), ((1, 3), Shard(0)), ((2, 6), Shard(1)), ((4, 4), Replicate())]
    full = [torch.randn(shape) for shape, _ in shapes] + [torch.randn(5), torch.zeros(0, 3)]
    full[3] = full[3].double()
    for norm_type in NORM_TYPES:
        for max_norm in (0.25, 1e9):
            ours = [sharded(g, mesh, [p]) for g, (_, p) in zip(full, shapes, strict=False)]
            ours += [parameter(g.clone()) for g in full[5:]]
            check(ours, [parameter(g.clone()) for g in full], max_norm, norm_type)
        check_norm(ste_ops.get_total_norm([p.grad for p in ours], norm_type), ste_ops.get_total_norm(full, norm_type))


def partial(rank, world):
    """The summands of a gradient have no norm of their own; scaling them scales the sum."""
    mesh = init_device_mesh("cpu", (world,))
    parts = torch.randn(world, 6, 4)
    p = nn.Parameter(distribute_tensor(torch.zeros(6, 4), mesh, [Replicate()]))
    p.grad = DTensor.from_local(parts[rank].clone(), mesh, [Partial()])
    other = parameter(torch.ones(3))
    norm = ste_ops.clip_grad_norm_([other, p], 0.5)
    check_norm(norm, ste_ops.get_total_norm([torch.ones(3), parts.sum(0)]), rtol=3e-7)
    torch.testing.assert_close(p.grad.full_tensor(), parts.sum(0) * (0.5 / norm))
    before = other.grad.clone()
    with pytest.raises(ValueError, match=r"clip_grad_value_: gradients must be sharded or replicated, .* at index 1"):
        ste_ops.clip_grad_value_([other, p], 0.01)
    assert torch.equal(other.grad, before)


def two_dimensions(rank, world):
    """A mesh for data times tensor parallelism, one for either, and replicas of shards, in one list."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    of = [
        (mesh, [Shard(0), Shard(1)]),
        (mesh, [Shard(0), Shard(0)]),
        (mesh, [Replicate(), Shard(1)]),
        (mesh, [Replicate(), Replicate()]),
        (mesh["dp"], [Shard(0)]),
        (mesh["tp"], [Shard(0)]),
    ]
    full = [torch.randn(8, 6) for _ in of]
    for norm_type in (2.0, math.inf, -math.inf, 0.0, 3.0):
        ours = [sharded(g, m, p) for g, (m, p) in zip(full, of, strict=True)]
        check(ours, [parameter(g.clone()) for g in full], 0.5, norm_type)


def values(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    full = [torch.randn(7, 3), torch.randn(4)]
    ours = [sharded(full[0], mesh, [Shard(0)]), sharded(full[1], mesh, [Replicate()]), parameter(full[1].clone())]
    own = [ours[0].grad._local_tensor, ours[1].grad._local_tensor]
    versions = [g._version for g in (*(p.grad for p in ours), *own)]
    ste_ops.clip_grad_value_(ours, 0.3)
    assert all(g._version > v for g, v in zip((*(p.grad for p in ours), *own), versions, strict=True))
    versions = [g._version for g in own]
    ste_ops.clip_grad_norm_(ours, 1e9)
    assert all(g._version > v for g, v in zip(own, versions, strict=True))
    assert torch.equal(ours[0].grad.full_tensor(), full[0].clamp(-0.3, 0.3))
    assert torch.equal(ours[1].grad.to_local(), full[1].clamp(-0.3, 0.3))
    assert torch.equal(ours[2].grad, full[1].clamp(-0.3, 0.3))
    norm = torch.nn.utils.get_total_norm([p.grad for p in ours[:2]])  # a DTensor that is still to be reduced
    ste_ops.clip_grads_with_norm_(ours[:2], 0.1, norm)
    torch.testing.assert_close(ste_ops.get_total_norm(p.grad for p in ours[:2]), torch.tensor(0.1), rtol=1e-4, atol=0)


def missing_gradients(rank, world):
    """Ranks without a gradient of a mesh, or without any, or without parameters, take part all the same."""
    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(distribute_tensor(torch.zeros(2 * world, 2), mesh, [Shard(0)]))
    q = parameter(torch.zeros(1))
    if rank == 1:
        p.grad = DTensor.from_local(torch.full((2, 2), 3.0), mesh, [Shard(0)])
    for parameters in ([p], [q, p]):
        check_norm(ste_ops.clip_grad_norm_(parameters, 1e9), torch.tensor(6.0))
        check_norm(ste_ops.clip_grad_norm_(iter(parameters), 1e9, math.inf), torch.tensor(3.0))
    grads = [p.grad] if rank == 1 else []
    check_norm(ste_ops.get_total_norm(grads, parameters=[q, p]), torch.tensor(6.0))
    norms = ste_ops.get_total_norm(grads, parameters=[q, p], return_norms=True)[1]
    assert norms.tolist() == [0.0, 6.0]
    with pytest.raises(ValueError, match="tensors must be gradients of parameters, got another one at index 0"):
        ste_ops.get_total_norm([torch.ones(2)], parameters=[p])
    own = [parameter(torch.tensor([3.0, 4.0]))] if rank == 1 else []
    for norm_type, expected in ((2.0, 5.0), (-math.inf, 3.0), (0.0, 2.0)):
        norm = ste_ops.clip_grad_norm_(own, 1e9, norm_type, process_group=dist.group.WORLD)
        check_norm(norm, torch.tensor(expected))
    for norm_type in (2.0, -math.inf):
        check_norm(ste_ops.get_total_norm([], norm_type, process_group=dist.group.WORLD), torch.tensor(0.0))


def by_hand(rank, world):
    """Rows dealt out by hand; float64 and magnitudes that leave its range between norm and norm."""
    for scale, dtype in ((1.0, torch.float32), (1e200, torch.float64), (1e-200, torch.float64)):
        full = [torch.randn(world * 3, 5, dtype=dtype) * scale, torch.randn(world, dtype=dtype) * scale]
        for norm_type in (2.0, 1.0, 0.0, math.inf, -math.inf, 3.0):
            ours = [parameter(g.chunk(world)[rank].clone()) for g in full]
            theirs = [parameter(g.clone()) for g in full]
            check(ours, theirs, 0.5 * scale, norm_type, process_group=dist.group.WORLD)
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a.grad, b.grad.chunk(world)[rank], rtol=3e-7, atol=0)


def experts(rank, world):
    """The function of docs/recipes.md: a gradient that all ranks have beside one of each rank's own."""
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    recipe = {"ste_ops": ste_ops}
    exec(re.search(r"^def clip_with_experts.*?    return norm$", page, re.MULTILINE | re.DOTALL)[0], recipe)
    shared = torch.randn(5, 3)
    of_ranks = [torch.randn(4, 2) for _ in range(world)]
    ours = [parameter(shared.clone()), parameter(of_ranks[rank].clone())]
    theirs = [parameter(g.clone()) for g in (shared, *of_ranks)]
    norm = recipe["clip_with_experts"](ours[:1], ours[1:], 0.5, dist.group.WORLD)
    check_norm(norm, ste_ops.clip_grad_norm_(theirs, 0.5))
    torch.testing.assert_close([p.grad for p in ours], [theirs[0].grad, theirs[1 + rank].grad])


def stages(rank, world):
    """A pipeline: a mesh for each stage, and the stages are parts of one norm."""
    world_of_stages = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("stage", "dp"))
    full = torch.randn(2, 6, 4)
    stage = world_of_stages.get_local_rank("stage")
    p = sharded(full[stage], world_of_stages["dp"], [Shard(0)])
    norm = ste_ops.clip_grad_norm_([p], 0.5, process_group=world_of_stages.get_group("stage"))
    check_norm(norm, ste_ops.get_total_norm(full))


def non_finite(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for bad in (math.nan, math.inf):
        full = torch.randn(world, 3)
        full[-1, 1] = bad
        for norm_type in (2.0, math.inf, 3.0):
            p = sharded(full, mesh, [Shard(0)])
            norm = ste_ops.get_total_norm(p.grad, norm_type).item()
            assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
            with pytest.raises(RuntimeError, match="is non-finite"):
                ste_ops.clip_grad_norm_(p, 0.1, norm_type, error_if_nonfinite=True)
            ste_ops.clip_grad_norm_(p, 0.1, norm_type, nonfinite="skip")
            torch.testing.assert_close(p.grad.to_local(), full[rank : rank + 1], rtol=0, atol=0, equal_nan=True)
            ste_ops.clip_grad_norm_(p, 0.1, norm_type, nonfinite="zero")
            assert not p.grad.to_local().any()  # on the ranks that hold finite ones too


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 3)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu())


def gradients_of(model, x):
    (model(x) ** 2).sum().backward()
    return model


def check_model(model, alone):
    norm = ste_ops.clip_grad_norm_(model.parameters(), 0.5)
    check_norm(norm, ste_ops.clip_grad_norm_(alone.parameters(), 0.5), rtol=1e-6)  # the gradients' own rounding
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        grad = a.grad.full_tensor() if isinstance(a.grad, DTensor) else a.grad
        torch.testing.assert_close(grad, b.grad, rtol=1e-5, atol=1e-6)


def fsdp(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    alone, model = Model(), Model()
    model.load_state_dict(alone.state_dict())
    for layer in (model.first, model.second, model):
        fully_shard(layer, mesh=mesh)
    x = torch.randn(4, 6)
    check_model(gradients_of(model, x), gradients_of(alone, x))


def tensor_parallel(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    alone, model = Model(), Model()
    model.load_state_dict(alone.state_dict())
    gather = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh, {"first": gather, "second": RowwiseParallel(input_layouts=Replicate())})
    x = torch.randn(4, 6)
    check_model(gradients_of(model, x), gradients_of(alone, x))


def fsdp_and_tensor_parallel(rank, world):
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    alone, model = Model(), Model()
    model.load_state_dict(alone.state_dict())
    gather = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh["tp"], {"first": gather, "second": RowwiseParallel(input_layouts=Replicate())})
    for layer in (model.first, model.second, model):
        fully_shard(layer, mesh=mesh["dp"])
    x = torch.randn(4, 6)
    check_model(gradients_of(model, x), gradients_of(alone, x))


def fold(rank, world):
    """The step divides DTensors, and a NaN on one rank skips it on all."""
    mesh = init_device_mesh("cpu", (world,))
    alone, model = Model(), Model()
    model.load_state_dict(alone.state_dict())
    fully_shard(model, mesh=mesh)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1, fused=True) for m in (model, alone)]
    for bad in (False, True, False):
        x = torch.randn(4, 6)
        gradients_of(model, x)
        gradients_of(alone, x)
        if bad and rank == world - 1:
            next(model.parameters()).grad.to_local()[0, 0] = math.nan
        norm = ste_ops.fold_grad_clip_(optimizers[0], 0.5)
        if bad:
            assert math.isnan(norm)
        else:
            check_norm(norm, ste_ops.clip_grad_norm_(alone.parameters(), 0.5), rtol=1e-6)
            optimizers[1].step()
        optimizers[0].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a.full_tensor(), b, rtol=1e-4, atol=1e-4)


def fold_with_a_scaler(rank, world):
    """A scaler sees this rank's gradients alone; the step is skipped on every rank."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1.0, fused=True)
    for bad in (True, False):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(p.sum()).backward()
        if bad and rank == 0:
            p.grad[1] = math.nan
        norm = ste_ops.fold_grad_clip_(optimizer, 0.5, grad_scaler=scaler, process_group=dist.group.WORLD)
        scaler.step(optimizer)
        optimizer.zero_grad()
        assert p.any() != bad
    check_norm(norm, torch.tensor(math.sqrt(3 * world)))
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.5 / math.sqrt(3 * world)), rtol=1e-5, atol=0)


OF_ANY_WORLD = [placements, partial, values, missing_gradients, by_hand, experts, non_finite, fsdp]
OF_ANY_WORLD += [tensor_parallel, fold, fold_with_a_scaler]
CASES = {2: OF_ANY_WORLD, 4: [*OF_ANY_WORLD, two_dimensions, stages, fsdp_and_tensor_parallel]}
