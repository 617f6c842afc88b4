"""A scale that nobody gave comes from the first tensor: in eager mode, compiled, exported, copied and loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ste_ops.nn import (
    LSQ,
    FakeQuantize,
    QuantLinear,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("axis", "dims"), [(None, (0, 1, 2)), (0, (1, 2)), (1, (0, 2)), (-1, (0, 1))])
def test_lsq_starts_at_twice_the_mean_magnitude(dtype, axis, dims):
    x = torch.randn(3, 4, 5).to(dtype)
    module = LSQ(3, axis=axis, channels=None if axis is None else x.shape[axis])
    module(x)
    expected = 2 * x.double().abs().mean(dims).reshape(-1) / 3**0.5
    torch.testing.assert_close(module.scale.detach().double(), expected, rtol=1e-6, atol=0)
    assert bool(module.initialized)


def test_fake_quantize_takes_the_range():
    x = torch.tensor([[-1.0, 3.0], [0.5, 0.25]])
    signed = FakeQuantize(4, axis=0, channels=2)
    signed(x)
    torch.testing.assert_close(signed.scale, torch.tensor([3 / 7, 0.5 / 7]))
    assert signed.zero_point.tolist() == [0, 0]
    unsigned = FakeQuantize(2, signed=False)
    unsigned(x)
    torch.testing.assert_close(unsigned.scale, torch.tensor([4 / 3]))
    assert unsigned.zero_point == 1
    # Positive numbers alone: the range starts at 0.
    unsigned = FakeQuantize(2, signed=False)
    unsigned(x[1])
    torch.testing.assert_close(unsigned.scale, torch.tensor([0.5 / 3]))
    assert unsigned.zero_point == 0


@pytest.mark.parametrize("make", [lambda **k: LSQ(3, **k), lambda **k: FakeQuantize(3, signed=False, **k)])
def test_only_the_first_tensor_sets_the_scale(make):
    module, first, second = make(), torch.randn(50), 5 * torch.randn(50)
    held = module.scale
    module(first)
    state = copy.deepcopy(module.state_dict())
    module(second)
    assert module.scale is held
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    # As a DataParallel replica does, which does not see what the module noted for itself.
    module._settled = False
    module(second)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    module.reset_parameters()
    module(second)
    assert module.scale > 2 * state["scale"]


def test_a_scale_that_is_given_stays():
    module = LSQ(3, scale=0.5)
    module(torch.randn(10))
    assert bool(module.initialized)
    assert module.scale == 0.5


def test_the_state_dict_knows_whether_the_scale_is_set(tmp_path):
    module, x = LSQ(3), torch.randn(50)
    fresh = copy.deepcopy(module.state_dict())
    expected = module(x)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = LSQ(3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), expected)
    assert torch.equal(other(100 * x), module(100 * x))
    # Into a used one from a fresh one: the next tensor sets it again.
    other.load_state_dict(fresh)
    other(100 * x)
    torch.testing.assert_close(other.scale, 100 * module.scale)


def test_without_channels_an_axis_is_refused_outside_a_layer():
    with pytest.raises(
        RuntimeError, match="LSQ: channels must be given with axis=0, unless it is the weight_quantizer"
    ):
        LSQ(3, axis=0)(torch.randn(4, 5))


def test_an_optimizer_made_before_moves_the_step():
    module = LSQ(2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(50)).square().sum().backward()
    before = module.scale.detach().clone()
    optimizer.step()
    assert module.scale != before


def test_a_replica_sets_the_scale_of_the_module_that_it_shares_memory_with():
    module, x = LSQ(3), torch.randn(50)
    replica = module._replicate_for_data_parallel()
    # As torch.nn.parallel.replicate hands them to the replica on the first device.
    replica.scale = module.scale.view_as(module.scale)
    replica(x)
    again = LSQ(3)
    again(x)
    assert module.scale == again.scale
    assert bool(module.initialized)
    module(100 * x)
    assert module.scale == again.scale


def test_functional_calls_take_other_parameters():
    layer, x = QuantLinear(4, 3, weight_quantizer=LSQ(3, axis=0), input_quantizer=LSQ(3)), torch.randn(2, 4)
    expected = layer(x)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    two = {name: torch.stack([p, 1.5 * p]) for name, p in parameters.items()}
    out = torch.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(two)
    torch.testing.assert_close(out[0], expected)
    gradients = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).square().sum())(parameters)
    expected.square().sum().backward()
    torch.testing.assert_close(gradients, {name: p.grad for name, p in layer.named_parameters()})


@pytest.mark.parametrize("make", [lambda: LSQ(3), lambda: FakeQuantize(3, signed=False)])
def test_the_first_tensor_breaks_no_graph(make):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = make()
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for step in range(4):
        if step == 2:
            module.train()  # the host looks here whether the scale is set, which it cannot within the graph
        x = torch.randn(4, 8, requires_grad=True)
        grad = torch.randn(4, 8)
        received, expected = compiled(x), eager(x)
        torch.testing.assert_close(received, expected)
        torch.testing.assert_close(torch.autograd.grad(received, x, grad), torch.autograd.grad(expected, x, grad))
    torch.testing.assert_close(module.state_dict(), eager.state_dict())
    assert counter.frame_count == 2  # with the search for the scale, and without


def test_export_asks_for_a_batch_first():
    layer, x = QuantLinear(4, 3, weight_quantizer=LSQ(3, axis=0)), torch.randn(2, 4)
    with pytest.raises(RuntimeError, match="no scale is set yet"):
        torch.export.export(layer, (x,), strict=False)
    layer(x)
    # Loaded from a file it is known to be set.
    other = QuantLinear(4, 3, weight_quantizer=LSQ(3, axis=0))
    other.load_state_dict(layer.state_dict())
    program = torch.export.export(other, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), layer(x))
