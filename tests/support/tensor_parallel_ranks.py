"""What every rank does and checks in the tests of tensor parallel quantized layers."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ste_ops
from ste_ops import nn as snn

# Weight and input quantizers; each module is copied for every layer.
QUANTIZERS = {
    "functions": (ste_ops.sign, ste_ops.bitnet_activation),
    "Sign": (snn.Sign(), snn.Sign()),
    "Heaviside": (snn.MagnitudeAwareSign(), snn.Heaviside()),
    "Ternary": (snn.Ternary(), snn.Ternary()),
    "LSQ": (snn.LSQ(4), snn.LSQ(4)),
    "LSQ axis 0": (snn.LSQ(4, axis=0), snn.LSQ(4, signed=False)),
    "LSQ axis 1": (snn.LSQ(4, axis=1), None),
    "FakeQuantize": (snn.FakeQuantize(4), snn.FakeQuantize(8, signed=False)),
    "FakeQuantize axis 0": (snn.FakeQuantize(4, axis=0), snn.FakeQuantize(8)),
    "FakeQuantize axis -1": (snn.FakeQuantize(4, signed=False, axis=-1), None),
    "LSQPlus": (snn.LSQPlus(4), snn.LSQPlus(4, signed=False)),
    "LSQPlus axis 0": (snn.LSQPlus(4, axis=0), None),
    "FakeQuantize momentum": (snn.FakeQuantize(4), snn.FakeQuantize(8, signed=False, momentum=0.1)),
    "groups": (snn.LSQ(4, group_size=4), None),
    "groups of signs": (snn.XNORWeight(group_size=4), snn.Sign()),
    "XNORWeight": (snn.XNORWeight(), snn.PACT(bits=4)),
    "BitNet": (snn.BitNetWeight(), snn.BitNetActivation()),
    "DoReFa": (snn.DoReFaWeight(3), snn.DoReFaActivation(3)),
    "SRSTE": (snn.SRSTE(), None),
    "input alone": (None, snn.LSQ(4)),
}
PLANS = {
    "activations are copies": ({}, {}),
    "activations are DTensors": ({"use_local_output": False}, {"use_local_output": False}),
    "sequences are sharded": ({"input_layouts": Shard(1)}, {"output_layouts": Shard(1)}),
}


def full(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


def network(weight, input):
    """In float64, so that the order of a sum shows nowhere; the inner features divide by any number of ranks here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
    return snn.quantize_(model, weight=weight, input=input).double()


def parallel(model, mesh, plan="activations are copies"):
    of_first, of_last = PLANS[plan]
    return parallelize_module(model, mesh, {"0": ColwiseParallel(**of_first), "2": RowwiseParallel(**of_last)})


def check_step(alone, ours, x, plan, mesh):
    """Two steps of either: outputs, gradients of the inputs and of all parameters, and the states after them."""
    rank, world = mesh.get_local_rank(), mesh.size()
    sharded = plan == "sequences are sharded"
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (alone, ours)]
    for _ in range(2):
        of_all = x.clone().requires_grad_()
        own = (x.chunk(world, 1)[rank] if sharded else x).clone().requires_grad_()
        expected, received = alone(of_all), ours(own)
        whole = full(DTensor.from_local(received, mesh, [Shard(1)]) if sharded else received)
        torch.testing.assert_close(whole, expected)
        for out in (expected, whole):
            out.square().sum().backward()
        torch.testing.assert_close(own.grad, of_all.grad.chunk(world, 1)[rank] if sharded else of_all.grad)
        for (name, a), (same, b) in zip(alone.named_parameters(), ours.named_parameters(), strict=True):
            assert name == same
            torch.testing.assert_close(full(b.grad), a.grad, msg=lambda text, name=name: f"{name}: {text}")
            assert b.grad.placements == b.placements, name
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        check_states(alone, ours)


def check_states(alone, ours):
    expected, received = alone.state_dict(), ours.state_dict()
    assert list(expected) == list(received)
    for name, value in expected.items():
        torch.testing.assert_close(full(received[name]), value, msg=lambda text, name=name: f"{name}: {text}")


