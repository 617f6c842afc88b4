"""The quantizers of `ste_ops.nn`: each is its operator, and a scale that nobody gave comes from the first tensor."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ste_ops
from ste_ops import reference
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    BitNetActivation,
    BitNetWeight,
    DoReFaActivation,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    MagnitudeAwareSign,
    Quantizer,
    QuantLinear,
    Sign,
    StochasticRound,
    Ternary,
    XNORWeight,
)
from ste_ops.surrogate import Clip, Identity, Tanh

# A new module is one row: the module, and the operator with the same settings.
QUANTIZERS = {
    "Sign": (lambda: Sign(Clip(0.5)), lambda ops, x: ops.sign(x, Clip(0.5))),
    "Heaviside": (lambda: Heaviside(Identity()), lambda ops, x: ops.heaviside(x, Identity())),
    "Ternary": (lambda: Ternary(0.3, Clip(0.5)), lambda ops, x: ops.ternary(x, 0.3, Clip(0.5))),
    "StochasticRound": (lambda: StochasticRound().eval(), lambda ops, x: ops.round(x)),
    "PACT": (lambda: PACT(3, alpha=0.7), lambda ops, x: ops.pact(x, x.new_tensor(0.7), 3)),
    "DoReFaActivation": (lambda: DoReFaActivation(3), lambda ops, x: ops.dorefa_activation(x, 3)),
    "DoReFaWeight": (lambda: DoReFaWeight(3), lambda ops, x: ops.dorefa_weight(x, 3)),
    "XNORWeight": (XNORWeight, lambda ops, x: ops.xnor_weight(x)),
    "MagnitudeAwareSign": (MagnitudeAwareSign, lambda ops, x: ops.magnitude_aware_sign(x)),
    "BitNetWeight": (BitNetWeight, lambda ops, x: ops.bitnet_weight(x)),
    "BitNetActivation": (lambda: BitNetActivation(4), lambda ops, x: ops.bitnet_activation(x, 4)),
    "SRSTE": (lambda: SRSTE(1, 4, 0.01), lambda ops, x: ops.sr_ste(x, 1, 4, 0.01)),
    "LSQ": (
        lambda: LSQ(3, False, axis=1, channels=8, scale=0.3, grad_scale=0.5),
        lambda ops, x: ops.lsq(x, x.new_full((8,), 0.3), 0, 7, 1, 0.5),
    ),
    "FakeQuantize": (
        lambda: FakeQuantize(3, axis=0, scale=[0.1, 0.2, 0.3, 0.4], zero_point=[0, 1, -1, 0]),
        lambda ops, x: ops.fake_quantize(
            x, x.new_tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 1, -1, 0], device=x.device), -4, 3, 0
        ),
    ),
}


def test_every_quantizer_has_a_row():
    modules = [getattr(ste_ops.nn, name) for name in ste_ops.nn.__all__]
    classes = {m.__name__ for m in modules if isinstance(m, type) and issubclass(m, ste_ops.nn.Quantizer)}
    assert classes - {"Quantizer"} == set(QUANTIZERS)


def through(quantize, x, grad):
    x = x.detach().requires_grad_()
    out = quantize(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_module_is_its_operator(device, name):
    make, operator = QUANTIZERS[name]
    module = make().to(device)
    x, grad = torch.randn(4, 8, device=device), torch.randn(4, 8, device=device)
    received = through(module, x, grad)
    assert not torch.equal(received[0], x)
    assert all(map(torch.equal, received, through(lambda x: operator(ste_ops, x), x, grad)))
    torch.testing.assert_close(received, through(lambda x: operator(reference, x), x, grad))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_module_keeps_dtype_and_survives_copies(name):
    module = QUANTIZERS[name][0]()
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    expected = module(x)
    assert expected.dtype == torch.bfloat16
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(saved, weights_only=False)]
    for other in copies:
        assert torch.equal(other(x), expected)
        assert repr(other) == repr(module)
        assert list(other.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sign("Clip"), "Sign: surrogate must be one of ste_ops.surrogate, got 'Clip'"),
        (lambda: Heaviside(1.0), "Heaviside: surrogate"),
        (lambda: Ternary(-0.1), "Ternary: threshold must be a finite number >= 0, got -0.1"),
        (lambda: Ternary(float("nan")), "Ternary: threshold"),
        (lambda: StochasticRound(7), "StochasticRound: generator must be a torch.Generator, got int"),
        (lambda: PACT(0), "PACT: bits must be an integer >= 1, got 0"),
        (lambda: PACT(2, alpha=0.0), "PACT: alpha must be a finite number > 0, got 0.0"),
        (lambda: DoReFaActivation(2.0), "DoReFaActivation: bits"),
        (lambda: DoReFaWeight(True), "DoReFaWeight: bits"),
        (lambda: BitNetActivation(1), "BitNetActivation: bits must be an integer >= 2"),
        (lambda: SRSTE(5, 4), "SRSTE: m must be an integer >= 5, got 4"),
        (lambda: SRSTE(2, 4, -1.0), "SRSTE: decay"),
        (lambda: LSQ(1), "LSQ: bits must be an integer >= 2, got 1"),
        (lambda: LSQ(2, signed=1), "LSQ: signed must be True or False, got 1"),
        (lambda: LSQ(2, axis=0.0), "LSQ: axis must be None or an integer"),
        (lambda: LSQ(2, channels=3), "LSQ: channels is the size of x along axis, got channels=3 without axis"),
        (lambda: LSQ(2, axis=0, channels=0), "LSQ: channels must be an integer >= 1, got 0"),
        (lambda: LSQ(2, scale=0.0), "LSQ: scale must be finite and > 0, got 0.0"),
        (lambda: LSQ(2, scale=[1.0, float("nan")], axis=0), "LSQ: scale must be finite and > 0"),
        (lambda: LSQ(2, scale=[1.0, 2.0]), r"LSQ: scale must be one number without axis, got shape \(2,\)"),
        (lambda: LSQ(2, scale=[1.0, 2.0], axis=0, channels=3), "LSQ: scale must be one number or 3 of them"),
        (lambda: LSQ(2, grad_scale=-1.0), "LSQ: grad_scale"),
        (lambda: FakeQuantize(4, scale=1.0, zero_point=8), "zero_point must be integers from -8 to 7, got 8"),
        (lambda: FakeQuantize(4, scale=1.0, zero_point=0.5), "zero_point must be integers"),
        (lambda: FakeQuantize(4, zero_point=1), "zero_point is given together with scale"),
        (lambda: FakeQuantize(4, scale=1.0, zero_point=[0, 1]), "must be one integer or have the shape of scale"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_stochastic_round_draws_only_in_training():
    generator = torch.Generator().manual_seed(0)
    module, x = StochasticRound(generator), torch.full((1000,), 0.3)
    assert 0.2 < module(x).mean() < 0.4
    assert module.eval()(x).unique().tolist() == [0.0]


def test_a_surrogate_can_be_assigned_while_training():
    module, x = Sign(), torch.tensor([0.3, 0.8], requires_grad=True)
    for surrogate, expected in ((Clip(0.5), [1.0, 0.0]), (Identity(), [1.0, 1.0])):
        module.surrogate = surrogate
        assert torch.autograd.grad(module(x).sum(), x)[0].tolist() == expected
    module.surrogate = "none"
    with pytest.raises(TypeError, match="surrogate must be one of"):
        module(x)


def test_a_schedule_of_surrogates_compiles_twice_at_most():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = Sign()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for step in range(5):
        module.surrogate = Tanh(1.0 + 0.3 * step, 1.0)
        x = torch.randn(50, requires_grad=True)
        (received,) = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(received, module.surrogate.derivative(x.detach()))
    assert counter.frame_count <= 2


def test_pact_learns_alpha():
    module = PACT(2, alpha=1.0)
    module(torch.tensor([2.0, 3.0, 0.5])).sum().backward()
    assert module.alpha.grad == 2


@pytest.mark.parametrize("make", [lambda: LSQ(3, scale=1.0), lambda: PACT(3, alpha=1.0)], ids=["LSQ", "PACT"])
def test_a_step_that_the_optimizer_pushed_below_0_comes_back(make):
    module, x = make(), torch.rand(50) + 1
    (parameter,) = module.parameters()
    with torch.no_grad():
        parameter.fill_(-0.5)
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    for _ in range(200):
        loss = (module(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    assert parameter > 0


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float64])
def test_scales_may_have_another_dtype_than_the_tensors(cast):
    for module in (LSQ(4), FakeQuantize(4, signed=False)):
        x = torch.randn(20, dtype=cast, requires_grad=True)
        out = module(x)  # float32 scales
        out.sum().backward()
        assert out.dtype == x.grad.dtype == cast
        module.to(torch.bfloat16)(x.detach().float())
        assert all(p.grad.dtype == p.dtype == torch.bfloat16 for p in module.parameters())


# The first tensor.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("axis", "dims"), [(None, (0, 1, 2)), (0, (1, 2)), (1, (0, 2)), (-1, (0, 1))])
def test_lsq_starts_at_twice_the_mean_magnitude(dtype, axis, dims):
    x = torch.randn(3, 4, 5).to(dtype)
    module = LSQ(3, axis=axis, channels=None if axis is None else x.shape[axis])
    module(x)
    expected = 2 * x.double().abs().mean(dims) / 3**0.5
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
    torch.testing.assert_close(unsigned.scale, torch.tensor(4 / 3))
    assert unsigned.zero_point == 1
    # Positive numbers alone: the range starts at 0.
    unsigned = FakeQuantize(2, signed=False)
    unsigned(x[1])
    torch.testing.assert_close(unsigned.scale, torch.tensor(0.5 / 3))
    assert unsigned.zero_point == 0


@pytest.mark.parametrize("make", [lambda: LSQ(4), lambda: FakeQuantize(4), lambda: FakeQuantize(4, signed=False)])
@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.empty(0, 4), torch.tensor(0.0)], ids=["zeros", "empty", "0-d"])
def test_a_tensor_without_a_range_gives_the_least_step(make, x):
    module = make()
    assert torch.equal(module(x), x)
    torch.testing.assert_close(module.scale.detach(), torch.tensor(2.0**-23))


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
    for _ in range(3):
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


def test_quantizers_share_a_base():
    for make, _ in QUANTIZERS.values():
        assert isinstance(make(), Quantizer)
