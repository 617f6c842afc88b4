"""`quantize_(also=)`: modules whose forward is their own, by parametrized weights and a hook on the inputs."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ste_ops
from ste_ops.nn import LSQ, FakeQuantize, QuantLinear, Sign, XNORWeight, quantize_, summary


class SamePadConv(nn.Conv2d):
    """As timm's `Conv2dSame`: pads by the input's size."""

    def forward(self, x):
        rows, columns = (max((-n) % s, 0) + 1 for n, s in zip(x.shape[-2:], self.stride, strict=True))
        x = F.pad(x, (columns, 1, rows, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Conv1D(nn.Module):
    """As that of Hugging Face's GPT-2: a linear layer whose weight is transposed."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(6, 4))

    def forward(self, hidden):
        return hidden @ self.gate


def attention(**options):
    return nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.0, **options)


TOKENS = torch.tensor([[1, 2, 0], [3, 3, 1]])
X = torch.randn(2, 3, 8)
KEYS = torch.randn(2, 5, 6)
MODULES = {
    "SamePadConv": (lambda: SamePadConv(2, 4, 3, stride=2), (torch.randn(2, 2, 7, 7),), ["weight"], [0]),
    "Conv1D": (lambda: Conv1D(4, 6), (torch.randn(2, 3, 6),), ["weight"], [0]),
    "Router": (Router, (torch.randn(5, 6),), ["gate"], [0]),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 3), (torch.randn(2, 3, 5),), ["weight"], [0]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (torch.randn(2, 3, 4, 4),), ["weight"], [0]),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 2, 2), (torch.randn(1, 2, 3, 3, 3),), ["weight"], [0]),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 2), (torch.randn(5, 3), torch.randn(5, 4)), ["weight"], [0, 1]),
    "Embedding": (lambda: nn.Embedding(4, 6, padding_idx=0), (TOKENS,), ["weight"], []),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(4, 6), (TOKENS,), ["weight"], []),
    "RNNCell": (lambda: nn.RNNCell(3, 4), (torch.randn(2, 3),), ["weight_ih", "weight_hh"], [0]),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), (torch.randn(2, 3),), ["weight_ih", "weight_hh"], [0]),
    "GRUCell": (lambda: nn.GRUCell(3, 4), (torch.randn(2, 3),), ["weight_ih", "weight_hh"], [0]),
    "attention": (attention, (X, X, X), ["in_proj_weight", "out_proj.weight"], [0, 1, 2]),
    "cross_attention": (
        lambda: attention(kdim=6, vdim=6),
        (X, KEYS, KEYS),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        [0, 1, 2],
    ),
}


def first(out):
    return out[0] if isinstance(out, tuple) else out


def quantized(name, weight, input):
    torch.manual_seed(0)
    layer = MODULES[name][0]()
    also = {Router: ["gate"]} if name == "Router" else [type(layer)]
    return quantize_(nn.Sequential(layer), weight, input, also=also)[0]


@pytest.mark.parametrize("name", MODULES)
def test_it_computes_on_quantized_weights_and_inputs(name):
    make, args, weights, inputs = MODULES[name]
    layer = quantized(name, Sign(), FakeQuantize(8, scale=0.25))
    torch.manual_seed(0)
    plain = make()
    parameters = dict(plain.named_parameters())
    with torch.no_grad():
        for key in weights:
            parameters[key].copy_(ste_ops.sign(parameters[key]))
    given = [ste_ops.fake_quantize(x, 0.25, 0, -128, 127) if i in inputs else x for i, x in enumerate(args)]
    given = [given[0] if x is args[0] else value for x, value in zip(args, given, strict=True)]
    for training in (True, False):
        layer.train(training)
        plain.train(training)
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(first(layer(*args)), first(plain(*given)))
    assert type(layer).__name__ == f"Parametrized{type(plain).__name__}"
    row = summary(layer).rows[0]
    assert (row.weight, row.bits) == ("Sign(Clip(threshold=1.0))", (1, 8 if inputs else None))
    assert row.scale_set == (None, True if inputs else None)


@pytest.mark.parametrize("name", MODULES)
def test_it_trains_compiles_and_is_copied(name):
    torch._dynamo.reset()
    args = MODULES[name][1]
    layer = quantized(name, LSQ(3), LSQ(8))
    layer(*args)
    layer.train()
    copied = copy.deepcopy(layer)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    for model, call in ((layer, layer), (copied, compiled)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        first(call(*args)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad and p.dim() > 1)
        optimizer.step()
    torch.testing.assert_close(layer.state_dict(), copied.state_dict())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = quantized(name, LSQ(3), LSQ(8))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(other(*args)), first(layer(*args)))
    assert len(list(layer.parameters())) == len(list(MODULES[name][0]().parameters())) + len(
        [key for key in layer.state_dict() if key.endswith("scale")]
    )


@pytest.mark.parametrize("name", MODULES)
def test_the_state_of_a_float_model_loads(name):
    make, _, weights, _ = MODULES[name]
    plain, layer = make(), quantized(name, Sign(), None)
    layer.load_state_dict(plain.state_dict())
    for key in weights:
        owner, _, own = key.rpartition(".")
        held = layer.get_submodule(owner).parametrizations[own].original
        assert torch.equal(held, plain.get_parameter(key))


