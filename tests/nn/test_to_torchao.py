"""Quantized weights as tensors of torchao: the same integers, and of them the same weights."""

from __future__ import annotations

import copy
import sys
import types
import warnings
from functools import partial

import pytest
import torch
from support import packed_nets
from torch import nn

import ste_ops
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    BitNetWeight,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    LSQPlus,
    QuantConv1d,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    Sign,
    Ternary,
    XNORWeight,
    fold_batch_norm_,
    folded,
    pack_,
    quantize_,
    recompute_,
    summary,
    to_torchao_,
)

INTX, INT8 = "IntxUnpackedToInt8Tensor", "Int8Tensor"


@pytest.fixture
def torchao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.quantization", reason="torchao is not installed", exc_type=ImportError)


# The quantizer, the bits of its integers, and the block that shares a scale of linear weights (6, 32).
QUANTIZERS = {
    "LSQ": (lambda: LSQ(8), 8, (6, 32)),
    "LSQ, 4 bits, axis": (lambda: LSQ(4, axis=0), 4, (1, 32)),
    "LSQ, 3 bits, axis 1": (lambda: LSQ(3, axis=1), 3, (6, 1)),
    "LSQ, groups": (lambda: LSQ(4, group_size=8), 4, (1, 8)),
    "FakeQuantize, zero points": (lambda: FakeQuantize(8, signed=False, axis=0), 8, (1, 32)),
    "FakeQuantize, 4 bits, zero point": (lambda: FakeQuantize(4, signed=False), 4, (6, 32)),
    "FakeQuantize, groups, zero points": (lambda: FakeQuantize(4, signed=False, group_size=16), 4, (1, 16)),
    "PACT": (lambda: PACT(2.0, 4), 4, (6, 32)),
    "Sign": (Sign, 2, (6, 32)),
    "Heaviside": (Heaviside, 1, (6, 32)),
    "Ternary": (Ternary, 2, (6, 32)),
    "XNORWeight": (XNORWeight, 2, (1, 32)),
    "BitNetWeight": (BitNetWeight, 2, (6, 32)),
    "DoReFaWeight, 1 bit": (lambda: DoReFaWeight(1), 2, (6, 32)),
}
WITH_ZERO_POINTS = {name for name in QUANTIZERS if "zero point" in name}
LINEAR = {name for name in QUANTIZERS if name != "LSQ, 3 bits, axis 1"} - WITH_ZERO_POINTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_tensor_makes_the_weights_of_the_layer(name, dtype, torchao):
    make, bits, block = QUANTIZERS[name]
    for layer, x in (
        (QuantLinear(32, 6, weight_quantizer=make(), dtype=dtype), torch.randn(3, 32, dtype=dtype)),
        (QuantConv2d(8, 6, 2, weight_quantizer=make(), dtype=dtype), torch.randn(2, 8, 5, 5, dtype=dtype)),
    ):
        expected, codes = layer.eval()(x), layer.weight_codes()
        packed = pack_(copy.deepcopy(layer))
        for given in (layer, packed):
            bias = given.bias
            assert to_torchao_(given) is given
            assert type(given) in (nn.Linear, nn.Conv2d)
            assert given.bias is bias
            weight = given.weight
            assert type(weight) is torchao.IntxUnpackedToInt8Tensor
            assert weight.dtype == dtype
            assert torch.equal(weight.dequantize(), codes.dequantize())
            assert torch.equal(given(x), expected)
            assert weight.target_dtype == getattr(torch, f"int{bits}")
            assert int(weight.qdata.min()) >= -(2 ** (bits - 1))
            assert int(weight.qdata.max()) < 2 ** (bits - 1)
            if weight.dim() == 2:
                assert tuple(weight.block_size) == block
            assert list(given.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_tensor_of_eight_bits(name, torchao):
    layer, x = QuantLinear(32, 6, weight_quantizer=QUANTIZERS[name][0]()).eval(), torch.randn(3, 32)
    expected, codes = layer(x), layer.weight_codes()
    if name not in LINEAR:
        with pytest.raises(ValueError, match="zero points must be 0" if name in WITH_ZERO_POINTS else "of columns"):
            to_torchao_(layer, tensor=INT8)
        assert torch.equal(layer(x), expected)
        return
    for given in (copy.deepcopy(layer), pack_(layer)):
        to_torchao_(given, tensor=INT8)
        assert type(given.weight) is torchao.Int8Tensor
        assert torch.equal(given.weight.dequantize(), codes.dequantize())
        torch.testing.assert_close(given(x), expected, rtol=1e-5, atol=1e-6)


def test_float16_sums_of_integers_pass_the_largest_float16(torchao):
    """The reason why they are refused, and what is taken in their place."""
    ones = torchao.Int8Tensor(
        torch.full((2, 1024), 127, dtype=torch.int8), torch.full((2, 1), 1e-3), [1, 1024], torch.half
    )
    assert nn.functional.linear(torch.ones(1, 1024).half(), ones).isinf().all()
    with pytest.raises(ValueError, match=r"pass the largest float16.*got float16; Intx"):
        to_torchao_(linear(LSQ(8), dtype=torch.float16), tensor=INT8)
    for layer in (linear(LSQ(8, group_size=8), dtype=torch.float16), linear(LSQ(8), dtype=torch.bfloat16)):
        assert type(to_torchao_(layer, tensor=INT8).weight) is torchao.Int8Tensor


def test_a_net_of_the_tensors_is_recomputed_and_folded(torchao):
    layers = [linear(LSQ(4)), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 9), nn.BatchNorm1d(9)]
    model, x = to_torchao_(nn.Sequential(*layers)), torch.randn(4096, 32)
    expected = copy.deepcopy(model)(x)
    assert torch.equal(recompute_(model, x)(x), expected)
    model.eval()
    expected = model(x)
    torch.testing.assert_close(fold_batch_norm_(model, x)(x), expected)
    assert type(model[4]) is nn.Identity
    assert "of IntxUnpackedToInt8Tensor, and not of floats" in str(folded(model))


