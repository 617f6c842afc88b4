"""`FakeQuantize(momentum=...)`: a scale that follows what it sees while training."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.ao.quantization import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from ste_ops.nn import FakeQuantize, QuantLinear, calibrate, quantize_

MAKERS = {
    "unsigned": lambda **k: FakeQuantize(8, signed=False, **k),
    "signed": lambda **k: FakeQuantize(8, **k),
    "unsigned_channels": lambda **k: FakeQuantize(4, signed=False, axis=-1, channels=6, **k),
    "signed_channels": lambda **k: FakeQuantize(4, axis=1, channels=6, **k),
}


def batches(number, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(5, 6, generator=generator) * (1 + i % 4) + 0.3 * i).to(dtype) for i in range(number)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("name", MAKERS)
def test_it_is_torchs_moving_average(device, name, momentum, dtype):
    module = MAKERS[name](momentum=momentum).to(device)
    symmetric, channels = name.startswith("signed"), name.endswith("channels")
    settings = {
        "averaging_constant": momentum,
        "quant_min": module.quant_min,
        "quant_max": module.quant_max,
        "dtype": torch.qint8 if symmetric else torch.quint8,
    }
    if channels:
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        observer = MovingAveragePerChannelMinMaxObserver(ch_axis=1, qscheme=scheme, **settings)
    else:
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        observer = MovingAverageMinMaxObserver(qscheme=scheme, **settings)
    for x in batches(20, dtype):
        out = module(x.to(device))
        observer(x)
        assert torch.equal(module.low.cpu(), observer.min_val.reshape(-1))
        assert torch.equal(module.high.cpu(), observer.max_val.reshape(-1))
        scale, zero_point = observer.calculate_qparams()
        if symmetric:  # torch divides by half of the range, 127.5, where the largest is beyond quant_max
            scale = scale * ((module.quant_max - module.quant_min) / 2 / module.quant_max)
        torch.testing.assert_close(module.scale.cpu(), scale)
        assert torch.equal(module.zero_point.cpu(), zero_point.float())
    # What was seen last counts in the call that saw it.
    fixed = MAKERS[name](scale=module.scale, zero_point=[int(z) for z in module.zero_point] if not symmetric else 0)
    assert torch.equal(out, fixed.to(device)(x.to(device)))


@pytest.mark.parametrize("name", MAKERS)
def test_evaluation_and_what_has_no_range_leave_it(name):
    module, x = MAKERS[name](momentum=0.1), batches(1)[0]
    module(x)
    state = copy.deepcopy(module.state_dict())
    nan, infinite = x.clone(), x.clone()
    nan[0, 0], infinite[1, 2] = math.nan, math.inf
    for bad in (nan, infinite, torch.empty(0, 6)):
        module(bad)
        torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
    module.eval()(100 * x)
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
    module.train()(100 * x)
    assert (module.scale > state["scale"]).all()


@pytest.mark.parametrize("name", MAKERS)
def test_compiled_it_follows_without_a_break(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = MAKERS[name](momentum=0.2)
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for step, x in enumerate(batches(8)):
        if step == 4:
            module.train()
        torch.testing.assert_close(compiled(x), eager(x))
        torch.testing.assert_close(module.state_dict(), eager.state_dict())
    assert counter.frame_count == 2
    module.eval()
    compiled(x)
    compiled(10 * x)
    torch.testing.assert_close(module.state_dict(), eager.state_dict())
    assert counter.frame_count == 3


def block(momentum=0.1):
    torch.manual_seed(0)
    return quantize_(
        nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)),
        input=FakeQuantize(8, signed=False, momentum=momentum),
        weight=FakeQuantize(8, axis=0, momentum=momentum),
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_a_batch_once(reentrant):
    plain, saved = block(), block()
    for x in batches(4):
        outs = [plain(x), checkpoint(saved, x.clone().requires_grad_(), use_reentrant=reentrant)]
        for out in outs:
            out.square().sum().backward()
        assert torch.equal(*outs)
        torch.testing.assert_close(saved.state_dict(), plain.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close([p.grad for p in saved.parameters()], [p.grad for p in plain.parameters()])


def test_two_forwards_before_a_backward():
    model = block()
    (model(batches(2)[0]).sum() + model(batches(2)[1]).sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_copies_averages_and_states():
    model = block()
    average = AveragedModel(model, use_buffers=True)
    lows = []
    for x in batches(5):
        model(x)
        average.update_parameters(model)
        lows.append(model[0].input_quantizer.low.clone())
    torch.testing.assert_close(average.module[0].input_quantizer.low, torch.stack(lows).mean(0))
    loaded = block()
    loaded.load_state_dict(model.state_dict())
    x = batches(6)[5]
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]
    expected = model(x)
    for each in copies:
        assert torch.equal(each(x), expected)
        torch.testing.assert_close(each.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("signed", [False, True])
def test_states_of_quantizers_with_and_without_load_into_each_other(signed):
    still, x = FakeQuantize(8, signed=signed), batches(2)[1]
    still(x)
    follows = FakeQuantize(8, signed=signed, momentum=0.5)
    follows.load_state_dict(still.state_dict())
    assert torch.equal(follows.eval()(x), still(x))
    follows.train()(3 * x)
    torch.testing.assert_close(follows.scale, 2 * still.scale, rtol=0.02, atol=0)
    still.load_state_dict(follows.state_dict())
    assert torch.equal(still.scale, follows.scale)
    # Before there were zero points of shape (1,) and flags that are numbers.
    follows.load_state_dict(
        {"scale": torch.tensor(0.5), "zero_point": torch.tensor(0), "initialized": torch.tensor(True)}
    )
    assert follows.high == 0.5 * follows.quant_max


def test_it_starts_where_it_is_told():
    module = FakeQuantize(8, signed=False, scale=0.5, zero_point=10, momentum=0.25)
    assert (module.low, module.high) == (-5.0, 122.5)
    module(torch.tensor([-1.0, 22.5]))
    assert (module.low, module.high) == (-4.0, 97.5)
    module.reset_parameters()
    assert (module.low, module.high, module.scale, module.zero_point) == (-5.0, 122.5, 0.5, 10)
    found = FakeQuantize(8, signed=False, momentum=0.25)
    calibrate(found, [torch.tensor([0.0, 100.0]), torch.tensor([-1.0, 3.0])])
    assert (found.low, found.high) == (-1.0, 100.0)
    layer = QuantLinear(6, 4, weight_quantizer=FakeQuantize(8, axis=0, momentum=0.5))
    before = layer.weight_quantizer.scale.clone()
    with torch.no_grad():
        layer(torch.ones(1, 6))
        layer.weight.mul_(3)
    layer(torch.ones(1, 6))
    torch.testing.assert_close(layer.weight_quantizer.scale, 2 * before)
    assert repr(found) == "FakeQuantize(bits=8, signed=False, momentum=0.25)"


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, math.nan, "0.1", True])
def test_a_momentum_that_is_none_is_refused(momentum):
    with pytest.raises(ValueError, match="FakeQuantize: momentum must be None or a number > 0 and <= 1, got"):
        FakeQuantize(8, momentum=momentum)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_averages_of_other_dtypes(dtype, signed):
    quantize = FakeQuantize(8, signed=signed, axis=0, channels=2, momentum=0.5).to(dtype)
    expected = FakeQuantize(8, signed=signed, axis=0, channels=2, momentum=0.5)
    for x in (torch.tensor([[0.5, -2.0], [1.0, 4.0]]), torch.tensor([[1.5, -1.0], [0.0, 8.0]])):
        y, z = quantize(x.to(dtype)), expected(x)
    torch.testing.assert_close(quantize.high.float(), expected.high)
    torch.testing.assert_close(quantize.scale.float(), expected.scale, rtol=1e-2, atol=0)
    torch.testing.assert_close(y.float(), z, rtol=2e-2, atol=2e-2)
