"""python -m benchmarks.modules [--only NAME ...] [--rounds 151]

What a module, and a layer, takes beyond its operators in eager training: microseconds a call, forward, and forward with
backward. Few elements, so that nothing but calling counts; medians of rounds in which all four take turns, one thread.
Differences between two runs say little: the machine decides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

import ste_ops
from benchmarks.measure import medians
from ste_ops import surrogate

HEAD = "| | module | operator | difference | with backward | operator | difference |\n|---|---|---|---|---|---|---|"
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A module, the same by its operators, the parameters of those, and the shape of what both take."""

    name: str
    module: nn.Module
    operators: Call
    parameters: tuple[Tensor, ...] = ()
    shape: tuple[int, ...] = (8, 8)


def _learned(value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((1,), value))


def learned() -> Iterator[Case]:
    s, offset, alpha, factor = _learned(0.3), _learned(0.1), _learned(1.5), (8 * 7) ** -0.5
    yield Case("LSQ", ste_ops.nn.LSQ(4, scale=0.3), lambda x: ste_ops.lsq(x, s, -8, 7, None, factor), (s,))
    frozen, fixed = ste_ops.nn.LSQ(4, scale=0.3).freeze(), torch.full((1,), 0.3)
    yield Case("LSQ, frozen", frozen, lambda x: ste_ops.lsq(x, fixed, -8, 7, None, factor))
    plus = ste_ops.nn.LSQPlus(4, scale=0.3, offset=0.1)
    yield Case("LSQPlus", plus, lambda x: ste_ops.lsq_plus(x, s, offset, -8, 7, None, factor), (s, offset))
    yield Case("PACT", ste_ops.nn.PACT(1.5, 4), lambda x: ste_ops.pact(x, alpha, 4), (alpha,))
    zero = torch.zeros(1, dtype=torch.int32)
    fake = ste_ops.nn.FakeQuantize(4, scale=0.3)
    yield Case("FakeQuantize", fake, lambda x: ste_ops.fake_quantize(x, fixed, zero, -8, 7))
    held = surrogate.ATan(nn.Parameter(torch.tensor(2.0)))
    yield Case("Sign, learned ATan", ste_ops.nn.Sign(held), lambda x: ste_ops.sign(x, held))


def others() -> Iterator[Case]:
    yield Case("Sign", ste_ops.nn.Sign(), ste_ops.sign)
    yield Case("Heaviside", ste_ops.nn.Heaviside(), ste_ops.heaviside)
    yield Case("Ternary", ste_ops.nn.Ternary(), ste_ops.ternary)
    yield Case("DoReFaActivation", ste_ops.nn.DoReFaActivation(4), lambda x: ste_ops.dorefa_activation(x, 4))
    yield Case("DoReFaWeight", ste_ops.nn.DoReFaWeight(4), lambda x: ste_ops.dorefa_weight(x, 4))
    yield Case("BitNetActivation", ste_ops.nn.BitNetActivation(), ste_ops.bitnet_activation)
    yield Case("BitNetWeight", ste_ops.nn.BitNetWeight(), ste_ops.bitnet_weight)
    yield Case("XNORWeight", ste_ops.nn.XNORWeight(), ste_ops.xnor_weight)
    yield Case("MagnitudeAwareSign", ste_ops.nn.MagnitudeAwareSign(), ste_ops.magnitude_aware_sign)
    yield Case("SRSTE", ste_ops.nn.SRSTE(2, 4), lambda x: ste_ops.sr_ste(x, 2, 4))
    yield Case("StochasticRound", ste_ops.nn.StochasticRound(), lambda x: ste_ops.stochastic_round(x))


def layers() -> Iterator[Case]:
    s, t = _learned(0.1), _learned(0.1)

    def quantizers() -> dict[str, nn.Module]:
        of_input = ste_ops.nn.LSQ(4, signed=False, scale=0.1)
        return {"input_quantizer": of_input, "weight_quantizer": ste_ops.nn.LSQ(4, scale=0.1)}

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return ste_ops.lsq(x, s, 0, 15, None, 0.1), ste_ops.lsq(w, t, -8, 7)

    full = ste_ops.nn.QuantLinear(8, 8, **quantizers())  # type: ignore[arg-type]
    yield Case("QuantLinear, LSQ", full, lambda x: linear(*both(x, full.weight), full.bias), (s, t))
    conv = ste_ops.nn.QuantConv2d(4, 4, 3, padding=1, **quantizers())  # type: ignore[arg-type]
    of_conv = (1, 4, 8, 8)
    yield Case("QuantConv2d, LSQ", conv, lambda x: conv2d(*both(x, conv.weight), conv.bias, padding=1), (s, t), of_conv)
    signs = ste_ops.nn.QuantLinear(8, 8, weight_quantizer=ste_ops.sign, input_quantizer=ste_ops.sign)
    yield Case("QuantLinear, sign", signs, lambda x: linear(ste_ops.sign(x), ste_ops.sign(signs.weight), signs.bias))


def line(case: Case, rounds: int) -> str:
    x = torch.randn(case.shape, requires_grad=True)
    grad = torch.ones_like(case.module(x))
    leaves = x, *case.module.parameters(), *case.parameters

    def trained(f: Call) -> Callable[[], None]:
        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            torch.autograd.backward(f(x), grad)

        return step

    calls = [lambda: case.module(x), lambda: case.operators(x), trained(case.module), trained(case.operators)]
    times = [seconds * 1e6 for seconds in medians(calls, rounds)]
    pairs = [f"{ours:.1f} | {other:.1f} | {ours - other:+.1f}" for ours, other in (times[:2], times[2:])]
    return f"| {case.name} | {' | '.join(pairs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--rounds", type=int, default=151)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(HEAD)
    for case in (*learned(), *others(), *layers()):
        if asked.only is None or case.name in asked.only:
            print(line(case, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
