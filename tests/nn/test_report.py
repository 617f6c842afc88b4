"""`summary`: what it says of a model; and what `quantize_` refuses because it came too late."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ste_ops
from ste_ops.nn import LSQ, PACT, SRSTE, BitNetWeight, FakeQuantize, QuantLinear, Sign, XNORWeight, quantize_, summary


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, 4))
        self.conv = OwnConv(1, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(4, 4), PACT(6.0, 4), nn.Linear(4, 4))
        self.table = nn.Embedding(5, 4)
        self.rnn = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.lazy = nn.LazyLinear(2)
        self.last = nn.Linear(4, 2)


def test_every_module_with_weights_is_listed():
    net = quantize_(Net(), LSQ(2, axis=0), ste_ops.sign, filter_fn=lambda layer, name: name != "body.2", skip=["last"])
    rows = {row.name: row for row in summary(net)}
    assert list(rows) == [
        *("", "conv", "norm", "body.0", "body.2", "table", "rnn", "attention", "attention.out_proj", "lazy", "last")
    ]
    row = rows["body.0"]
    assert (row.type, row.weight, row.input) == ("QuantLinear", "LSQ(bits=2, signed=True, axis=0)", "sign")
    assert (row.bits, row.weights, row.reason, row.quantized) == ((2, 1), 16, None, True)
    reasons = {name: row.reason for name, row in rows.items() if not row.quantized}
    assert reasons == {
        "": "what its forward does with place is not known; also={Net: ['place']} takes them",
        "conv": "a forward of its own; also=[OwnConv] takes it",
        "norm": "no matrix of weights",
        "body.2": "filter_fn leaves it",
        "table": "also=[Embedding] takes it",
        "rnn": "torch keeps its last weights in a list that no copy of the model takes; loop over LSTMCell",
        "attention": "also=[MultiheadAttention] takes it",
        "attention.out_proj": "MultiheadAttention reads its weights itself; also=[MultiheadAttention] takes them",
        "lazy": "it has no sizes yet; quantize_ comes after a first batch",
        "last": "skip names 'last'",
    }
    assert {row.name: row.reason for row in summary(copy.deepcopy(net)) if not row.quantized} == reasons
    quantize_(net, Sign(), skip=["body"])
    assert summary(net.last).rows[0].bits == (1, None)
    assert summary(net.last).rows[0].reason is None


def test_a_float_model_has_a_summary_too():
    rows = summary(Net().body).rows
    assert [(row.type, row.bits, row.scale_set, row.reason) for row in rows] == [
        ("Linear", None, None, "no quantizer was given to it")
    ] * 2


def test_the_table_is_aligned_and_counts():
    net = quantize_(Net(), LSQ(2, axis=0), ste_ops.sign, skip=["last"])
    lines = repr(summary(net)).splitlines()
    assert str(summary(net)) == repr(summary(net))
    assert lines[0].split() == ["name", "type", "weight", "input", "bits", "scale", "set", "stayed", "float"]
    starts = [lines[0].index(word) for word in ("type", "weight", "input", "bits", "scale set", "stayed float")]
    table = lines[1 : lines.index("2 of 10 modules have quantized weights, " + lines[-3].split(", ", 1)[1])]
    assert all(line[start - 2 : start] in ("  ", "") for line in table for start in starts)
    assert lines[-3:] == [
        "2 of 10 modules have quantized weights, 11.0% of 292 weights",
        "with vectors alone: 1 BatchNorm1d",
        "quantizers in no layer: 1 PACT",
    ]


def test_it_says_whether_scales_are_set():
    model = quantize_(nn.Sequential(nn.Linear(4, 4)), FakeQuantize(4, scale=0.5), LSQ(8))
    assert summary(model).rows[0].scale_set == (True, False)
    model(torch.randn(2, 4))
    assert summary(model).rows[0].scale_set == (True, True)
    assert summary(quantize_(nn.Linear(2, 2).to("meta"), LSQ(4))).rows[0].scale_set == (None, None)
    assert summary(quantize_(nn.Linear(2, 2), Sign())).rows[0].scale_set == (None, None)


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 3))

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("quantizer", "bits", "words"),
    [
        (XNORWeight(), 1, "XNORWeight()"),
        (BitNetWeight(), math.log2(3), "BitNetWeight()"),
        (ste_ops.sign, 1, "sign"),
        (functools.partial(ste_ops.dorefa_weight, bits=3), 3, "dorefa_weight(bits=3)"),
        (ste_ops.bitnet_activation, 8, "bitnet_activation"),
        (
            functools.partial(ste_ops.fake_quantize, scale=0.5, zero_point=0, quant_min=-8, quant_max=7),
            4,
            "fake_quantize(scale=0.5, zero_point=0, quant_min=-8, quant_max=7)",
        ),
        (SRSTE(2, 4), None, "SRSTE(n=2, m=4, decay=0.0002)"),
        (Mine(), None, "Mine()"),
    ],
)
def test_quantizers_and_their_bits(quantizer, bits, words):
    (row,) = summary(QuantLinear(4, 4, weight_quantizer=quantizer)).rows
    assert (row.bits, row.weight) == ((bits, None), words)
    assert repr(summary(QuantLinear(4, 4, input_quantizer=quantizer))).splitlines()[2].endswith("no quantizer")


def test_what_is_computed_stays_as_it_is():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    before = copy.deepcopy(layer.state_dict())
    assert summary(layer).rows[0].weights == 12
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_bad_models_are_refused():
    with pytest.raises(TypeError, match="summary: model must be a module, got Tensor"):
        summary(torch.zeros(1))


def test_a_model_that_is_wrapped_or_sharded_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 2)))
        words = r"wrapped in DistributedDataParallel, .* quantize_ comes first, then DistributedDataParallel\(model\)"
        for model in (wrapped, nn.Sequential(nn.Identity(), wrapped)):
            with pytest.raises(RuntimeError, match=words):
                quantize_(model, Sign())
        assert [row.name for row in summary(wrapped)] == ["module.0"]
        sharded = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(RuntimeError, match=r"wrapped in FSDPModule, .* then fully_shard\(model\)"):
            quantize_(sharded, Sign())
        with pytest.raises(RuntimeError, match=r"'weight' is sharded \(a DTensor\), .* first, then fully_shard"):
            quantize_(sharded[0], Sign())
        assert type(sharded[0]) is nn.Linear
    finally:
        dist.destroy_process_group()
