"""torch.compile in training, and torch.library.opcheck over every registered operator."""

import pytest
import torch
from support.operator_arguments import ARGUMENTS, WITHOUT_TENSORS
from support.surrogate_table import LAYOUTS, STEPS, assert_same_bits, filler, representatives
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

import ste_ops
from ste_ops import _library, reference
from ste_ops._library import ops
from ste_ops.surrogate import Clip

# Dynamo and AOTAutograd without code generation, where it is the capture that is under test.
CAPTURE = "aot_eager"


class Net(torch.nn.Module):
    """Binary weights and activations, on a transposed and a sliced tensor too."""

    def __init__(self, module, surrogate):
        super().__init__()
        self.module, self.surrogate = module, surrogate
        self.first, self.second = torch.nn.Linear(7, 11), torch.nn.Linear(11, 5)

    def forward(self, x):
        hidden = self.module.sign(self.first(x), self.surrogate)
        hidden = hidden + self.module.heaviside(hidden.t() * 0.3, self.surrogate).t() * x.sum()
        weight = self.module.sign(self.second.weight, self.surrogate)
        return torch.nn.functional.linear(hidden, weight) + self.module.heaviside(hidden[:, ::3], self.surrogate).sum()


def train(device, module, surrogate, transform=lambda net: net):
    torch.manual_seed(0)
    net = Net(module, surrogate).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(9, 7, device=device)
    step, losses = transform(net), []
    for _ in range(3):
        loss = step(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), list(net.parameters())


@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
def test_training_compiles_without_a_graph_break(device, surrogate):
    torch._dynamo.reset()
    torch.manual_seed(0)
    explanation = torch._dynamo.explain(Net(ste_ops, surrogate).to(device))(torch.randn(9, 7, device=device))
    assert explanation.graph_break_count == 0, explanation
    assert explanation.graph_count == 1
    received = train(
        device, ste_ops, surrogate, lambda net: torch.compile(net, fullgraph=True, backend=CAPTURE, dynamic=False)
    )
    torch.testing.assert_close(received, train(device, ste_ops, surrogate))
    torch.testing.assert_close(received, train(device, reference, surrogate))


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_training_through_inductor(device):
    torch._dynamo.reset()
    received = train(device, ste_ops, Clip(0.5), lambda net: torch.compile(net, fullgraph=True))
    torch.testing.assert_close(received, train(device, reference, Clip(0.5)))


def step_of(step, surrogate):
    return lambda x: getattr(ste_ops, step)(x, surrogate)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("step", STEPS)
def test_inductor_keeps_layouts(device, step):
    torch._dynamo.reset()
    surrogate = Clip(1.0)
    for name in ("transposed", "sliced", "channels_last", "expanded_rows", "scalar", "empty"):
        x = LAYOUTS[name](filler(torch.bfloat16, surrogate, device)).requires_grad_()
        y = torch.compile(step_of(step, surrogate), fullgraph=True, dynamic=False)(x)
        eager = step_of(step, surrogate)(x)
        assert_same_bits(y.detach(), eager.detach(), name)
        assert y.stride() == eager.stride(), name
        grad = torch.randn_like(y)
        assert_same_bits(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(eager, x, grad)[0], name)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("negated_view", "overlapping")])
def test_capture_keeps_layouts(layout):
    """The negated view and overlapping memory are left out: Dynamo does not take such an input."""
    torch._dynamo.reset()
    surrogate = Clip(1.0)
    x = LAYOUTS[layout](filler(torch.float32, surrogate, "cpu")).requires_grad_()
    y = torch.compile(step_of("sign", surrogate), fullgraph=True, backend=CAPTURE, dynamic=False)(x)
    eager = ste_ops.sign(x, surrogate)
    assert_same_bits(y.detach(), eager.detach())
    # Of a size of 0 or 1 the stride leads nowhere, and a compiler chooses it.
    assert x.numel() == 0 or torch.equal(y.as_strided(x.shape, eager.stride()), y)
    grad = torch.randn_like(y)
    assert_same_bits(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(eager, x, grad)[0])


