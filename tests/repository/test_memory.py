"""docs/memory.md says what each operator keeps; the allocator says so too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.kept import kept_bytes

import ste_ops
from ste_ops.surrogate import ATan, Custom, Identity, Rect

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
ROWS = re.findall(r"^\| (.*?) \| (\d+)( a channel)? \| (held)? ?\|$", PAGE, re.MULTILINE)

STEPS = {
    "sign": ste_ops.sign,
    "heaviside": ste_ops.heaviside,
    "ternary": lambda x, surrogate: ste_ops.ternary(x, surrogate, 0.1),
}
scale = torch.tensor([0.3])
learned = torch.tensor([0.3]).requires_grad_()
TENT = Custom(lambda x: (1 - x.abs()).clamp(min=0))


def steps(*surrogates):
    return [(lambda x, f=f, s=s: f(x, s)) for f in STEPS.values() for s in surrogates]


CALLS = {
    "sign, heaviside, ternary with a mask (Clip, Rect)": steps(ste_ops.surrogate.Clip(1.0), Rect()),
    "the same with Identity": steps(Identity()),
    "the same with a curve (ATan, ...), with Custom, with fields that are learned": steps(ATan(), TENT, ATan(learned)),
    "round, floor, ceil, trunc, clamp, stochastic_round": [
        *(getattr(ste_ops, name) for name in ("round", "floor", "ceil", "trunc", "stochastic_round")),
        lambda x: ste_ops.clamp(x, -1, 1),
    ],
    "fake_quantize, dorefa_activation": [
        lambda x: ste_ops.fake_quantize(x, 0.1, 0, -8, 7),
        lambda x: ste_ops.dorefa_activation(x, 4),
    ],
    "lsq, lsq_plus whose scale is learned": [
        lambda x: ste_ops.lsq(x, learned, -8, 7),
        lambda x: ste_ops.lsq_plus(x, learned, learned, -8, 7),
    ],
    "lsq, lsq_plus whose scale gets no gradient": [
        lambda x: ste_ops.lsq(x, scale, -8, 7),
        lambda x: ste_ops.lsq_plus(x, scale, scale, -8, 7),
    ],
    "pact": [lambda x: ste_ops.pact(x, learned, 4)],
    "bitnet_activation, bitnet_weight": [ste_ops.bitnet_activation, ste_ops.bitnet_weight],
    "xnor_weight, magnitude_aware_sign": [ste_ops.xnor_weight, ste_ops.magnitude_aware_sign],
    "dorefa_weight, sr_ste": [lambda x: ste_ops.dorefa_weight(x, 4), lambda x: ste_ops.sr_ste(x, 2, 4)],
    "clip_gradient_value, clip_gradient_norm": [
        lambda x: ste_ops.clip_gradient_value(x, 1.0),
        lambda x: ste_ops.clip_gradient_norm(x, 1.0),
    ],
}


def test_every_row_is_measured():
    assert [name.replace("`", "") for name, *_ in ROWS] == [*CALLS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "bits", "a_channel", "held"), ROWS, ids=[row[0] for row in ROWS])
def test_the_page_says_what_is_kept(name, bits, a_channel, held, dtype):
    for call in CALLS[name.replace("`", "")]:
        x = torch.randn(256, 512).to(dtype).requires_grad_()
        call(x)  # what it holds from then on is no part of a call
        kept = kept_bytes(call, x)
        numbers = x.shape[0] if a_channel else x.numel()
        assert numbers * int(bits) // 8 <= kept <= numbers * int(bits) // 8 + 64, (kept, call)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):  # noqa: B023
            call(x)
        assert (x.data_ptr() in saved) == bool(held)
