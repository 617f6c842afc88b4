"""Compiled code: eager's bits, arithmetic that the compiler sees, and no more kept than plain torch keeps.

Inductor takes seconds for a function, so each holds many calls.
"""

import pytest
import torch
from support.surrogate_table import assert_same_bits
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import ste_ops
from ste_ops.surrogate import ATan, Clip, Identity, Rect

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -0.1, 1e-40, -1e-40, 1.0, -1.0]
SPECIAL += [0.25, -0.25, 0.125, -0.125, 0.6, -0.6, 2.0, -2.0, 1e4, -1e4]
SHAPE = (3, 6, 4, 5)

# Of an x that is no input of the graph, a scale and those of six channels.
LEARNED = {
    "lsq": lambda x, s, c: ste_ops.lsq(x, s, -4, 3),
    "lsq, no negative": lambda x, s, c: ste_ops.lsq(x, s, 0, 15, grad_scale=1.0),
    "lsq, channels": lambda x, s, c: ste_ops.lsq(x, c, -8, 7, axis=1),
    "lsq, held": lambda x, s, c: ste_ops.lsq(x, s.detach(), -4, 3),
    "lsq, too large for the arithmetic": lambda x, s, c: ste_ops.lsq(x, s, 0, 2**24),
    "lsq_plus": lambda x, s, c: ste_ops.lsq_plus(x, s, s - 0.3, -4, 3),
    "lsq_plus, channels": lambda x, s, c: ste_ops.lsq_plus(x, c, 0.5 - c, -4, 3, axis=1),
    "pact": lambda x, s, c: ste_ops.pact(x, s * 4, 3),
}
GIVEN = {
    "fake_quantize": lambda x, c: ste_ops.fake_quantize(x, 0.3, 0, -4, 3),
    "fake_quantize, zero point": lambda x, c: ste_ops.fake_quantize(x, 0.3, 2, -4, 7),
    "fake_quantize, offset": lambda x, c: ste_ops.fake_quantize(x, 0.3, 0.4, -4, 7),
    "fake_quantize, channels": lambda x, c: ste_ops.fake_quantize(x, c, (c * 3).int(), -4, 7, axis=1),
    "fake_quantize, offsets": lambda x, c: ste_ops.fake_quantize(x, c, c * 3, -4, 7, axis=1),
    "dorefa_activation": lambda x, c: ste_ops.dorefa_activation(x, 3),
    "round": lambda x, c: ste_ops.round(x),
    "floor": lambda x, c: ste_ops.floor(x),
    "ceil": lambda x, c: ste_ops.ceil(x),
    "trunc": lambda x, c: ste_ops.trunc(x),
    "clamp": lambda x, c: ste_ops.clamp(x, 0, 1.1),
    "clamp, above": lambda x, c: ste_ops.clamp(x, float("-inf"), 0.1),
    "sign": lambda x, c: ste_ops.sign(x, Clip(0.6)),
    "sign, Rect": lambda x, c: ste_ops.sign(x, Rect(0.7)),
    "sign, Identity": lambda x, c: ste_ops.sign(x, Identity()),
    "heaviside": lambda x, c: ste_ops.heaviside(x),
    "heaviside at 0": lambda x, c: ste_ops.heaviside(x, at_zero=1),
    "heaviside, ATan": lambda x, c: ste_ops.heaviside(x, ATan(), at_zero=1),
    "ternary": lambda x, c: ste_ops.ternary(x, threshold=0.6),
    "bitnet_activation": lambda x, c: ste_ops.bitnet_activation(x),
    "bitnet_weight": lambda x, c: ste_ops.bitnet_weight(x),
    "xnor_weight": lambda x, c: ste_ops.xnor_weight(x),
    "magnitude_aware_sign": lambda x, c: ste_ops.magnitude_aware_sign(x),
    "dorefa_weight": lambda x, c: ste_ops.dorefa_weight(x, 3),
}


def special_values(dtype, layout, device):
    x = 3 * torch.randn(SHAPE, dtype=torch.float64)
    x.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return x.to(device, dtype).to(memory_format=layout)