def test_parameters_stay_the_same_objects():
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantize_(model, XNORWeight(), also=[nn.Embedding])
    assert embedding.parametrizations.weight.original is head.weight
    before = head.weight.detach().clone()
    model(TOKENS).square().sum().backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)


def test_arguments_by_name_and_hooks_before():
    layer = quantized("attention", Sign(), FakeQuantize(4, scale=0.5))
    seen = []
    layer.out_proj.register_forward_pre_hook(lambda *_: seen.append(1))
    assert torch.equal(layer(value=X, query=X, key=X)[0], layer(X, X, X)[0])
    assert seen == []  # torch never calls it, so a quantizer of its input would be lost


def test_quantizers_of_input_are_shown_and_may_be_functions():
    layer = quantized("Conv1D", ste_ops.sign, ste_ops.sign)
    assert "quantizer=sign" in repr(layer)
    assert (summary(layer).rows[0].weight, summary(layer).rows[0].input) == ("sign", "sign")
    assert copy.deepcopy(layer)(torch.randn(2, 6)).unique().numel() <= 7


class Named(nn.Linear):
    """A subclass that only adds to torch's."""

    def __init__(self, *args, label="x", **kwargs):
        super().__init__(*args, **kwargs)
        self.label = label

    def extra_repr(self):
        return f"{super().extra_repr()}, label={self.label}"


def test_a_subclass_without_a_forward_of_its_own_is_quantized_as_its_class():
    model = nn.Sequential(Named(4, 3, label="a"), nn.Linear(3, 2))
    weight = model[0].weight
    quantize_(model, LSQ(4, axis=0), ste_ops.heaviside)
    assert isinstance(model[0], QuantLinear)
    assert isinstance(model[0], Named)
    assert type(model[0]).__name__ == "QuantNamed"
    assert "label=a" in repr(model[0])
    assert model[0].weight is weight
    x = torch.randn(5, 4)
    expected = F.linear(ste_ops.heaviside(x), model[0].quantized_weight(), model[0].bias)
    assert torch.equal(model[0](x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(other[0]) is type(model[0])
        assert torch.equal(other(x), model(x))
    assert type(QuantLinear.from_float(Named(2, 2), Sign())) is type(model[0])


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_also_does_not_name_is_left():
    model = nn.Sequential(OwnLinear(2, 2), nn.Linear(2, 2), attention())
    quantize_(model, Sign())
    assert [type(m) for m in model] == [OwnLinear, QuantLinear, nn.MultiheadAttention]
    quantize_(model, Sign(), also=[nn.Linear], skip=["1"])  # its subclasses too; not what attention reads itself
    assert type(model[0]).__name__ == "ParametrizedOwnLinear"
    assert type(model[2].out_proj) is type(attention().out_proj)
    with pytest.raises(ValueError, match=r"'0' is quantized already \(ParametrizedOwnLinear\)"):
        quantize_(model, Sign(), also=[OwnLinear], skip=["1"])


def test_a_weight_of_attention_may_be_skipped():
    model = nn.Sequential(attention())
    quantize_(model, Sign(), also=[nn.MultiheadAttention], skip=["0.out_proj"])
    assert [row.bits for row in summary(model)] == [(1, None), None]
    assert summary(model).rows[1].reason == "skip names '0.out_proj'"


def test_torchs_fused_encoder_runs_the_hooks():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    quantize_(encoder, Sign(), FakeQuantize(2, scale=0.5), also=[nn.MultiheadAttention], skip=["linear1", "linear2"])
    with torch.no_grad():
        fused = encoder(X)
    torch.testing.assert_close(fused, encoder(X).detach())


@pytest.mark.parametrize(
    ("layer", "also", "error", "words"),
    [
        (nn.LSTM(2, 2), [nn.LSTM], ValueError, r"'0' \(LSTM\), which also names, stays float: .* loop over LSTMCell"),
        (nn.LazyLinear(2), [nn.Linear], ValueError, "it has no sizes yet"),
        (nn.GRU(2, 2), [nn.RNNBase], ValueError, r"loop over GRUCell"),
        (nn.Embedding(2, 2, sparse=True), [nn.Embedding], ValueError, "gradient is sparse"),
        (nn.Embedding(2, 2, max_norm=1.0), [nn.Embedding], ValueError, "max_norm writes into the weight"),
        (
            Router(),
            [Router],
            ValueError,
            r"which parameters of '0' are its weights, as also={Router: \['gate'",
        ),
        (Router(), {Router: ["gaet"]}, ValueError, r"got \['gaet'\]"),
        (Router(), Router, TypeError, "also must be a collection of classes of modules, got <class"),
        (Router(), ["Router"], TypeError, r"also must be a collection of classes of modules, got \['Router'\]"),
    ],
)
def test_what_cannot_be_quantized_is_refused(layer, also, error, words):
    model = nn.Sequential(layer, nn.Linear(2, 2))
    with pytest.raises(error, match=words):
        quantize_(model, Sign(), also=also)
    assert type(model[1]) is nn.Linear


def test_an_lstm_whose_weights_were_parametrized_could_not_be_copied():
    """The reason that `refusal` gives: where torch mends it, LSTM can be taken."""
    lstm = nn.LSTM(2, 2)
    torch.nn.utils.parametrize.register_parametrization(lstm, "weight_ih_l0", Sign())
    lstm(torch.randn(3, 2))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(lstm)
