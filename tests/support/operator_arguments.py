"""Arguments of every registered operator; one without a row here fails tests/operators/test_compile.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ste_ops._library import ops
from ste_ops.surrogate import Tanh
from support.surrogate_table import curves, first_instances, representatives

Arguments = tuple[Any, ...]


def steps(device: str) -> list[Arguments]:
    xs = [
        torch.randn(5, 7, device=device),
        torch.randn(6, 10, device=device, dtype=torch.bfloat16).t()[::2],
        torch.randn(2, 3, 4, 5, device=device, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn((), device=device, dtype=torch.float16),
        torch.randn(3, 0, device=device),
    ]
    return [(x, s.number, *s.parameters) for s in representatives() for x in xs]


def held(device: str, *numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def held_steps(device: str) -> list[Arguments]:
    numbers = {
        "heaviside": (0.7, 0.5),
        "heaviside_from_zero": (0.7, 0.5),
        "sign": (0.7, 0.5),
        "ternary": (0.7, 0.5, 0.3),
    }
    return [(x, step, s, held(device, *numbers[step])) for step in numbers for x, s, *_ in steps(device)]


def ternaries(device: str) -> list[Arguments]:
    return [(*arguments, 0.3) for arguments in steps(device)]


def learned(device: str) -> list[Arguments]:
    surrogates = [surrogate for surrogate in first_instances() if surrogate.by_parameters(torch.zeros(1))]
    return [
        (torch.randn(x.shape, device=device).to(x.dtype), x, s.number, held(device, *(float(p) for p in s.parameters)))
        for s in surrogates
        for x, *_ in (steps(device)[:5] if isinstance(s, Tanh) else steps(device)[:1])
    ]


def curved(device: str, factors: int) -> list[Arguments]:
    """Factors in x's layout and in others, the parameters as numbers and as a tensor."""
    curve = curves()[0]
    xs = [
        torch.randn(5, 7, device=device),
        torch.randn(6, 10, device=device, dtype=torch.bfloat16).t()[::2],
        torch.randn(2, 3, 4, 5, device=device, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn(3, 0, device=device, dtype=torch.float16),
    ]
    tensor = torch.tensor([2.0, 0.5], dtype=torch.float64, device=device)
    return [
        (*(torch.randn(x.shape, device=device).to(x.dtype) for _ in range(factors)), x, curve.number, 2.0, 0.5, p)
        for x in xs
        for p in (None, tensor)
    ]


def masked(device: str) -> list[Arguments]:
    def mask(numel: int) -> torch.Tensor:
        return torch.randint(0, 256, ((numel + 7) // 8,), dtype=torch.uint8, device=device)

    return [
        (torch.randn(5, 7, device=device), mask(35)),
        (torch.randn(6, 10, device=device, dtype=torch.float16).t(), mask(60)),
        (torch.randn(7, 1, device=device, dtype=torch.float64).expand(7, 3), mask(21)),
        (torch.randn(0, device=device), mask(0)),
        (torch.randn(9, device=device, dtype=torch.bfloat16), mask(9), 2.5),
    ]


def gradients(device: str) -> list[torch.Tensor]:
    return [
        torch.randn(5, 7, device=device),
        torch.randn(6, 4, device=device, dtype=torch.bfloat16).t(),
        torch.randn(9, device=device, dtype=torch.float64)[1:],
        torch.randn(0, device=device),
    ]


def lists(device: str) -> list[list[torch.Tensor]]:
    return [gradients(device)[:2], gradients(device), gradients(device)[:1]]


def per_sample(device: str) -> list[Arguments]:
    shapes = [(3, 5, 7), (3,), (3, 0), (3, 2)]
    grads = [
        torch.randn(s, device=device).to(d) for s, d in zip(shapes, [torch.float32, torch.float64] * 2, strict=True)
    ]
    sums = [torch.ones_like(g[0]) for g in grads]
    return [(grads, sums, 0.5), (grads[:1], sums[:1], 0.5), ([grads[0][:0]], sums[:1], 0.5)]


def rows(device: str) -> list[torch.Tensor]:
    return [
        *gradients(device)[:3],
        torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last),
    ]


def tables(device: str) -> list[Arguments]:
    weights = [torch.rand(10, device=device), torch.rand(3, 7, device=device, dtype=torch.float64)]
    return [(*ops.alias_table(w), torch.tensor([4], device=device), 2, 5) for w in weights]


def trees(device: str) -> list[Arguments]:
    index, values = torch.tensor([3, 0, 3], device=device), torch.rand(3, device=device)
    return [
        (w, ops.sum_tree(w)[1], index, values.to(w.dtype))
        for w in (torch.rand(40, device=device), torch.rand(4, device=device, dtype=torch.float16))
    ]


def pruned(device: str) -> list[torch.Tensor]:
    return [
        torch.randn(5, 8, device=device),
        torch.randn(8, 6, device=device, dtype=torch.bfloat16).t(),
        torch.randn(2, 4, 3, 3, device=device, dtype=torch.float64),
        torch.randn(12, device=device, dtype=torch.float16)[::3],
        torch.randn(0, 4, device=device),
    ]


def quantized(device: str) -> list[tuple[torch.Tensor, torch.Tensor | None, int]]:
    """x, a scale or none, and its axis."""
    channels_last = torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)
    return [
        (torch.randn(5, 7, device=device), None, -1),
        (torch.randn(5, 7, device=device), torch.rand((), device=device) + 0.1, -1),
        (torch.randn(6, 10, device=device, dtype=torch.bfloat16).t()[::2], torch.rand(6, device=device) + 0.1, 1),
        (channels_last, torch.rand(3, device=device, dtype=torch.float64) + 0.1, 1),
        (torch.randn((), device=device, dtype=torch.float64), torch.rand(1, device=device) + 0.1, -1),
        (torch.randn(3, 0, device=device), torch.rand(3, device=device) + 0.1, 0),
    ]


def fake_quantized(device: str) -> list[Arguments]:
    zero_points = [None, None, torch.arange(6.0, device=device), torch.ones(1, device=device), None, None]
    return [
        (x, scale, zero_point, 0.5, 1.0, -4, 3, axis)
        for (x, scale, axis), zero_point in zip(quantized(device), zero_points, strict=True)
    ]


def learned_steps(device: str) -> list[Arguments]:
    return [(x, scale, -4, 3, axis) for x, scale, axis in quantized(device) if scale is not None]


def learned_offsets(device: str) -> list[Arguments]:
    return [
        (x, scale, scale.flip(-1) - 0.5 if scale.dim() else scale - 0.5, *rest)
        for x, scale, *rest in learned_steps(device)
    ]


def clipped(device: str) -> list[Arguments]:
    alpha = torch.ones(1, device=device)
    return [(x, alpha.reshape(()) if x.dim() % 2 else alpha, 3) for x in rows(device)]


def clipped_gradients(device: str) -> list[Arguments]:
    alpha = torch.ones((), device=device, dtype=torch.float16)
    return [(grad, mask, mask.flip(0) & mask, alpha) for grad, mask, *_ in masked(device)]


def weights(device: str) -> list[tuple[torch.Tensor, bool]]:
    """And whether each channel has a scale of its own."""
    return [
        (torch.randn(5, 7, device=device), True),
        (torch.randn(5, 7, device=device), False),
        (torch.randn(6, 4, device=device, dtype=torch.bfloat16).t(), True),
        (torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last), True),
        (torch.randn(20, device=device, dtype=torch.float64)[1::2], False),
        (torch.randn((), device=device, dtype=torch.float16), False),
        (torch.randn(3, 0, device=device), True),
    ]