def leaves_of(dtype, device):
    """Of each call a tensor and, for those that learn, a scale and those of channels, so that no gradients add up."""
    torch.manual_seed(0)
    layouts = torch.contiguous_format, torch.channels_last
    few = dtype in (torch.float64, torch.float16)
    names = [name for name in (*LEARNED, *GIVEN) if not few or name in FEW]
    tensors = {name: special_values(dtype, layouts[i % 2], device) for i, name in enumerate(names)}
    two = torch.tensor([0.5]), torch.tensor([0.2, 0.5, 0.35, 1.0, 0.7, 3.0])
    scales = {name: two for name in names if name in LEARNED}
    return (
        {name: x.requires_grad_() for name, x in tensors.items()},
        {name: [s.to(device).clone().requires_grad_() for s in both] for name, both in scales.items()},
    )


# Of float64 and float16, whose arithmetic is that of the others, these alone: it takes long to compile them all.
FEW = {"lsq", "lsq_plus, channels", "fake_quantize, offset", "sign, Rect", "clamp", "bitnet_activation", "round"}


def every_call(tensors, scales, channels):
    outs = {name: LEARNED[name](-tensors[name], *both) for name, both in scales.items()}
    return outs | {name: GIVEN[name](-x, channels) for name, x in tensors.items() if name in GIVEN}