def first_batch(alone, x):
    """As in one process, where no other finds another scale."""
    with patch("ste_ops.nn._processes.number_of_processes", return_value=1):
        return alone(x)


def layers(rank, world):
    """Of scales that were set before, and of those that the first batch of all ranks sets."""
    mesh = init_device_mesh("cpu", (world,))
    for plan in PLANS:
        for weight, input in QUANTIZERS.values():
            for is_set in (True, False) if plan == "sequences are sharded" else (True,):
                alone, x = network(weight, input), torch.randn(3, 4, 8).double()
                if is_set:
                    first_batch(alone, x)
                ours, alone = parallel(copy.deepcopy(alone), mesh, plan), copy.deepcopy(alone)
                first_batch(alone, x)
                assert all(isinstance(t, DTensor) for t in (*ours.parameters(), *ours.buffers()))
                check_step(alone, ours, x, plan, mesh)


def written_before(rank, world):
    """Weights that were written since their quantizers were attached: the scales are those of what is divided."""
    mesh = init_device_mesh("cpu", (world,))
    for weight in (snn.LSQ(4), snn.LSQ(4, axis=0), snn.FakeQuantize(4), snn.LSQPlus(4)):
        alone, model = network(weight, None), network(weight, None)
        with torch.no_grad():
            for layer in (alone[0], alone[2], model[0], model[2]):
                layer.weight.mul_(100)
        x = torch.randn(3, 4, 8).double()
        first_batch(alone, x)
        check_step(alone, parallel(model, mesh), x, "activations are copies", mesh)


def placements(rank, world):
    """A scale for each channel along the sharded dimension lies with it, any other on every rank."""
    mesh = init_device_mesh("cpu", (world,))
    for axis, of_first, of_last in ((0, Shard(0), Replicate()), (1, Replicate(), Shard(0)), (None, *[Replicate()] * 2)):
        for quantizer in (snn.LSQ(4, axis=axis), snn.FakeQuantize(4, axis=axis)):
            model = parallel(network(quantizer, snn.LSQ(4)), mesh)
            for layer, expected in ((model[0], of_first), (model[2], of_last)):
                held = {
                    **dict(layer.weight_quantizer.named_parameters()),
                    **dict(layer.weight_quantizer.named_buffers()),
                }
                for name, t in held.items():
                    assert t.placements == (Replicate() if name == "initialized" else expected,), name
                assert layer.input_quantizer.scale.placements == (Replicate(),)
    names = [name for name, _ in model.named_modules()]
    assert "0.weight_quantizer" in names  # the walk of torch's ends early, every other one does not
    assert "2.input_quantizer.scale" in dict(model.named_parameters())


def frozen_and_shared(rank, world):
    """What needs no gradient goes on so, and a quantizer of two layers stays one."""
    mesh = init_device_mesh("cpu", (world,))
    shared = snn.LSQ(4, scale=0.25)
    shared.scale.requires_grad_(False)
    model = parallel(network(lambda layer: shared, None), mesh)
    assert model[0].weight_quantizer is model[2].weight_quantizer is shared
    assert isinstance(shared.scale, DTensor)
    assert not shared.scale.requires_grad
    model(torch.randn(2, 8).double()).sum().backward()
    assert shared.scale.grad is None


def states(rank, world):
    """They are loaded and saved, and a step that was pushed below 0 is saved as the one in use."""
    mesh = init_device_mesh("cpu", (world,))
    alone, x = network(snn.LSQ(4, axis=0), snn.FakeQuantize(8)), torch.randn(3, 8).double()
    expected = first_batch(alone, x)
    ours = parallel(network(snn.LSQ(4, axis=0), snn.FakeQuantize(8)), mesh)
    held = ours.state_dict()
    ours.load_state_dict(
        {
            name: distribute_tensor(value, mesh, held[name].placements) if isinstance(held[name], DTensor) else value
            for name, value in alone.state_dict().items()
        }
    )
    torch.testing.assert_close(ours(x), expected)
    for model in (alone, ours):
        with torch.no_grad():
            model[0].weight_quantizer.scale.mul_(-1.0)
    check_states(alone, ours)