def test_torchao_itself_leaves_zero_points_out_of_its_product_of_eight_bits(torchao):
    """The reason why they are refused."""
    q, one = torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1)
    weight = torchao.Int8Tensor(q, one, [1, 4], torch.float32, zero_point=one.to(torch.int8))
    assert not weight.dequantize().any()
    assert (nn.functional.linear(torch.ones(1, 4), weight) == 4).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", packed_nets.NETS)
def test_nets_keep_input_quantizers_and_folded_norms(name, packed, tmp_path, torchao):
    model, x = packed_nets.trained(name), packed_nets.images()
    fold_batch_norm_(model, x)
    if packed:
        pack_(model)
    expected = model(x)
    to_torchao_(model)
    # A factor and signs: the trained layer multiplies the exact integer by the factor, torch every weight.
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    kept = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    assert kept
    assert all(layer.weight_quantizer is None for layer in kept)
    told = {row.name: row for row in summary(model)}
    assert all(told[n].weight == INTX and told[n].reason is None for n, layer in model.named_modules() if layer in kept)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    other = to_torchao_(fold_batch_norm_(packed_nets.trained(name), x))
    for layer in other.modules():
        if isinstance(layer, QuantLayer) and layer.bias is not None:
            layer.bias.data.zero_()
    other.load_state_dict(torch.load(tmp_path / "net.pt"), assign=True)
    assert torch.equal(other(x), model(x))


def test_a_program_of_the_tensors_takes_any_batch(torchao):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    quantize_(model, FakeQuantize(8, axis=0, signed=False), LSQ(8, signed=False), skip=["0"])
    x = torch.randn(4, 1, 8, 8)
    model(x)
    to_torchao_(model.eval())
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for batch in (1, 9):
        x = torch.randn(batch, 1, 8, 8)
        assert torch.equal(program(x), model(x))


# Groups of a convolution's weights (8, 4, 3, 3), in row-major order.
@pytest.mark.parametrize(("group_size", "block"), [(18, (1, 2, 3, 3)), (9, (1, 1, 3, 3)), (3, (1, 1, 1, 3)), (1, None)])
def test_a_group_of_a_convolution_is_a_block(group_size, block, torchao):
    layer = QuantConv2d(4, 8, 3, weight_quantizer=LSQ(4, group_size=group_size)).eval()
    expected = layer.weight_codes().dequantize()
    to_torchao_(layer)
    assert tuple(layer.weight.block_size) == (block or (1, 1, 1, 1))
    assert torch.equal(layer.weight.dequantize(), expected)


def between(**options):
    """A zero point that is no integer."""
    quantizer = partial(ste_ops.fake_quantize, scale=0.02, zero_point=0.3, quant_min=-8, quant_max=7)
    return linear(quantizer, **options)


