"""Scales of a model that several processes train: found alike on all of them, or refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from support.ranks import run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ste_ops.nn import LSQ, FakeQuantize, calibrate, quantize_

INPUTS = {"LSQ": lambda: LSQ(4), "FakeQuantize": lambda: FakeQuantize(8, signed=False)}


def net(weight=None, input=None):
    torch.manual_seed(0)
    return quantize_(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), weight=weight, input=input)


def batch():
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(7)) * torch.arange(1, 17).view(16, 1)


def shard(model, **options):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def assert_equal_on_ranks(model):
    for key, value in model.state_dict().items():
        every = [torch.empty_like(whole(value)) for _ in range(dist.get_world_size())]
        dist.all_gather(every, whole(value))
        assert all(torch.equal(each, every[0]) for each in every), key


def train(model, x, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def unset_inputs_are_refused(rank, world):
    for make in INPUTS.values():
        model = net(LSQ(4, axis=0), make())
        for each in (DistributedDataParallel(model), model, torch.compile(model, fullgraph=True, backend="eager")):
            with pytest.raises(Exception, match=rf"each of the {world} .*ste_ops.nn.calibrate\(model, batches\)"):
                each(batch())
        with torch.no_grad(), pytest.raises(RuntimeError, match="no scale is set yet"):
            model.eval()(batch())
        assert not model[0].input_quantizer.scale.any()


def one_process_may_run_alone(rank, world):
    """Nothing waits for the others: the first one's evaluation, and a model that no other has."""
    model = net(LSQ(4, axis=0), FakeQuantize(8, scale=0.1))
    if rank == 0:
        model.eval()(batch())
        own = net(LSQ(4), LSQ(4))
        group = dist.new_group([0], use_local_synchronization=True)
        assert len(calibrate(own, [batch()], group)) == 2
        own(batch())
    dist.barrier()


def calibrated_scales_are_the_same(rank, world):
    x, rows = batch(), 16 // world
    for make in INPUTS.values():
        expected = net(LSQ(4, axis=0), make())
        report = calibrate(expected, [x], dist.new_group([rank], use_local_synchronization=True))
        model = net(LSQ(4, axis=0), make())
        wrapped = DistributedDataParallel(model)
        mine = x[rank * rows : (rank + 1) * rows]
        # As many batches as each has, and one has none with anything in it.
        found = calibrate(wrapped, mine.split(1) if rank else [mine])
        torch.testing.assert_close(found, report)
        train(wrapped, mine)
        assert_equal_on_ranks(model)
        nothing = net(input=make())
        found = calibrate(nothing, [x if rank == 0 else x[:0]])
        torch.testing.assert_close(found["0.input_quantizer"], report["0.input_quantizer"])
        assert_equal_on_ranks(nothing)


def averages_that_move_are_those_of_the_first(rank, world):
    """As the statistics of batch normalization: DistributedDataParallel hands them on before each forward."""
    x, rows = batch(), 16 // world
    model = net(FakeQuantize(4, axis=0, momentum=0.1), FakeQuantize(8, signed=False, momentum=0.1))
    calibrate(model, [x])
    alone = copy.deepcopy(model)
    wrapped = DistributedDataParallel(model)
    train(wrapped, x[rank * rows : (rank + 1) * rows])
    wrapped(x[:rows])  # hands them on, and adds the same batch everywhere
    assert_equal_on_ranks(model)
    assert not torch.equal(alone[0].input_quantizer.high, model[0].input_quantizer.high)


def what_fails_on_one_sets_nothing_on_any(rank, world):
    model = net(input=LSQ(4))
    x = torch.full((2, 8), math.nan) if rank == 1 else torch.ones(2, 8)
    with pytest.raises(ValueError if rank == 1 else RuntimeError, match="NaN" if rank == 1 else "failed on rank 1"):
        calibrate(model, [x])
    assert not model[0].input_quantizer.initialized.any()
    if rank == 0:
        calibrate(model, [torch.ones(2, 8)], dist.new_group([0], use_local_synchronization=True))
    with pytest.raises(RuntimeError, match="must have the same scales to set, but they have"):
        calibrate(model, [torch.ones(2, 8)])