def values_and_gradients(function, dtype, device):
    tensors, scales = leaves_of(dtype, device)
    channels = torch.tensor([0.2, 0.5, 0.35, 1.0, 0.7, 3.0], device=device)
    outs = function(tensors, scales, channels)
    leaves = [*tensors.values(), *[s for both in scales.values() for s in both]]
    grads = [torch.randn_like(out) for out in outs.values()]
    gradients = torch.autograd.grad(list(outs.values()), leaves, grads, allow_unused=True)
    names = [*tensors, *[f"scale of {name}" for name, both in scales.items() for _ in both]]
    return outs, list(zip(names, gradients, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_values_and_gradients_are_those_of_eager_to_the_last_bit(device, dtype):
    torch._dynamo.reset()
    expected = values_and_gradients(every_call, dtype, device)
    received = values_and_gradients(torch.compile(every_call, fullgraph=True), dtype, device)
    for name, out in expected[0].items():
        assert_same_bits(received[0][name].detach(), out.detach(), name, any_nan=True)
        assert received[0][name].stride() == out.stride(), name
    for (name, got), (_, gradient) in zip(received[1], expected[1], strict=True):
        assert (got is None) == (gradient is None), name
        if gradient is not None:
            assert_same_bits(got, gradient, name, any_nan=True)


class Graphs:
    """Forward and backward as Inductor would get them."""

    def __init__(self, function, *inputs):
        self.programs = []
        keep = aot_autograd(
            fw_compiler=self._keep,
            bw_compiler=self._keep,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        torch._dynamo.reset()
        torch.compile(function, fullgraph=True, backend=keep)(*inputs).sum().backward()

    def _keep(self, program, _inputs):
        self.programs.append(program)
        return program

    @property
    def operators(self):
        targets = {str(node.target) for program in self.programs for node in program.graph.nodes}
        return {name.split(".")[1] for name in targets if name.startswith("ste_ops.")}

    @property
    def saved_bytes(self):
        """Of what the forward makes for the backward; other names of its inputs are no memory of their own."""
        nodes = {node for node in self.programs[0].graph.output_node().args[0][1:] if node is not None}
        made = [node for node in nodes if node.op != "placeholder" and node.target is not torch.ops.aten.alias.default]
        return sum(node.meta["val"].nbytes for node in made if isinstance(node.meta["val"], torch.Tensor))


def inputs():
    torch.manual_seed(0)
    x, w = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3)
    return x.requires_grad_(), w.requires_grad_(), torch.tensor([0.5]).requires_grad_()


def of_ours(activation, weight):
    return lambda x, w, s: torch.conv2d(activation(torch.relu(x * 2).sin(), s), weight(w, s)).relu()


def plain_lsq(x, s, low, high):
    v = (x / s).clamp(low, high)
    return ((v.round() - v).detach() + v) * s


def plain_sign(x, s):
    passes = x.clamp(-1, 1)
    return (torch.where(x >= 0, 1.0, -1.0) - passes).detach() + passes


@pytest.mark.parametrize(
    ("ours", "plain", "native"),
    [
        (
            of_ours(lambda x, s: ste_ops.lsq(x, s, 0, 15), lambda w, s: ste_ops.lsq(w, s, -8, 7)),
            of_ours(lambda x, s: plain_lsq(x, s, 0, 15), lambda w, s: plain_lsq(w, s, -8, 7)),
            {"checked_steps", "lsq_backward_of_scale", "lsq_backward"},  # the last of the parameter
        ),
        (
            of_ours(lambda x, s: ste_ops.sign(x), lambda w, s: ste_ops.sign(w)),
            of_ours(plain_sign, plain_sign),
            set(),
        ),
        (
            of_ours(lambda x, s: ste_ops.bitnet_activation(x), lambda w, s: ste_ops.bitnet_weight(w)),
            of_ours(lambda x, s: plain_sign(x, s) + x, plain_sign),  # BitNet in plain torch keeps as much
            {"mean_magnitude"},
        ),
    ],
    ids=["lsq", "sign", "bitnet"],
)
def test_the_compiler_sees_arithmetic_and_keeps_no_more_than_of_plain_torch(ours, plain, native):
    graphs = Graphs(ours, *inputs())
    assert graphs.operators == native
    assert graphs.saved_bytes <= Graphs(plain, *inputs()).saved_bytes


class Strides(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.ste_ops.lsq_backward_of_scale.default:
            self.seen.append([tensor.stride() for tensor in args[:2]])
        return func(*args, **(kwargs or {}))


def test_no_layout_is_copied_for_the_gradient_of_a_scale():
    """Inductor makes convolutions channels_last, whatever they are in eager mode."""
    x, w, s = inputs()

    def net(x, w, s):
        y = torch.conv2d(x, w, padding=1)
        return torch.conv2d(ste_ops.lsq((y * 2).relu(), s, 0, 15), w)

    torch._dynamo.reset()
    out = torch.compile(net, fullgraph=True)(x, w, s)
    with Strides() as strides:
        out.sum().backward()
    assert strides.seen == [[(2048, 1, 128, 8)] * 2]


def test_compiled_code_refuses_a_scale_that_is_not_valid():
    x = torch.ones(3)
    compiled = torch.compile(lambda x, s: ste_ops.lsq(x, s, -4, 3), fullgraph=True)
    with pytest.raises(RuntimeError, match=r"lsq: scale must be positive and finite.*got -1"):
        compiled(x, torch.tensor(-1.0))


TRANSFORMED = {
    "lsq": lambda x, s: ste_ops.lsq(x, s, -4, 3),
    "fake_quantize": lambda x, s: ste_ops.fake_quantize(x, s.detach(), 1, -4, 7),
    "dorefa_activation": lambda x, s: ste_ops.dorefa_activation(x * s, 2),
    "sign": lambda x, s: ste_ops.sign(x * s, Rect(0.6)),
    "ternary": lambda x, s: ste_ops.ternary(x * s),
    "bitnet_activation": lambda x, s: ste_ops.bitnet_activation(x * s),
}


def test_transforms_and_second_orders_within_compiled_code():
    def loss(call, x, s):
        return (call(x, s) * x.sin()).sum()

    def each(x, s):
        outs = {}
        for name, call in TRANSFORMED.items():
            gradient = grad(lambda x, s, call=call: loss(call, x, s), (0, 1))
            outs[name] = gradient(x[0], s[0]), vmap(gradient)(x, s), vmap(gradient, (0, None))(x, s[0])
            penalty = grad(lambda x, s, f=gradient: f(x, s)[0].square().sum())
            outs[name] += (penalty(x[0], s[0]),)
        return outs

    torch._dynamo.reset()
    torch.manual_seed(0)
    x, s = torch.randn(3, 4, 5), torch.rand(3) + 0.3
    torch.testing.assert_close(torch.compile(each, fullgraph=True, backend="aot_eager")(x, s), each(x, s))