def test_a_zero_point_between_integers(torchao):
    layer = between()
    expected = layer.weight_codes().dequantize()
    assert torch.equal(to_torchao_(layer).weight.dequantize(), expected)
    assert layer.weight.zero_point.dtype == torch.float32
    # torchao rounds it to the dtype of the weights before it is taken off.
    with pytest.raises(ValueError, match="torchao makes other numbers of its integers"):
        to_torchao_(between(dtype=torch.bfloat16))


def linear(quantizer, **options):
    return QuantLinear(32, 6, weight_quantizer=quantizer, **options)


REFUSED = {
    "quotients": (lambda: linear(DoReFaWeight(3)), INTX, TypeError, "'1': .* quotients by 7"),
    "offset": (lambda: linear(LSQPlus(4)), INTX, TypeError, "'1': .* an offset beside the scale"),
    "no integers": (lambda: linear(SRSTE()), INTX, TypeError, "integers times a scale, got SRSTE"),
    "bits": (lambda: linear(LSQ(12)), INTX, ValueError, "'1': weights must have 8 bits at most, got 12"),
    "group": (
        lambda: QuantConv2d(4, 6, 3, weight_quantizer=LSQ(4, group_size=6)),
        INTX,
        TypeError,
        "a group of 6 is",
    ),
    "float64": (lambda: linear(LSQ(4), dtype=torch.float64), INTX, ValueError, "for torchao, got torch.float64"),
    "empty": (lambda: QuantLinear(32, 0, weight_quantizer=Sign()), INTX, ValueError, r"shape \(0, 32\)"),
    "Conv1d": (
        lambda: QuantConv1d(2, 2, 3, weight_quantizer=Sign()),
        INTX,
        ValueError,
        "Linear and Conv2d, got",
    ),
    "Conv2d": (
        lambda: QuantConv2d(2, 2, 3, weight_quantizer=Sign()),
        INT8,
        ValueError,
        "packed Linear, got",
    ),
    "attached": (
        lambda: quantize_(nn.Bilinear(2, 2, 2), Sign(), also=[nn.Bilinear]),
        INTX,
        ValueError,
        "got Bilinear, which skip leaves",
    ),
    "computed": (
        lambda: nn.utils.parametrizations.orthogonal(linear(Sign())),
        INTX,
        ValueError,
        "the weight must be a Parameter, got one that is computed",
    ),
    "unset": (lambda: QuantLinear(4, 4, input_quantizer=Sign()), INTX, ValueError, "got none"),
    "no such tensor": (lambda: linear(Sign()), "Int4Tensor", ValueError, "one of 'IntxUnpackedToInt8Tensor', 'Int8Te"),
    "meta": (lambda: linear(Sign(), device="meta"), INTX, ValueError, "got tensors on the meta device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_handed_over_is_refused_and_nothing_changes(name, torchao):
    make, tensor, error, message = REFUSED[name]
    first = linear(LSQ(4)) if name != "unset" else nn.ReLU()
    model = nn.Sequential(first, make())
    with pytest.raises(error, match=message):
        to_torchao_(model, tensor=tensor)
    assert type(first) in (QuantLinear, nn.ReLU)
    if name not in ("unset", "no such tensor"):
        to_torchao_(model, skip=["1"], tensor=tensor)
        assert type(first) is nn.Linear
        with pytest.raises(ValueError, match="skip leaves, got none|" + message):
            to_torchao_(model, skip=["0", "1"], tensor=tensor)


def test_a_weight_of_two_modules_is_refused(torchao):
    model = nn.Sequential(linear(LSQ(4)), nn.Linear(32, 6))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="the weight of '0' must be its own"):
        to_torchao_(model)
    assert model[1].weight is model[0].weight


def test_without_torchao(monkeypatch):
    layer = linear(Sign())
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"to_torchao_: torchao must be installed \(pip install torchao\)"):
        to_torchao_(layer)
    old = types.ModuleType("torchao")
    old.__version__ = "0.1.0"
    monkeypatch.setitem(sys.modules, "torchao", old)
    monkeypatch.setitem(sys.modules, "torchao.quantization", types.ModuleType("torchao.quantization"))
    old.quantization = sys.modules["torchao.quantization"]
    with pytest.raises(ImportError, match=r"must have IntxUnpackedToInt8Tensor, as 0\.18 has, got torchao 0\.1\.0"):
        to_torchao_(layer)
    assert ste_ops.nn.QuantLinear is type(layer)
