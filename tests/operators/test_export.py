"""Programs of torch.export and torch.jit.trace: they hold operators that keep the gradient, and train as the module."""

import io
import math

import pytest
import torch
from support.operator_arguments import curved
from torch.func import functional_call, grad, jvp, vmap

import ste_ops
from ste_ops import surrogate
from ste_ops._torch import all_operator_names

SCALES = torch.tensor([0.2, 0.35, 0.5])

# Calls of every function with a gradient for a tensor (3, 8), whose channels lie along dimension 0.
CALLS = {
    "binary_linear": lambda x: ste_ops.binary_linear(x, x.flip(0), scale=0.5),
    "binary_conv2d": lambda x: ste_ops.binary_conv2d(x.view(1, 8, 1, 3), x.view(3, 8, 1, 1))[0, :, 0],
    "heaviside(Clip)": lambda x: ste_ops.heaviside(x, surrogate.Clip(0.7)),
    "heaviside(Rect)": lambda x: ste_ops.heaviside(x, surrogate.Rect(0.7)),
    "heaviside(Identity)": lambda x: ste_ops.heaviside(x, surrogate.Identity()),
    "heaviside(at_zero)": lambda x: ste_ops.heaviside(ste_ops.round(x), surrogate.Clip(0.7), at_zero=1),
    "heaviside(Custom, at_zero)": lambda x: ste_ops.heaviside(ste_ops.round(x), surrogate.Custom(torch.cos), 1),
    "sign(ATan)": lambda x: ste_ops.sign(x, surrogate.ATan(3.0)),
    "sign(Custom)": lambda x: ste_ops.sign(x, surrogate.Custom(torch.cos)),
    "sign(Rect(tensor))": lambda x: ste_ops.sign(x, surrogate.Rect(x.new_tensor(0.7))),
    "heaviside(learned ATan)": lambda x: ste_ops.heaviside(x, surrogate.ATan(2 + x.mean())),
    "ternary(learned Clip, tensor)": lambda x: ste_ops.ternary(x, surrogate.Clip(0.7 + x.mean()), x.new_tensor(0.3)),
    "ternary(Custom, tensor)": lambda x: ste_ops.ternary(x, surrogate.Custom(torch.cos), x.new_tensor(0.3)),
    "ternary(Clip)": lambda x: ste_ops.ternary(x, surrogate.Clip(0.7), 0.3),
    "ternary(Custom)": lambda x: ste_ops.ternary(x, surrogate.Custom(torch.cos), 0.3),
    "round": lambda x: ste_ops.round(x * 3),
    "floor": lambda x: ste_ops.floor(x * 3),
    "ceil": lambda x: ste_ops.ceil(x * 3),
    "trunc": lambda x: ste_ops.trunc(x * 3),
    "clamp": lambda x: ste_ops.clamp(x, -0.5, math.inf),
    "stochastic_round": lambda x: ste_ops.stochastic_round(x * 3),
    "fake_quantize": lambda x: ste_ops.fake_quantize(x, 0.2, 1, -4, 3),
    "fake_quantize(axis)": lambda x: ste_ops.fake_quantize(x, SCALES.to(x.device), 0, -4, 3, axis=0),
    "lsq": lambda x: ste_ops.lsq(x, x.abs().mean(), -4, 3),
    "lsq(constant scale)": lambda x: ste_ops.lsq(x, SCALES.to(x.device), -4, 3, axis=0),
    "lsq_plus": lambda x: ste_ops.lsq_plus(x, x.abs().mean(), x.mean(), -4, 3),
    "lsq_plus(constant)": lambda x: ste_ops.lsq_plus(x, SCALES.to(x.device), SCALES.to(x.device), -4, 3, axis=0),
    "pact": lambda x: ste_ops.pact(x, x.abs().mean(), 2),
    "dorefa_activation": lambda x: ste_ops.dorefa_activation(x, 2),
    "dorefa_weight": lambda x: ste_ops.dorefa_weight(x, 2),
    "dorefa_weight(1)": lambda x: ste_ops.dorefa_weight(x, 1),
    "xnor_weight": ste_ops.xnor_weight,
    "xnor_weight(ApproxSign)": lambda x: ste_ops.xnor_weight(x, surrogate.ApproxSign()),
    "magnitude_aware_sign": ste_ops.magnitude_aware_sign,
    "magnitude_aware_sign(Rect)": lambda x: ste_ops.magnitude_aware_sign(x, surrogate.Rect(0.7)),
    "bitnet_weight": ste_ops.bitnet_weight,
    "bitnet_activation": ste_ops.bitnet_activation,
    "sr_ste": lambda x: ste_ops.sr_ste(x, 2, 4, 0.1),
    "bernoulli_ste": lambda x: ste_ops.bernoulli_ste(x.sigmoid()),
    "categorical_ste": lambda x: ste_ops.categorical_ste(x, "reinmax", 1.5),
    "subset_ste": lambda x: ste_ops.subset_ste(x, 3, 0.7),
    "clip_gradient_value": lambda x: ste_ops.clip_gradient_value(x, 0.25),
    "clip_gradient_norm": lambda x: ste_ops.clip_gradient_norm(x, 0.25, math.inf, dim=1),
}
DRAWN = ("stochastic_round", "bernoulli_ste", "categorical_ste", "subset_ste")
BATCH = ({0: torch.export.Dim("batch", min=1)},)


