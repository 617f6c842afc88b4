"""Models for tests/export: every quantizer on one input, and numbers that tell roundings apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ste_ops
from ste_ops import surrogate as s
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    BitNetActivation,
    BitNetWeight,
    ClipGradientNorm,
    ClipGradientValue,
    DoReFaActivation,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    LSQPlus,
    MagnitudeAwareSign,
    Sign,
    StochasticRound,
    Ternary,
    XNORWeight,
)

WIDTH = 8
STEPS = [0.1 * i for i in range(1, WIDTH + 1)]

Quantize = Callable[[Tensor], Tensor]


def uniform() -> dict[str, Quantize]:
    """Those of which QuantizeLinear and DequantizeLinear can be made, and what of them cannot."""
    return {
        "FakeQuantize": FakeQuantize(8, scale=0.1),
        "FakeQuantize, 3 bits": FakeQuantize(3, scale=0.3),
        "FakeQuantize, 12 bits": FakeQuantize(12, scale=0.01),
        "FakeQuantize, 20 bits": FakeQuantize(20, scale=0.01),
        "FakeQuantize, zero point": FakeQuantize(8, signed=False, scale=0.1, zero_point=3),
        "FakeQuantize, 3 bits, zero point": FakeQuantize(3, signed=False, scale=0.3, zero_point=2),
        "FakeQuantize, axis": FakeQuantize(4, axis=1, channels=WIDTH, scale=STEPS),
        "FakeQuantize, axis, zero points": FakeQuantize(
            4, signed=False, axis=-1, channels=WIDTH, scale=STEPS, zero_point=list(range(WIDTH))
        ),
        "fake_quantize, numbers": partial(
            ste_ops.fake_quantize, scale=0.25, zero_point=1, quant_min=-8, quant_max=7, axis=None
        ),
        "fake_quantize, between": partial(
            ste_ops.fake_quantize, scale=0.3, zero_point=0.4, quant_min=-8, quant_max=7, axis=None
        ),
        "LSQ": LSQ(4, scale=0.3),
        "LSQ, unsigned": LSQ(8, signed=False, scale=0.05),
        "LSQ, axis": LSQ(2, axis=1, channels=WIDTH, scale=STEPS),
        "LSQPlus": LSQPlus(4, scale=0.3, offset=0.1),
        "LSQPlus, axis": LSQPlus(4, axis=1, channels=WIDTH, scale=0.3, offset=STEPS),
        "PACT": PACT(2.0, 3),
        "PACT, 8 bits": PACT(2.0, 8),
        "DoReFaActivation": DoReFaActivation(4),
    }


def others() -> dict[str, Quantize]:
    return {
        "Sign": Sign(),
        "Sign, curve": Sign(s.ApproxSign()),
        "Sign, learned": Sign(s.ATan(nn.Parameter(torch.tensor(2.0)))),
        "Sign, custom": Sign(s.Custom(lambda x: 1 / (1 + x * x))),
        "Heaviside": Heaviside(),
        "Heaviside, from zero": Heaviside(at_zero=1),
        "Ternary": Ternary(threshold=0.5),
        "ternary, tensor": partial(ste_ops.ternary, threshold=torch.tensor(0.5)),
        "StochasticRound": StochasticRound(),
        "floor": ste_ops.floor,
        "ceil": ste_ops.ceil,
        "trunc": ste_ops.trunc,
        "clamp": partial(ste_ops.clamp, min=-0.3, max=1.1),
        "clamp, one bound": partial(ste_ops.clamp, min=-0.3, max=torch.inf),
        "clamp, zero": partial(ste_ops.clamp, min=0.0, max=6.0),
        "BitNetActivation": BitNetActivation(),
        "SRSTE": SRSTE(),
        "SRSTE, 1 of 2": SRSTE(1, 2),
        "ClipGradientValue": ClipGradientValue(1.0),
        "ClipGradientNorm": ClipGradientNorm(1.0),
    }


def of_statistics() -> dict[str, Quantize]:
    """Those whose scale is a sum over everything, or that take a tanh: a runtime rounds these otherwise."""
    return {
        "XNORWeight": XNORWeight(),
        "MagnitudeAwareSign": MagnitudeAwareSign(),
        "MagnitudeAwareSign, curve": MagnitudeAwareSign(s.ApproxSign()),
        "BitNetWeight": BitNetWeight(),
        "DoReFaWeight, 1 bit": DoReFaWeight(1),
        "DoReFaWeight": DoReFaWeight(4),
    }


class Each(nn.Module):
    """What each of the quantizers makes of one input."""

    def __init__(self, quantizers: dict[str, Quantize]) -> None:
        super().__init__()
        self.quantizers = list(quantizers.values())
        self.held = nn.ModuleList([q for q in self.quantizers if isinstance(q, nn.Module)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(quantize(x) for quantize in self.quantizers)


def telling(dtype: torch.dtype) -> Tensor:
    """Random numbers, ties of the steps above and their neighbours, zeros, infinities, NaN, tiny and huge."""
    ties = torch.cat([torch.arange(-100, 100) / 2 * step for step in (*STEPS, 0.25, 0.05, 2 / 7, 1 / 15)])
    special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40, -1e-40, 1e30, -1e30, 0.5, -0.5, 1.0])
    numbers = torch.cat([torch.randn(1000) * 3, ties, ties.nextafter(torch.tensor(9.0)), special]).to(dtype)
    return numbers[: numbers.numel() // WIDTH * WIDTH].reshape(-1, WIDTH)


def run(program: Any, *inputs: Tensor) -> list[Tensor]:
    """The file in onnxruntime, whatever its dtypes."""
    import onnxruntime as rt

    options = rt.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = program if isinstance(program, str) else program.model_proto.SerializeToString()
    session = rt.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    values = [rt.OrtValue.from_dlpack(x.detach().contiguous()) for x in inputs]
    outputs = session.run_with_ort_values(None, dict(zip(names, values, strict=True)))
    return [torch.from_dlpack(out) for out in outputs]
