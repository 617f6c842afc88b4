"""What of a scale or a bound is saved, averaged, sharded, reset and made on the meta device."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from ste_ops.nn import LSQ, PACT, FakeQuantize, LSQPlus, QuantLinear, quantize_

MODULES = {
    "LSQ": lambda: LSQ(4),
    "LSQ_scale": lambda: LSQ(4, scale=0.5),
    "LSQ_channels": lambda: LSQ(4, axis=0, channels=3),
    "LSQ_scales": lambda: LSQ(4, axis=0, scale=[0.5, 0.25, 1.0]),
    "LSQPlus": lambda: LSQPlus(4),
    "LSQPlus_scale": lambda: LSQPlus(4, scale=0.5, offset=-0.1),
    "LSQPlus_channels": lambda: LSQPlus(4, axis=0, channels=3),
    "LSQPlus_scales": lambda: LSQPlus(4, axis=0, scale=[0.5, 0.25, 1.0], offset=[0.0, 0.5, -1.0]),
    "FakeQuantize": lambda: FakeQuantize(8),
    "FakeQuantize_scale": lambda: FakeQuantize(8, scale=0.5, zero_point=3),
    "FakeQuantize_scales": lambda: FakeQuantize(8, axis=0, scale=[0.5, 0.25, 1.0], zero_point=[0, 1, -2]),
    "PACT": lambda: PACT(3.0, 4),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_has_a_dimension_to_shard(name):
    module = MODULES[name]()
    module(torch.randn(3, 5))
    shape = (3,) if "channels" in name or name.endswith("scales") else (1,)
    held = {key: tuple(t.shape) for key, t in module.state_dict().items()}
    assert held.pop("initialized", (1,)) == (1,)
    assert held.pop("_extra_state", (3,)) == (3,)  # what is frozen or disabled: no parameter
    assert set(held.values()) == {shape}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_the_meta_device_is_reset_to_what_the_constructor_gives(name):
    expected = MODULES[name]()
    with torch.device("meta"):
        module = MODULES[name]()
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    module.to_empty(device="cpu")
    for tensor in module.state_dict().values():
        tensor.fill_(77)
    module.reset_parameters()
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    x = torch.randn(3, 5)
    assert torch.equal(module(x), expected(x))
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_layers_of_the_meta_device_are_reset_too():
    with torch.device("meta"):
        layer = QuantLinear(4, 3, weight_quantizer=LSQ(4, axis=0, scale=0.5), input_quantizer=PACT(3.0, 4))
        model = quantize_(nn.Sequential(nn.Linear(4, 3)), weight=FakeQuantize(4, axis=0), input=LSQ(8))
    layer.to_empty(device="cpu")
    model.to_empty(device="cpu")
    for module in (*layer.modules(), *model.modules()):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert layer.weight_quantizer.scale.tolist() == [0.5] * 3
    assert layer.input_quantizer.alpha.tolist() == [3.0]
    assert model(torch.randn(2, 4)).isfinite().all()


def test_reset_takes_a_given_scale_again_and_forgets_a_found_one():
    given, found = LSQ(4, scale=0.5), LSQ(4)
    found(torch.randn(50))
    with torch.no_grad():
        given.scale.fill_(3.0)
    for module in (given, found):
        module.reset_parameters()
        module(100 * torch.ones(50))
    assert given.scale == 0.5
    torch.testing.assert_close(found.scale.detach(), torch.tensor([200 / 7**0.5]))


@pytest.mark.parametrize("assign", [False, True])
def test_states_with_shape_0_and_a_boolean_load(assign):
    old = {"scale": torch.tensor(0.25), "initialized": torch.tensor(True)}
    lsq, fake, pact = LSQ(4), FakeQuantize(8, signed=False), PACT(bits=4)
    lsq.load_state_dict(old, assign=assign)
    fake.load_state_dict({**old, "zero_point": torch.tensor(3, dtype=torch.int32)}, assign=assign)
    pact.load_state_dict({"alpha": torch.tensor(2.0)}, assign=assign)
    x = torch.randn(50)
    for module, other in (
        (lsq, LSQ(4, scale=0.25)),
        (fake, FakeQuantize(8, signed=False, scale=0.25, zero_point=3)),
        (pact, PACT(2.0, 4)),
    ):
        assert torch.equal(module(x), other(x))
        torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=0, atol=0)
    # One that was saved before the first tensor holds a 1, which is no scale.
    lsq.load_state_dict({"scale": torch.tensor(1.0), "initialized": torch.tensor(False)}, assign=assign)
    lsq(x)
    assert lsq.initialized == 1
    torch.testing.assert_close(lsq.scale.detach()[0], 2 * x.abs().mean() / 7**0.5)


def small_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return quantize_(model, weight=LSQ(4, axis=0), input=FakeQuantize(8, signed=False))


@pytest.mark.parametrize("first", ["set", "unset", "averaged before"])
@pytest.mark.parametrize(
    "average",
    [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": get_ema_avg_fn(0.9)}],
    ids=["swa", "ema", "ema_fn"],
)
def test_an_average_of_models_is_that_of_their_scales(average, first):
    model = small_model()
    x = torch.randn(16, 4)
    if first == "set":
        model(x)
    averaged = AveragedModel(model, use_buffers=True, **average)
    scales = []
    if first == "averaged before":  # the weights have a scale then, the inputs none
        averaged.update_parameters(model)
        scales.append(model[0].weight_quantizer.scale.detach().clone())
    for _ in range(5):
        model(torch.randn(16, 4))
        with torch.no_grad():
            model[0].weight_quantizer.scale.mul_(1.1)
        averaged.update_parameters(model)
        scales.append(model[0].weight_quantizer.scale.detach().clone())
    averaged(x)
    if average:
        weights = [0.9**i * 0.1 for i in range(len(scales))][::-1]
        weights[0] *= 10
    else:
        weights = [1.0] * len(scales)
    expected = sum(w * s for w, s in zip(weights, scales, strict=True)) / sum(weights)
    lsq, fake = averaged.module[0].weight_quantizer, averaged.module[0].input_quantizer
    torch.testing.assert_close(lsq.scale.detach(), expected)
    torch.testing.assert_close(fake.scale, model[0].input_quantizer.scale)
    torch.testing.assert_close(fake.zero_point.round(), model[0].input_quantizer.zero_point, rtol=0, atol=0)
    assert torch.equal(fake.initialized.round(), torch.ones(1))
    before = copy.deepcopy(averaged.module[0].weight_quantizer.state_dict())
    averaged(5 * x)
    torch.testing.assert_close(averaged.module[0].weight_quantizer.state_dict(), before, rtol=0, atol=0)


def test_an_average_of_zero_points_is_an_integer_where_it_is_used():
    models = [FakeQuantize(8, signed=False, scale=1.0, zero_point=z) for z in (10, 13, 12)]
    averaged = AveragedModel(models[0], use_buffers=True)
    for model in models:
        averaged.update_parameters(model)
    x = torch.linspace(-30, 300, 50)
    expected = FakeQuantize(8, signed=False, scale=1.0, zero_point=12)  # of 35 / 3
    assert torch.equal(averaged(x), expected(x))


def test_an_average_kept_through_state_dicts_moves():
    """As timm's averages do, which write into what `state_dict` gives."""
    model = small_model()
    ema = copy.deepcopy(model)
    for _ in range(4):
        model(torch.randn(16, 4))
        for held, new in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
            held.copy_(0.9 * held + 0.1 * new)
    ema(torch.randn(16, 4))
    for key, value in ema[0].weight_quantizer.state_dict().items():
        torch.testing.assert_close(value, model[0].weight_quantizer.state_dict()[key])