def coded(device: str) -> list[Arguments]:
    """What is packed, of every number of bits, and the values, scales and groups that say of what it consists."""
    found: list[Arguments] = []
    for bits, dtype in ((1, torch.float32), (2, torch.bfloat16), (4, torch.float64), (8, torch.float16)):
        values = torch.arange(2.0**bits, device=device, dtype=torch.promote_types(dtype, torch.float32)) - 1
        level = torch.randint(2**bits, (3, 5, 35), device=device)
        scale = torch.rand(5, device=device, dtype=values.dtype) + 0.1
        found.append((values[level[0]].to(dtype).reshape(-1), values, None, 1, bits))
        found.append(((values[level] * scale[:, None]).to(dtype).reshape(-1), values, scale, 35, bits))
    return found


def signs(device: str) -> list[Arguments]:
    """What is packed along which dimension."""
    return [
        (torch.randn(3, 21, device=device), 1),
        (torch.randn(4, 40, device=device, dtype=torch.float16), 1),
        (torch.randn(2, 35, 3, 4, device=device, dtype=torch.bfloat16), 1),
        (torch.randn(9, 2, device=device, dtype=torch.float64), 0),
        (torch.randn(0, 4, device=device), 1),
    ]


def binary_matrices(device: str) -> list[Arguments]:
    """Numbers, bits and panels, with and without scale and bias, of signs and of steps."""
    x, weight = torch.randn(5, 70, device=device), torch.randn(19, 70, device=device)
    scale, bias = torch.rand(2, 19, device=device)
    wide = x.double()
    return [
        (x, weight, None, None, 70, 19, False, torch.float32),
        (x.t().contiguous().t(), weight.bfloat16(), scale, bias, 70, 19, True, torch.bfloat16),
        (wide, weight, scale[:1].double(), None, 70, 19, False, torch.float64),
        (ops.pack_bits(x, 1), ops.pack_bits(weight, 1), None, bias, 70, 19, False, torch.float32),
        (x.half(), ops.binary_panels(weight, 70, 1), scale, None, 70, 19, False, torch.float16),
        (x[:0], weight, None, None, 70, 19, False, torch.float32),
        (x[:, :0], weight[:, :0], None, bias, 0, 19, False, torch.float32),
    ]


