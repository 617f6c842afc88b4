"""Every quantizer as an ONNX file in onnxruntime, of activations: the bits of eager mode."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from support import onnx_cases as cases
from support.surrogate_table import assert_same_bits
from torch import Tensor

import ste_ops

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXACT = {**cases.uniform(), **cases.others()}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@functools.cache
def computed(dtype: torch.dtype, kind: str, qdq: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each quantizer what eager mode and onnxruntime make of other rows than those that the export saw."""
    quantizers = {"exact": EXACT, "uniform": cases.uniform(), "statistics": cases.of_statistics()}[kind]
    model, x = cases.Each(quantizers).eval(), cases.telling(dtype)
    if kind == "statistics":
        x = torch.randn(40, cases.WIDTH).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = ste_ops.onnx.export(model, (x[:4],), dynamic_batch=True, qdq=qdq)
    found = zip(model(x), cases.run(program, x), strict=True)
    return dict(zip(quantizers, found, strict=True))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_quantizer_has_the_bits_of_eager_mode(name, dtype):
    eager, exported = computed(dtype, "exact")[name]
    assert_same_bits(exported, eager.detach(), any_nan=True)


@pytest.mark.parametrize("name", cases.of_statistics())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_statistic_is_that_of_eager_mode_but_for_rounding(name, dtype):
    """Means are summed in float64 in another order; a tanh that is rounded otherwise may shift a weight by a step."""
    eager, exported = (y.double() for y in computed(dtype, "statistics")[name])
    shifted = (exported - eager).abs() > 4 * torch.finfo(dtype).eps * eager.abs()
    assert shifted.double().mean() < (0.01 if name == "DoReFaWeight" else 1e-9)


@pytest.mark.parametrize("name", cases.uniform())
def test_quantize_linear_is_a_step_away_at_ties_alone(name):
    eager, exported = (y.detach() for y in computed(torch.float32, "uniform", qdq=True)[name])
    known = ~eager.isnan()  # a NaN becomes any integer
    near = torch.isclose(exported, eager, rtol=1e-6, atol=1e-7)
    assert near[known].double().mean() > 0.97
    for channel in range(cases.WIDTH):
        steps = eager[:, channel].unique().diff()
        away = (exported - eager)[:, channel][known[:, channel] & ~near[:, channel]].abs()
        assert away.numel() == 0 or away.max() <= 1.01 * steps[steps > 1e-6].max()