PUSHED = {
    "LSQ": (lambda: LSQ(4, scale=0.3), "scale"),
    "LSQ_channels": (lambda: LSQ(4, axis=0, scale=[0.3, 0.2, 0.1]), "scale"),
    "LSQPlus": (lambda: LSQPlus(4, scale=0.3, offset=-0.1), "scale"),
    "PACT": (lambda: PACT(0.3, 4), "alpha"),
}


@pytest.mark.parametrize("value", [0.0, -0.3, 1e-12])
@pytest.mark.parametrize("name", PUSHED)
def test_a_state_holds_the_step_in_use(name, value):
    make, key = PUSHED[name]
    module = make()
    parameter, x = getattr(module, key), torch.linspace(-2, 2, 9).expand(3, 9)
    # Otherwise it is the parameter's own memory, into which averages and loaders write.
    assert module.state_dict()[key].data_ptr() == parameter.data_ptr()
    with torch.no_grad():
        parameter[0] = value
    state = module.state_dict()
    assert state[key][0] == 2.0**-23
    assert torch.equal(state[key][1:], parameter[1:])
    assert parameter[0] == torch.tensor(value)
    assert module.state_dict(keep_vars=True)[key] is parameter
    other = make()
    other.load_state_dict(state)
    assert torch.equal(other(x), module(x))
    # The gradient is that of the parameter, as before.
    module(x).sum().backward()
    assert parameter.grad.isfinite().all()


def test_a_program_exported_of_a_pushed_step_is_right():
    module, x = LSQ(4, scale=0.3), torch.linspace(-2, 2, 9)
    with torch.no_grad():
        module.scale.fill_(-0.3)
    program = torch.export.export(module, (x,), strict=False)
    assert torch.equal(program.module()(x), module(x))
    assert torch.equal(module(x), LSQ(4, scale=2.0**-23)(x))


def test_fully_shard_takes_every_quantizer(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = quantize_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), weight=LSQ(4), input=LSQ(8))
        model.append(PACT(3.0, 4))
        x = torch.randn(4, 8)
        expected = model(x).detach()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        out = model(x)
        torch.testing.assert_close(out.detach(), expected)
        out.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert model.state_dict()["0.weight_quantizer.scale"].shape == (1,)
        with torch.no_grad():
            model[0].weight_quantizer.scale.fill_(-1.0)
        assert model.state_dict()["0.weight_quantizer.scale"].full_tensor() == 2.0**-23
    finally:
        dist.destroy_process_group()
