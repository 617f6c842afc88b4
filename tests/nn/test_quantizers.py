"""The quantizers of `ste_ops.nn`: each is its operator with settings that are checked."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from support.graph import nodes
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
    LSQPlus,
    MagnitudeAwareSign,
    Quantizer,
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
    "Ternary": (lambda: Ternary(Clip(0.5), 0.3), lambda ops, x: ops.ternary(x, Clip(0.5), 0.3)),
    "StochasticRound": (lambda: StochasticRound().eval(), lambda ops, x: ops.round(x)),
    "PACT": (lambda: PACT(0.7, 3), lambda ops, x: ops.pact(x, x.new_tensor(0.7), 3)),
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
    "LSQPlus": (
        lambda: LSQPlus(3, False, axis=1, channels=8, scale=0.3, offset=-0.7, grad_scale=0.5),
        lambda ops, x: ops.lsq_plus(x, x.new_full((8,), 0.3), x.new_full((8,), -0.7), 0, 7, 1, 0.5),
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
    # What stands for a norm and its step is held by test_fold_batch_norm.
    assert classes - {"Quantizer", "ChannelThreshold"} == set(QUANTIZERS)


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
def test_a_module_records_one_node_as_its_operator_does(name):
    make, operator = QUANTIZERS[name]
    x = torch.randn(4, 8, requires_grad=True)
    found = {"LSQ": [LSQ(3), LSQ(3).freeze()], "LSQPlus": [LSQPlus(3)], "FakeQuantize": [FakeQuantize()]}
    for module in (make(), *found.get(name, [])):
        module(x)  # which may set its scale
        assert nodes(module(x)) == nodes(operator(ste_ops, x)) == 1


def test_a_zero_point_between_integers_is_rounded(device):
    """As of an average of models; a number on the host and a tensor give the same bits."""
    x = torch.linspace(-3, 9, 97, device=device)
    for zero_point in (2.5, 3.5, -0.25, 7.0):
        module = FakeQuantize(4, signed=False, scale=0.3).to(device)
        module.zero_point.fill_(zero_point)
        expected = ste_ops.fake_quantize(x, module.scale, module.zero_point.round().int(), 0, 15)
        assert torch.equal(module(x), expected)
        of_many = torch.vmap(lambda row, m=module: torch.func.functional_call(m, {}, (row,)))
        assert torch.equal(of_many(x.expand(2, -1))[1], expected)


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
        (lambda: Ternary(threshold=-0.1), "Ternary: threshold must be a finite number >= 0, got -0.1"),
        (lambda: Ternary(threshold=float("nan")), "Ternary: threshold"),
        (lambda: StochasticRound(7), "StochasticRound: generator must be a torch.Generator or None, got int"),
        (lambda: PACT(bits=0), "PACT: bits must be an integer >= 1, got 0"),
        (lambda: PACT(bits=2, alpha=0.0), "PACT: alpha must be a finite number > 0, got 0.0"),
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
    with pytest.raises(TypeError, match="Sign: surrogate must be one of"):
        module.surrogate = "none"


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
    module = PACT(1.0, 2)
    module(torch.tensor([2.0, 3.0, 0.5])).sum().backward()
    assert module.alpha.grad == 2


@pytest.mark.parametrize("make", [lambda: LSQ(3, scale=1.0), lambda: PACT(1.0, 3)], ids=["LSQ", "PACT"])
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


def test_quantizers_share_a_base():
    for make, _ in QUANTIZERS.values():
        assert isinstance(make(), Quantizer)