@pytest.mark.parametrize("mark", ["dynamic=True", "mark_dynamic"])
@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
def test_dynamic_shapes_compile_once(device, surrogate, mark):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(CAPTURE)

    def loss(x):
        return (ste_ops.sign(x * 1.5, surrogate) * x).t().cos().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True if mark == "dynamic=True" else None)
    graphs = set()
    for rows, columns in ((5, 7), (4, 7), (17, 7), (8, 7), (100, 7)):
        x = torch.randn(rows, columns, device=device)
        if mark == "mark_dynamic":
            torch._dynamo.mark_dynamic(x, 0)
        x.requires_grad_()
        received, expected = compiled(x), loss(x)
        torch.testing.assert_close(received, expected)
        torch.testing.assert_close(torch.autograd.grad(received, x), torch.autograd.grad(expected, x))
        # Not always 1: where dynamic=True makes a parameter symbolic whose value is needed, Dynamo starts over.
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


def test_a_new_surrogate_is_a_new_graph_and_an_equal_one_is_not():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda x, surrogate: ste_ops.sign(x, surrogate), fullgraph=True, backend=counter)
    x = torch.randn(9, requires_grad=True)
    for threshold, graphs in ((1.0, 1), (1.0, 1), (0.25, None)):
        y = compiled(x, Clip(threshold))
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == (x.abs() <= threshold).float().tolist()
        assert graphs is None or counter.frame_count == graphs


def test_compiled_autocast_no_grad_and_double_backward(device):
    torch._dynamo.reset()
    layer = torch.nn.Linear(7, 5).to(device)

    def forward(x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return ste_ops.sign(layer(x))

    x = torch.randn(3, 7, device=device)
    compiled = torch.compile(forward, fullgraph=True, backend=CAPTURE)
    assert compiled(x).dtype == torch.bfloat16
    assert torch.equal(compiled(x), forward(x))
    with torch.no_grad():
        assert torch.equal(compiled(x), forward(x))

    def penalty(x):
        y = (ste_ops.heaviside(x) * x.sin()).sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        return gradient.square().sum()

    z = x.clone().requires_grad_()
    expected = torch.autograd.grad(penalty(z), z)[0]
    received = torch.autograd.grad(torch.compile(penalty, backend="eager")(z), z)[0]
    torch.testing.assert_close(received, expected)


# Registered operators.


def test_every_operator_has_arguments():
    assert set(_library._operator_names("ste_ops")) == set(ARGUMENTS) | WITHOUT_TENSORS


@pytest.mark.parametrize("operator", sorted(ARGUMENTS))
def test_opcheck(device, operator):
    # Of the emulated operators what depends on the kernels; the rest is that of the fake kernels, which they share.
    utilities = {} if ops.namespace == "ste_ops" else {"test_utils": ("test_schema", "test_faketensor")}
    for arguments in ARGUMENTS[operator](device):
        torch.library.opcheck(getattr(ops, operator), arguments, **utilities)


@pytest.mark.parametrize("operator", sorted(ARGUMENTS))
def test_fake_kernels_promise_what_comes(device, operator):
    """Shape, dtype, strides and device of every output; opcheck compares no strides of a size-1 or empty tensor."""
    for arguments in ARGUMENTS[operator](device):
        real = getattr(ops, operator)(*arguments)
        with FakeTensorMode() as mode:
            fakes = tree_map_only(torch.Tensor, mode.from_tensor, arguments)
            promised = getattr(ops, operator)(*fakes)
        for got, fake in zip(tree_leaves(real), tree_leaves(promised), strict=True):
            if isinstance(got, torch.Tensor):
                assert (got.shape, got.dtype, got.stride()) == (fake.shape, fake.dtype, fake.stride())
                assert got.device == fake.device