class Net(torch.nn.Module):
    def __init__(self, fn, device):
        super().__init__()
        self.fn, self.w = fn, torch.nn.Parameter(torch.linspace(-1.3, 1.4, 24, device=device).view(3, 8))

    def forward(self, x):
        return (self.fn(self.w) * x.unsqueeze(-1).unsqueeze(-1)).sum()


def trained(module, x):
    """What a forward and a backward give: of every kind of program the same bits."""
    torch.manual_seed(7)
    module.zero_grad()
    out = module(x)
    out.backward()
    (w,) = module.parameters()
    return out.detach(), w.grad


def exported(module, x, strict=False, dynamic=BATCH):
    torch._dynamo.reset()
    return torch.export.export(module, (x,), strict=strict, dynamic_shapes=dynamic)


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def nodes(program):
    return {node.target.name() for node in program.graph.nodes if "ste_ops" in str(node.target)}


def recorded_operators():
    return {name for name in all_operator_names() if name.startswith("ste_ops::autograd_")}


# A program holds operators, whichever kernels run; those of the emulated ones are called under its transforms.
@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_an_exported_program_trains_as_its_module(device, name):
    net = Net(CALLS[name], device)
    program = exported(net, torch.linspace(0.5, 2, 4, device=device))
    x = torch.tensor([1.5, -0.75, 0.25], device=device)
    expected = trained(net, x)
    torch.testing.assert_close(trained(program.module(), x), expected, rtol=0, atol=0)
    torch.testing.assert_close(trained(saved_and_loaded(program).module(), x), expected, rtol=0, atol=0)
    program.run_decompositions().module()(x)


def test_every_operator_that_stands_for_a_function_is_of_a_case():
    x = torch.ones(4)
    held = set().union(*(nodes(exported(Net(fn, "cpu"), x)) for fn in CALLS.values()))
    assert held == recorded_operators()
    assert len(held) > 20


@pytest.mark.parametrize("name", ["heaviside(Clip)", "sign(Custom)", "lsq", "clip_gradient_norm", "subset_ste"])
def test_a_strict_export_and_its_compiled_module_train_too(device, name):
    net, x = Net(CALLS[name], device), torch.tensor([1.5, -0.75], device=device)
    module = exported(net, x, strict=True).module()
    expected = trained(net, x)
    torch.testing.assert_close(trained(module, x), expected)
    torch.testing.assert_close(trained(torch.compile(module, backend="aot_eager", fullgraph=True), x), expected)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in DRAWN and name != "sign(Custom)"])
def test_transforms_of_an_exported_program(device, name):
    net, x = Net(CALLS[name], device), torch.tensor([1.5, -0.75], device=device)
    module = exported(net, x).module()

    def transformed(of):
        def loss(w, x):
            return functional_call(of, {"w": w}, (x,))

        w = net.w.detach()
        batched = vmap(grad(loss), (0, None))(torch.stack([w, w * 0.7]), x)
        return grad(loss)(w, x), batched, jvp(lambda w: loss(w, x), (w,), (torch.cos(w),))

    torch.testing.assert_close(transformed(module), transformed(net))


def test_a_program_decides_where_it_runs_whether_a_scale_learns():
    class Frozen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)

        def forward(self, x):
            return ste_ops.lsq(x, self.scale, -4, 3)

    module = exported(Frozen(), torch.randn(3, 5), dynamic=None).module()
    x = torch.randn(3, 5, requires_grad=True)
    for learns in (False, True):
        module.scale.requires_grad_(learns)
        module(x).sum().backward()
        assert (module.scale.grad is not None) == learns
        assert x.grad is not None
        x.grad = None


class Elementwise(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.fn = CALLS[name]

    def forward(self, x):
        return self.fn(x)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("features", [1, 3, 4, 8])
@pytest.mark.parametrize("name", ["heaviside(Clip)", "fake_quantize", "dorefa_activation", "pact", "lsq"])
def test_a_batch_of_few_features_is_dynamic(name, features, strict):
    dim = ({0: torch.export.Dim("batch", min=2)},)
    program = exported(Elementwise(name), torch.randn(16, features), strict, dim)
    for batch in (2, 3, 9):
        x = torch.randn(batch, features)
        torch.testing.assert_close(program.module()(x), CALLS[name](x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_a_trace_trains_as_its_module_and_can_be_saved(device, name):
    net, x = Net(CALLS[name], device), torch.tensor([1.5, -0.75], device=device)
    traced = torch.jit.trace(net, (x,), check_trace=name not in DRAWN)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    expected = trained(net, x)
    torch.testing.assert_close(trained(traced, x), expected)
    torch.testing.assert_close(trained(torch.jit.load(file), x), expected)


@pytest.mark.parametrize("operator", ["heaviside", "ternary"])
def test_opcheck_of_the_operator_that_stands_for_a_function(operator):
    (_, x, number, a, b, parameters), *_ = curved("cpu", 1)
    call = getattr(torch.ops.ste_ops, f"autograd_{operator}").default
    for requires_grad in (False, True):
        arguments = [x.detach().clone().requires_grad_(requires_grad), number, a, b, 1.0, parameters]
        arguments += [0.1] if operator == "ternary" else []
        torch.library.opcheck(call, tuple(arguments))
