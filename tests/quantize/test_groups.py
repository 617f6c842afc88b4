"""`group_size=`: a scale for every so many neighbours of an output channel, on every device."""

import copy
import io

import pytest
import torch
from support.surrogate_table import DTYPES, assert_same_bits, forward_and_gradient
from torch import nn
from torch.func import grad, vmap

import ste_ops
from ste_ops import reference
from ste_ops.nn import LSQ, BitNetWeight, DoReFaWeight, FakeQuantize, MagnitudeAwareSign, QuantLinear, XNORWeight
from ste_ops.surrogate import ApproxSign

CASES = {
    "xnor_weight": lambda module, size: lambda w: module.xnor_weight(w, group_size=size),
    "xnor_weight of ApproxSign": lambda module, size: lambda w: module.xnor_weight(w, ApproxSign(), size),
    "magnitude_aware_sign": lambda module, size: lambda w: module.magnitude_aware_sign(w, group_size=size),
    "dorefa_weight": lambda module, size: lambda w: module.dorefa_weight(w, 3, group_size=size),
    "dorefa_weight of 1 bit": lambda module, size: lambda w: module.dorefa_weight(w, 1, group_size=size),
    "bitnet_weight": lambda module, size: lambda w: module.bitnet_weight(w, group_size=size),
}
WEIGHTS = {
    "linear": lambda: torch.randn(5, 12),
    "transposed": lambda: torch.randn(12, 5).t(),
    "sliced": lambda: torch.randn(5, 24)[:, ::2],
    "convolution": lambda: torch.randn(4, 6, 3, 3),
    "channels_last": lambda: torch.randn(4, 6, 3, 3).contiguous(memory_format=torch.channels_last),
    "vector": lambda: torch.randn(12),
    "empty": lambda: torch.randn(0, 12),
}
MODULES = {
    "LSQ": lambda **kwargs: LSQ(4, **kwargs),
    "FakeQuantize": lambda **kwargs: FakeQuantize(4, signed=False, **kwargs),
    "XNORWeight": XNORWeight,
    "MagnitudeAwareSign": lambda **kwargs: MagnitudeAwareSign(ApproxSign(), **kwargs),
    "DoReFaWeight": lambda **kwargs: DoReFaWeight(2, **kwargs),
    "BitNetWeight": BitNetWeight,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_each_group_is_quantized_by_itself(device, name, dtype):
    torch.manual_seed(0)
    eps = max(32 * torch.finfo(dtype).eps, 2e-5 if dtype != torch.float64 else 1e-12)
    for layout, make in WEIGHTS.items():
        w = make().to(dtype).to(device)
        upstream = torch.randn(w.shape, device=device).to(dtype)
        received, expected = (forward_and_gradient(CASES[name](m, 3), w, upstream) for m in (ste_ops, reference))
        torch.testing.assert_close(received, expected, rtol=eps, atol=1e-6, msg=lambda m, at=layout: f"{at}: {m}")
        assert received[0].stride() == torch.empty_like(w).stride(), layout
        assert received[0].dtype == dtype


@pytest.mark.parametrize("name", CASES)
def test_a_group_of_a_whole_channel_is_the_channel(device, name):
    w, upstream = torch.randn(1, 70, device=device), torch.randn(1, 70, device=device)
    for received, expected in zip(
        forward_and_gradient(CASES[name](ste_ops, 70), w, upstream),
        forward_and_gradient(CASES[name](ste_ops, None), w, upstream),
        strict=True,
    ):
        assert_same_bits(received, expected)


@pytest.mark.parametrize("name", CASES)
def test_transforms_and_compilation(device, name):
    fn, slow = CASES[name](ste_ops, 4), CASES[name](reference, 4)
    w = torch.randn(3, 2, 8, dtype=torch.float64, device=device)

    def loss(f):
        return lambda w: (f(w) * w.sin()).sum()

    expected = torch.stack([torch.autograd.functional.jacobian(loss(slow), sample) for sample in w])
    torch.testing.assert_close(vmap(grad(loss(fn)))(w), expected)
    torch._dynamo.reset()
    compiled = torch.compile(loss(fn), fullgraph=True, backend="aot_eager")
    x = w[0].clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected[0])


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_divide_is_refused(name):
    fn = CASES[name]
    operator = name.split()[0]
    words = rf"{operator}: group_size must divide the weights of an output channel, got group_size=5 and 12 of them in"
    with pytest.raises(ValueError, match=words):
        fn(ste_ops, 5)(torch.randn(4, 12))
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"{operator}: group_size must be an integer >= 1, got {size!r}"):
            fn(ste_ops, size)(torch.randn(4, 12))


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    torch.manual_seed(0)
    make = MODULES[name]
    layer = QuantLinear(8, 3, weight_quantizer=make(group_size=4))
    found = layer.quantized_weight()
    rows = QuantLinear(4, 6, weight_quantizer=make(group_size=4))
    with torch.no_grad():
        rows.weight.copy_(layer.weight.reshape(6, 4))
    assert torch.equal(found, rows.quantized_weight().reshape(3, 8))
    layer(torch.randn(5, 8)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    for other in (copy.deepcopy(layer), QuantLinear(8, 3, weight_quantizer=make(group_size=4))):
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other.quantized_weight(), found)
    assert "group_size=4" in repr(layer.weight_quantizer)
    assert "group_size" not in repr(make())
    with pytest.raises(ValueError, match=r"group_size must be an integer >= 1, got 0"):
        make(group_size=0)
    with pytest.raises(ValueError, match=r"\w+: group_size must divide the weights .*, got group_size=4"):
        QuantLinear(6, 3, weight_quantizer=make(group_size=4)).quantized_weight()


@pytest.mark.parametrize("make", [LSQ, FakeQuantize])
def test_a_scale_for_each_group(make):
    layer = QuantLinear(8, 3, weight_quantizer=make(4, group_size=2))
    layer.quantized_weight()
    assert layer.weight_quantizer.scale.shape == (12,)
    with torch.no_grad():
        layer.weight[0, :2] *= 100
    layer.weight_quantizer.reset_parameters()
    layer.quantized_weight()
    scale = layer.weight_quantizer.scale.detach()
    assert scale[0] > 20 * scale[1:].max()
    assert make(4, group_size=2, channels=4).scale.shape == (4,)
    with pytest.raises(ValueError, match=rf"{make.__name__}: group_size is of neighbours .* got axis=1 beside it"):
        make(4, axis=1, group_size=2)


def test_the_gradient_of_a_groups_step_counts_its_members():
    layer = QuantLinear(8, 3, weight_quantizer=LSQ(4, group_size=2))
    layer.quantized_weight().sum().backward()
    w = layer.weight.detach().reshape(12, 2).requires_grad_()
    scale = layer.weight_quantizer.scale.detach().clone().requires_grad_()
    ste_ops.lsq(w, scale, -8, 7, axis=0, grad_scale=(2 * 7) ** -0.5).sum().backward()
    torch.testing.assert_close(layer.weight_quantizer.scale.grad, scale.grad)
    convolution = ste_ops.nn.QuantConv2d(2, 3, 3, weight_quantizer=LSQ(4, group_size=9))
    convolution(torch.randn(1, 2, 5, 5)).sum().backward()
    assert convolution.weight_quantizer.scale.shape == (6,)
    model = nn.Sequential(nn.Linear(4, 4))
    ste_ops.nn.quantize_(model, LSQ(4, group_size=2))
    assert model[0].weight_quantizer.scale.shape == (8,)