def sharded_weights_have_their_scale(rank, world):
    x, rows = batch(), 16 // world
    for make in (lambda: LSQ(4), lambda: LSQ(4, axis=0), lambda: FakeQuantize(4, axis=0)):
        for options in ({}, {"reshard_after_forward": False}):
            model, expected = shard(net(make()), **options), net(make())
            losses = train(model, x[rank * rows : (rank + 1) * rows])
            dist.all_reduce(losses)
            torch.testing.assert_close(losses / world, train(expected, x))
            torch.testing.assert_close(
                whole(model[0].weight_quantizer.scale), expected[0].weight_quantizer.scale.detach()
            )
    half = shard(net(LSQ(4, axis=0)), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    assert train(half, x).isfinite().all()


def weights_written_before_sharding_are_refused(rank, world):
    model = net(LSQ(4, axis=0))
    for layer in (model[0], model[2]):
        layer.weight.data.mul_(100)
    shard(model)
    with pytest.raises(RuntimeError, match="the weight was written since its scale was found, and fully_shard keeps"):
        model(batch())
    assert list(calibrate(model, [batch()])) == ["0.weight_quantizer", "2.weight_quantizer"]
    expected = net(LSQ(4, axis=0))
    for layer in (expected[0], expected[2]):
        layer.weight.data.mul_(100)
    torch.testing.assert_close(model(batch()), expected(batch()))


def sharded_parameters_are_calibrated(rank, world):
    x, rows = batch(), 16 // world
    mine = x[rank * rows : (rank + 1) * rows]
    for make in INPUTS.values():
        model = shard(net(LSQ(4, axis=0), make()))
        # Of one process alone a buffer takes the first batch as ever.
        if world > 1 or make is INPUTS["LSQ"]:
            with pytest.raises(RuntimeError, match=r"no scale is set yet, and .*ste_ops.nn.calibrate\(model, batches"):
                model(mine)
        found = calibrate(model, [mine])
        expected = net(LSQ(4, axis=0), make())
        torch.testing.assert_close(found, calibrate(expected, [mine]))
        losses = train(model, mine)
        dist.all_reduce(losses)
        torch.testing.assert_close(losses / world, train(expected, x))
        assert_equal_on_ranks(model)


def a_model_of_the_meta_device_is_calibrated(rank, world):
    with torch.device("meta"):
        model = quantize_(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), weight=LSQ(4), input=LSQ(4))
    shard(model).to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    if world > 1:
        with pytest.raises(RuntimeError, match="no scale is set yet"):
            model(batch())
    assert len(calibrate(model, [batch()])) == 4
    assert train(model, batch()).isfinite().all()
    assert all(whole(value).any() for key, value in model.state_dict().items() if key.endswith("scale"))


ANY = [sharded_weights_have_their_scale, weights_written_before_sharding_are_refused, sharded_parameters_are_calibrated]
SEVERAL = [
    unset_inputs_are_refused,
    one_process_may_run_alone,
    calibrated_scales_are_the_same,
    averages_that_move_are_those_of_the_first,
    what_fails_on_one_sets_nothing_on_any,
    a_model_of_the_meta_device_is_calibrated,
    *ANY,
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    found = {}
    for world, cases in ((1, ANY), (2, SEVERAL)):
        folder = tmp_path_factory.mktemp(f"ranks{world}")
        found[world] = run(world, folder, {case.__name__: case for case in cases})
    return found


@pytest.mark.parametrize(
    ("world", "case"), [(1, case.__name__) for case in ANY] + [(2, case.__name__) for case in SEVERAL]
)
def test_on_ranks(failures, world, case):
    assert case not in failures[world], failures[world][case]
    assert "" not in failures[world], failures[world][""]
