"""`nn.LSQPlus`: what its scale and offset start from, of weights and of inputs, and what becomes of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel

import ste_ops
from ste_ops.nn import LSQPlus, QuantConv2d, QuantLinear, quantize_


def of_range(low, high, quant_min, quant_max):
    """x_min = s n + beta and x_max = s p + beta."""
    scale = (high - low) / (quant_max - quant_min)
    return scale, low - quant_min * scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_an_input_starts_with_its_range(device, dtype, signed, axis):
    x = (torch.nn.functional.silu(torch.randn(6, 40, device=device)) + 0.1).to(dtype)
    module = LSQPlus(3, signed, axis, None if axis is None else x.shape[axis]).to(device)
    out = module(x)
    assert out.dtype == dtype
    rows = [x.flatten()] if axis is None else x.unbind(axis)
    wanted = [of_range(float(r.min()), float(r.max()), module.quant_min, module.quant_max) for r in rows]
    held = zip(module.scale.tolist(), module.offset.tolist(), strict=True)
    for received, expected in zip(held, wanted, strict=True):
        assert received == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # Both ends of the range are levels, so nothing is off by more than half a step.
    steps = module.scale.detach().double()
    steps = steps.max() if axis is None else steps.view(-1, 1) if axis == 0 else steps
    assert bool(((out - x).double().abs() <= steps * 0.5 + 0.01 * x.double().abs() + 1e-6).all())


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_start_three_deviations_wide(axis, bits):
    """s = max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b - 1)."""
    layer = QuantLinear(50, 6, weight_quantizer=LSQPlus(bits, axis=axis))
    with torch.no_grad():
        layer.weight.add_(torch.linspace(-0.3, 0.5, 6)[:, None])
    layer(torch.randn(2, 50))
    quantizer = layer.weight_quantizer
    rows = [layer.weight.detach().flatten()] if axis is None else layer.weight.detach().unbind()
    wanted = []
    for row in rows:
        mean = math.fsum(row.tolist()) / len(row)
        deviation = math.sqrt(math.fsum((w - mean) ** 2 for w in row.tolist()) / len(row))
        wanted.append(max(abs(mean - 3 * deviation), abs(mean + 3 * deviation)) / 2 ** (bits - 1))
    assert quantizer.scale.tolist() == pytest.approx(wanted, rel=1e-5)
    assert quantizer.offset.tolist() == [0.0] * len(rows)


def test_numbers_that_are_all_the_same():
    for value in (3.0, -2.5):
        module = LSQPlus(4, signed=False)
        x = torch.full((5,), value)
        torch.testing.assert_close(module(x).detach(), x)
        assert module.initialized == 1
        assert module.scale.item() == pytest.approx(abs(value) / 15)
    # A channel of one number beside others has a range of its own, one of zeros that of the whole tensor.
    x = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [-1.0, 3.0, 0.5]])
    module = LSQPlus(2, signed=False, axis=0, channels=3)
    module(x)
    assert module.scale.tolist() == pytest.approx([4 / 3, 2 / 3, 4 / 3])
    assert module.offset.tolist() == pytest.approx([-1, 0, -1])


def test_zero_weights_become_trainable():
    """The second factor of LoRA: the first tensor with a range is the first."""
    layer = QuantLinear(8, 4, bias=False, weight_quantizer=LSQPlus(8))
    nn.init.zeros_(layer.weight)
    x, target = torch.randn(64, 8), torch.randn(4, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(250):
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * (x @ target.T).square().mean()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: LSQPlus(1),
            "LSQPlus: bits must be an integer >= 2, got 1; 1 bit is for what has no sign",
        ),
        (lambda: LSQPlus(4, offset=0.5), "LSQPlus: offset is given together with scale, got 0.5 alone"),
        (lambda: LSQPlus(4, scale=1.0, offset="a"), "LSQPlus: offset must be finite numbers, got 'a'"),
        (lambda: LSQPlus(4, scale=1.0, offset=math.inf), "LSQPlus: offset must be finite numbers, got inf"),
        (lambda: LSQPlus(4, scale=1.0, offset=[0.0, 1.0]), r"offset must be one number or .* \(1,\), got \(2,\)"),
        (lambda: LSQPlus(4, axis=0, scale=[1.0, 2.0], offset=[0.0]), None),
        (lambda: LSQPlus(4, scale=0.0), "LSQPlus: scale must be finite and > 0, got 0.0"),
        (lambda: LSQPlus(4, grad_scale=0.0), "LSQPlus: grad_scale must be a finite number > 0, got 0.0"),
        (lambda: LSQPlus(4, axis=0)(torch.randn(3, 5)), "LSQPlus: channels must be given with axis=0"),
    ],
)
def test_what_is_refused(make, words):
    if words is None:
        assert make().offset.tolist() == [0.0, 0.0]
        return
    with pytest.raises((ValueError, RuntimeError), match=words):
        make()


def test_the_default_gradient_scale_counts_one_sample_or_the_weights(device):
    x = torch.randn(6, 4, 5, device=device)
    for axis, channels, sharing in ((None, None, 20), (1, 4, 5), (0, 6, 20)):
        module = LSQPlus(4, False, axis, channels, scale=0.2, offset=-0.4).to(device)
        module(x).pow(2).sum().backward()
        scale, offset = (p.detach().clone().requires_grad_() for p in (module.scale, module.offset))
        ste_ops.lsq_plus(x, scale, offset, 0, 15, axis, 1 / math.sqrt(sharing * 15)).pow(2).sum().backward()
        torch.testing.assert_close((module.scale.grad, module.offset.grad), (scale.grad, offset.grad))
    layer = QuantLinear(6, 5, weight_quantizer=LSQPlus(4, scale=0.1, offset=0.02)).to(device)
    held = layer.weight_quantizer
    layer.quantized_weight().pow(2).sum().backward()
    scale, offset = (p.detach().clone().requires_grad_() for p in (held.scale, held.offset))
    ste_ops.lsq_plus(layer.weight, scale, offset, -8, 7, None, 1 / math.sqrt(30 * 7)).pow(2).sum().backward()
    torch.testing.assert_close((held.scale.grad, held.offset.grad), (scale.grad, offset.grad))


def net():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(128, 4))
    with torch.no_grad():
        for weight in (body[0].weight, body[2].weight, body[5].weight):
            weight.copy_(torch.randn_like(weight) ** 3 * 0.1)  # some lie beyond three deviations: their offset learns
    return quantize_(body, weight=LSQPlus(4, axis=0), input=LSQPlus(4, signed=False))


def steps(model, forward, count=4):
    torch.manual_seed(1)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(count):
        x = torch.randn(6, 3, 8, 8)
        loss = nn.functional.cross_entropy(forward(x), torch.arange(6) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_a_net_learns_all_of_its_parameters_compiled_as_eager():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = net()
    x = torch.randn(6, 3, 8, 8)
    model(x)
    other = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    losses = steps(model, model)
    torch.testing.assert_close(losses, steps(other, torch.compile(other, fullgraph=True, backend=counter)))
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    assert counter.frame_count == 1
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {name for name, _ in model.named_parameters()}


def test_unset_it_compiles_as_one_graph_too():
    torch._dynamo.reset()
    module = LSQPlus(4, signed=False)
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for x in (torch.zeros(4, 8), torch.randn(4, 8), 3 * torch.randn(4, 8)):
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(module.state_dict(), eager.state_dict())


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_gives_the_same(strict):
    model, batch = net(), torch.export.Dim("batch", min=2)
    x = torch.randn(6, 3, 8, 8)
    model(x)
    model.eval()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    torch.testing.assert_close(program.module()(x[:3]), model(x[:3]))


def test_a_state_goes_round_and_holds_what_is_in_use():
    model = net()
    model(torch.randn(6, 3, 8, 8))
    steps(model, model)
    with torch.no_grad():
        model[2].input_quantizer.scale.fill_(-0.1)
    other = net()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), model(x))
    assert model.state_dict()["2.input_quantizer.scale"].item() == 2.0**-23
    assert model[2].input_quantizer.scale.item() == torch.tensor(-0.1)
    pushed = model[2].input_quantizer
    pushed(torch.randn(3, 8)).sum().backward()
    assert pushed.scale.grad.isfinite().all()


def test_a_module_of_the_meta_device_and_a_reset():
    for make in (
        lambda: LSQPlus(4),
        lambda: LSQPlus(4, axis=0, channels=3),
        lambda: LSQPlus(4, axis=0, scale=[0.5, 0.25, 1.0], offset=[0.0, 1.0, -1.0]),
    ):
        expected = make()
        with torch.device("meta"):
            module = make()
        module.to_empty(device="cpu")
        for tensor in module.state_dict().values():
            tensor.fill_(77)
        module.reset_parameters()
        torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
        x = torch.randn(3, 5)
        assert torch.equal(module(x), expected(x))


def test_channels_come_from_the_layer():
    quantizer = LSQPlus(4, axis=0, scale=0.5, offset=-0.25)
    QuantConv2d(2, 5, 3, weight_quantizer=quantizer)
    assert (quantizer.scale.tolist(), quantizer.offset.tolist()) == ([0.5] * 5, [-0.25] * 5)


def test_an_average_is_that_of_scales_and_offsets():
    module = LSQPlus(4, signed=False)
    averaged = AveragedModel(module, use_buffers=True)  # while nothing is set
    held = []
    for _ in range(3):
        module(torch.randn(50))
        with torch.no_grad():
            module.scale.mul_(1.1)
            module.offset.sub_(0.1)
        averaged.update_parameters(module)
        held.append((module.scale.detach().clone(), module.offset.detach().clone()))
    x = torch.randn(20)
    averaged(x)
    scale, offset = (torch.stack(each).mean(0) for each in zip(*held, strict=True))
    expected = LSQPlus(4, signed=False, scale=scale.item(), offset=offset.item())
    torch.testing.assert_close(averaged(x), expected(x))