def by_hand(rank, world):
    """`distribute_module` with a function of the user's, which sees the layers and not their quantizers."""
    mesh = init_device_mesh("cpu", (world,))
    alone, x = network(snn.LSQ(4, axis=0), snn.PACT(bits=4)), torch.randn(3, 8).double()
    first_batch(alone, x)
    seen = []

    def shard(name, module, mesh):
        seen.append(name)
        if isinstance(module, nn.Linear):
            for key, p in list(module._parameters.items()):
                module.register_parameter(key, nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])))

    ours = distribute_module(copy.deepcopy(alone), mesh, shard)
    assert seen == ["", "0", "1", "2"]
    assert ours[0].weight_quantizer.scale.placements == (Shard(0),)
    out = ours(distribute_tensor(x, mesh, [Replicate()]))
    torch.testing.assert_close(out.full_tensor(), alone(x))
    # With none all is copied, as torch does it, and nothing of it twice.
    ours = distribute_module(copy.deepcopy(alone), mesh)
    torch.testing.assert_close(ours(distribute_tensor(x, mesh, [Shard(0)])).full_tensor(), alone(x))


def order(rank, world):
    """Quantizers that come after the weights were sharded would have scales of one process."""
    mesh = init_device_mesh("cpu", (world,))
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
    parallel(model, mesh)
    with pytest.raises(RuntimeError, match=r"'0\.weight' is sharded .* comes first, then .*parallelize_module"):
        snn.quantize_(model, weight=snn.LSQ(4, scale=0.1))


def fully_sharded(rank, world):
    """`fully_shard` in a walk over the modules: it gives the forward plain tensors, and keeps the quantizers itself."""
    mesh = init_device_mesh("cpu", (world,))
    alone, x = network(snn.LSQ(4, axis=0), snn.FakeQuantize(8)), torch.randn(2 * world, 8).double()
    first_batch(alone, x)
    model = copy.deepcopy(alone)
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.testing.assert_close(model(x), alone(x))
    for of_model in (model, alone):
        of_model(x).square().mean().backward()
    for a, b in zip(alone.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(full(b.grad), a.grad)
    # Outside of the forward the weights and scales are DTensors.
    model[0].reshard()
    torch.testing.assert_close(full(model[0].quantized_weight()), alone[0].quantized_weight())


def compiled(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for weight, input in (QUANTIZERS["LSQ axis 0"], QUANTIZERS["BitNet"]):
        torch._dynamo.reset()
        alone, x = network(weight, input), torch.randn(4, 8).double()
        first_batch(alone, x)
        ours = parallel(copy.deepcopy(alone), mesh)
        step = torch.compile(ours, backend="aot_eager", fullgraph=True)
        for model in (alone, step):
            model(x).square().sum().backward()
        torch.testing.assert_close(step(x), alone(x))
        for a, b in zip(alone.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(full(b.grad), a.grad)


def two_dimensions(rank, world):
    """Data times tensor parallel: at rest the weights are interleaved parts of parts."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    for weight, input in (QUANTIZERS["LSQ axis 0"], QUANTIZERS["LSQ axis 1"], QUANTIZERS["XNORWeight"]):
        alone, x = network(weight, input), torch.randn(6, 8).double()
        first_batch(alone, x)
        model = parallel(copy.deepcopy(alone), mesh["tp"])
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh["dp"])
        for of_model in (model, alone):
            of_model(x).square().mean().backward()
        for (name, a), b in zip(alone.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(full(b.grad), a.grad, msg=lambda text, name=name: f"{name}: {text}")
        for at, layer in ((0, model[0]), (2, model[2])):
            layer.reshard()
            torch.testing.assert_close(full(layer.quantized_weight()), alone[at].quantized_weight())


CASES = {
    2: [layers, written_before, placements, frozen_and_shared, states, by_hand, order, fully_sharded, compiled],
    4: [two_dimensions],
}