def binary_convolutions(device: str) -> list[Arguments]:
    x, weight = torch.randn(2, 40, 6, 7, device=device), torch.randn(18, 20, 3, 2, device=device)
    scale, bias = torch.rand(2, 18, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    sizes = (40, 18, [3, 2])
    return [
        (x, weight, None, None, *sizes, [1, 1], [1, 1, 1, 1], [1, 1], 2, 0, False, False, torch.float32),
        (x, weight, scale, bias, *sizes, [2, 1], [0, 2, 1, 0], [1, 2], 2, -1, False, True, torch.bfloat16),
        (last, weight, None, None, *sizes, [1, 2], [1, 0, 1, 0], [2, 1], 2, 0, False, True, torch.float16),
        (last, weight, scale, bias, *sizes, [1, 1], [1, 1, 1, 1], [1, 1], 2, 1, True, False, torch.float32),
        (
            *(ops.pack_bits(x[:, :20].contiguous(), 1), ops.binary_panels(weight, 20, 1), None, None, 20, 18, [3, 2]),
            *([1, 1], [1, 1, 1, 1], [1, 1], 1, 0, False, False, torch.float32),
        ),
        (x[:0], weight, None, None, *sizes, [1, 1], [0] * 4, [1, 1], 2, 0, False, False, torch.float32),
    ]


def backwards(device: str, kinds: int) -> list[Arguments]:
    """The gradient, the weights, their statistic of so many numbers a scale, and whether each channel has one."""
    return [
        (
            torch.randn_like(w),
            w,
            w.new_ones(kinds * (w.shape[0] if channels else 1), dtype=torch.promote_types(w.dtype, torch.float32)),
            channels,
        )
        for w, channels in weights(device)
    ]


def seed(device: str) -> torch.Tensor:
    return torch.tensor([7], device=device)


def logits(device: str) -> list[torch.Tensor]:
    return [
        torch.randn(5, 7, device=device),
        torch.randn(6, 4, device=device, dtype=torch.bfloat16).t(),
        torch.randn(9, device=device, dtype=torch.float64)[1:],
        torch.randn(2, 3, 4, device=device, dtype=torch.float16)[:, ::2],
        torch.randn(0, 4, device=device),
    ]


def pulled(device: str) -> list[Arguments]:
    return [
        (torch.randn_like(x), x, seed(device), torch.ones(x.shape[:-1], dtype=torch.int64, device=device), e, 0.5)
        for x in logits(device)
        for e in range(3)
    ]


# operator -> device -> arguments of several calls.
ARGUMENTS: dict[str, Callable[[str], list[Arguments]]] = {
    "heaviside": steps,
    "heaviside_from_zero": steps,
    "sign": steps,
    "binarize_held": held_steps,
    "ternary": ternaries,
    "binarize_backward": masked,
    "binarize_backward_held": lambda device: [(grad, mask, held(device, 2.5)) for grad, mask, *_ in masked(device)],
    **dict.fromkeys(("round", "floor", "ceil", "trunc"), lambda device: [(x,) for x in rows(device)]),
    "clamp": lambda device: [(x, -0.5, 1.0) for x in rows(device)],
    "stochastic_round": lambda device: [(x, seed(device)) for x in rows(device)],
    "fake_quantize": fake_quantized,
    "lsq": learned_steps,
    "lsq_masked": learned_steps,
    "lsq_backward": lambda device: [(torch.randn_like(a[0]), *a, 0.5) for a in learned_steps(device)],
    "lsq_backward_of_scale": lambda device: ARGUMENTS["lsq_backward"](device),
    "checked_steps": lambda device: [
        (torch.rand(3, device=device) + 0.1, None, False, "lsq"),
        (torch.rand((), device=device, dtype=torch.bfloat16) + 0.1, torch.randn(5, device=device), True, "lsq_plus"),
    ],
    "lsq_plus": learned_offsets,
    "lsq_plus_masked": learned_offsets,
    "lsq_plus_backward": lambda device: [(torch.randn_like(a[0]), *a, 0.5) for a in learned_offsets(device)],
    "lsq_plus_backward_of_parameters": lambda device: ARGUMENTS["lsq_plus_backward"](device),
    "pact": clipped,
    "pact_backward": clipped_gradients,
    "dorefa_activation": lambda device: [(x, 2) for x in rows(device)],
    "pack_codes": coded,
    "unpack_codes": lambda device: [
        (ops.pack_codes(q, *table), *table, torch.zeros_like(q)) for q, *table in coded(device)
    ],
    "pack_bits": signs,
    "unpack_bits": lambda device: [(ops.pack_bits(x, dim), dim, torch.zeros_like(x)) for x, dim in signs(device)],
    "binary_panels": lambda device: [
        (torch.randn(20, 70, device=device), 70, 1),
        (torch.randn(34, 40, 3, 2, device=device, dtype=torch.bfloat16), 40, 2),
        (ops.pack_bits(torch.randn(5, 40, 3, device=device), 1), 40, 1),
    ],
    "binary_linear": binary_matrices,
    "binary_conv2d": binary_convolutions,
    "xnor_weight": weights,
    "mean_magnitude": weights,
    "xnor_weight_backward": lambda device: backwards(device, 1),
    "magnitude_aware_sign_backward": lambda device: backwards(device, 1),
    "scaled_sign_backward": lambda device: [(*a, held) for a in backwards(device, 1) for held in (False, True)],
    "dorefa_weight": lambda device: [(w, 3, channels) for w, channels in weights(device)],
    "dorefa_weight_backward": lambda device: backwards(device, 2),
    "bitnet_weight": weights,
    "bitnet_activation": lambda device: [(w, 8) for w, _ in weights(device)],
    "sr_ste": lambda device: [(w, 2, 4) for w in pruned(device)],
    "sr_ste_backward": lambda device: [(torch.randn_like(w), w, 2, 4, 0.1) for w in pruned(device)],
    "curve_backward": lambda device: curved(device, 1),
    "curve_second": lambda device: curved(device, 2),
    "learned_surrogate_backward": learned,
    "total_norm": lambda device: [
        (grads, *rest)
        for grads in lists(device)
        for rest in ((2.0,), (float("inf"),), (0.0,), (3.0,), (2.0, True), (3.0, True))
    ],
    "clip_grad_norm_": lambda device: [(grads, 0.5, 2.0, *rest) for grads in lists(device) for rest in ((), (2, True))],
    "clip_grads_with_norm_": lambda device: [(g, torch.ones((), device=device), 0.5) for g in lists(device)],
    "clip_grad_value_": lambda device: [(grads, 0.1) for grads in lists(device)],
    "clip_grad_agc_": lambda device: [(grads, [g * 9 for g in grads], 0.01, 1e-3) for grads in lists(device)],
    "clip_per_sample_": per_sample,
    "clip_gradient_value_backward": lambda device: [(grad, 0.1) for grad in rows(device)],
    "clip_gradient_norm_backward": lambda device: [(grad, grad.dim() - 1, 0.5, 2.0) for grad in rows(device)],
    "alias_table": lambda device: [(torch.rand(10, device=device),), (torch.rand(3, 7, device=device),)],
    "alias_sample": tables,
    "inverse_cdf_sample": lambda device: [
        (torch.rand(600, device=device), seed(device), 3),
        (torch.rand(3, 7, device=device), seed(device), 2),
    ],
    "multinomial_with_replacement": lambda device: [
        (torch.rand(10, device=device), seed(device), 3),
        (torch.rand(3, 70, device=device, dtype=torch.float64), seed(device), 4),
    ],
    "multinomial_without_replacement": lambda device: [
        (torch.rand(10, device=device), seed(device), 3, "multinomial"),
        (torch.rand(3, 7, device=device, dtype=torch.float64) + 0.1, seed(device), 7, "multinomial"),
    ],
    "refuse_states": lambda device: [
        (torch.rand(3, 7, device=device), torch.ones(3, dtype=torch.int64, device=device), "multinomial"),
        (torch.rand(7, device=device), torch.ones((), dtype=torch.int64, device=device), "multinomial"),
    ],
    "raise_deferred": lambda device: [(torch.empty(0, device=device),)],
    "sum_tree": lambda device: [(torch.rand(40, device=device),), (torch.rand(7, device=device, dtype=torch.float64),)],
    "sum_tree_update_": trees,
    "sum_tree_sample": lambda device: [(nodes, len(w), seed(device), 2, 5) for w, nodes, *_ in trees(device)],
    **dict.fromkeys(
        ("systematic_resample", "stratified_resample", "residual_resample"),
        lambda device: [
            (torch.rand(10, device=device), seed(device), 4),
            (torch.rand(3, 7, device=device, dtype=torch.float64), seed(device), 9),
        ],
    ),
    "categorical": lambda device: [(x, seed(device)) for x in logits(device)],
    "categorical_backward": pulled,
    "gumbel_noise": lambda device: [(x, seed(device)) for x in logits(device)],
    "subset": lambda device: [(x, seed(device), 2) for x in logits(device)],
    "subset_backward": lambda device: [(torch.randn_like(x), x, seed(device), 2, 0.5) for x in logits(device)],
    "bernoulli": lambda device: [(grad.sigmoid(), seed(device)) for grad in gradients(device)],
}

# They take no tensor and answer with a string: torch.library.opcheck has nothing to check.
WITHOUT_TENSORS = {"surrogates", "build_info", "cuda_build_info"}


def _spread(n: int, device: str) -> torch.Tensor:
    return torch.rand(n, device=device) ** 8


def _list(device: str) -> list[torch.Tensor]:
    return [torch.randn(n, device=device) for n in (40_000, 3, 9_001)]


# Operators whose kernels take another way where the work is divided among blocks.
LARGER: dict[str, Callable[[str], list[Arguments]]] = {
    "heaviside": lambda device: [(torch.randn(40_001, device=device), 1, 1.0, 0.0)],
    "learned_surrogate_backward": lambda device: [
        (*torch.randn(2, 40_001, device=device), Tanh.number, held(device, 2.0, 0.5))
    ],
    "lsq_backward": lambda device: [
        (*torch.randn(2, 3, 9_001, device=device), torch.rand(n, device=device) + 0.1, -4, 3, n // 2 - 1, 0.5)
        for n in (1, 3)
    ],
    "lsq_plus_backward": lambda device: [
        (
            *torch.randn(2, 3, 9_001, device=device),
            torch.rand(n, device=device) + 0.1,
            torch.randn(n, device=device),
            *(-4, 3, n // 2 - 1, 0.5),
        )
        for n in (1, 3)
    ],
    "lsq_backward_of_scale": lambda device: LARGER["lsq_backward"](device),
    "lsq_plus_backward_of_parameters": lambda device: LARGER["lsq_plus_backward"](device),
    "xnor_weight": lambda device: [(torch.randn(3, 9_001, device=device), c) for c in (True, False)],
    "mean_magnitude": lambda device: LARGER["xnor_weight"](device),
    "dorefa_weight": lambda device: [(torch.randn(3, 9_001, device=device), 3, c) for c in (True, False)],
    "total_norm": lambda device: [(_list(device), p, True) for p in (2.0, 3.0)],
    "clip_grad_norm_": lambda device: [(_list(device), 0.5, 2.0, 0, True)],
    "clip_per_sample_": lambda device: [
        ([torch.randn(3, 9_001, device=device)], [torch.ones(9_001, device=device)], 1.0)
    ],
    "clip_gradient_norm_backward": lambda device: [(torch.randn(2, 20_001, device=device), 1, 0.5, 2.0)],
    "alias_table": lambda device: [(_spread(9_001, device),), (_spread(9_001, device)[1:].view(3, -1),)],
    "inverse_cdf_sample": lambda device: [(_spread(9_001, device), seed(device), 9)],
    "multinomial_with_replacement": lambda device: [(_spread(9_001, device), seed(device), k) for k in (9, 4_000)],
    "multinomial_without_replacement": lambda device: [
        (_spread(9_001, device), seed(device), k, "multinomial") for k in (5, 4_000)
    ],
    "sum_tree": lambda device: [(_spread(9_001, device),)],
    "residual_resample": lambda device: [(_spread(9_001, device), seed(device), 6_000)],
    "systematic_resample": lambda device: [(_spread(9_001, device), seed(device), 6_000)],
    "categorical": lambda device: [(torch.randn(2, 9_001, device=device), seed(device))],
    "subset": lambda device: [(torch.randn(2, 9_001, device=device), seed(device), 3)],
}
