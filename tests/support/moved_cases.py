"""Calls of operators, with the sizes that the `Moves:` lines of their kernels name (tests/cuda/test_bytes.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ste_ops import surrogate
from ste_ops._library import ops

# Whole blocks of every dtype, which are channels of whole rows too, and what divides by nothing.
EVEN, RAGGED = 16384, 10_007
CHANNELS = 4
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BLOCK = 16384  # kBlock
TILE = 2048  # kSamplingTile


@dataclass(frozen=True)
class Case:
    """`kernels` adds to the sizes: for every launch of a kernel, or for each a dict of its own."""

    operator: str
    arguments: tuple[Any, ...]
    sizes: dict[str, int]
    kernels: dict[str, Any] = field(default_factory=dict)

    def of_launch(self, kernel: str, number: int) -> dict[str, Any]:
        more = self.kernels.get(kernel, {})
        return self.sizes | (more[number] if isinstance(more, list) else more)


def up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def seed(rows: int = 1) -> Tensor:
    return torch.arange(4, 4 + rows)


def elementwise(n: int, dtype: torch.dtype) -> Iterator[Case]:
    x, grad, upper = (torch.randn(n).to(dtype) for _ in range(3))
    wide = torch.promote_types(dtype, torch.float32)
    mask = torch.randint(0, 255, (up(n, 8),), dtype=torch.uint8)
    T, A = x.element_size(), wide.itemsize
    clip, rect, curve = surrogate.Clip(1.0), surrogate.Rect(1.0), surrogate.Sigmoid(4.0)
    parts = up(n, 8 * 256 * (16 // T))  # rows of a task, threads, elements of a vector
    one = {"n": n, "groups": 1, "parts": parts}
    scale, alpha = torch.tensor([0.5]), torch.tensor([1.0])

    held = torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64)
    none = {"n": n, "numbers": 0}
    yield Case("heaviside", (x, clip.number, *clip.parameters), none | {"masks": 1})
    yield Case("sign", (x, surrogate.Identity().number, 0.0, 0.0), none | {"masks": 0})
    yield Case("ternary", (x, rect.number, *rect.parameters, 0.3), none | {"masks": 1})
    # Of what the tensor holds Clip reads one number, as does a ternary step without a mask.
    yield Case("binarize_held", (x, "sign", clip.number, held[:2]), {"n": n, "masks": 1, "numbers": 1})
    yield Case("binarize_held", (x, "ternary", curve.number, held), {"n": n, "masks": 0, "numbers": 1})
    yield Case("heaviside_from_zero", (x, rect.number, *rect.parameters), none | {"masks": 1})
    yield Case("binarize_backward", (grad, mask, 1.0), none)
    yield Case("binarize_backward", (grad, mask, 2.5), none)
    yield Case("binarize_backward_held", (grad, mask, held[:1]), {"n": n, "numbers": 1})
    for learned, count in ((surrogate.Sigmoid, 1), (surrogate.Tanh, 2)):
        sizes = {"n": n, "numbers": count, "groups": 2, "parts": parts}
        yield Case("learned_surrogate_backward", (grad, x, learned.number, held[:2]), sizes)
    for parameters in (None, torch.tensor([2.0, 0.5], dtype=torch.float64)):
        sizes = {"n": n, "parameters": 0 if parameters is None else 1}  # of two, Sigmoid has one
        yield Case("curve_backward", (grad, x, curve.number, 4.0, 0.0, parameters), sizes)
        yield Case("curve_second", (upper, grad, x, curve.number, 4.0, 0.0, parameters), sizes)
    yield from (Case(name, (x,), {"n": n}) for name in ("round", "floor", "ceil", "trunc"))
    yield Case("clamp", (x, -0.5, 1.0), {"n": n})
    yield Case("stochastic_round", (x, seed()), {"n": n, "seeds": 1})
    yield Case("bernoulli", (x.sigmoid(), seed()), {"n": n, "seeds": 1})
    yield Case("fake_quantize", (x, None, None, 0.5, 1.0, -4, 3, -1), {"n": n, "steps": 0})
    yield Case("lsq", (x, scale, -4, 3, -1), {"n": n, "steps": 1})
    yield Case("checked_steps", (scale, None, False, "lsq"), {"n": 1, "rows": 2, "steps": 1})
    for operator in ("lsq_backward", "lsq_backward_of_scale"):
        yield Case(operator, (grad, x, scale, -4, 3, -1, 0.5), one | {"steps": 1})
    plus = (scale, torch.tensor([0.25]), -4, 3, -1)
    yield Case("lsq_plus", (x, *plus), {"n": n, "steps": 2})
    yield Case("lsq_plus_masked", (x, *plus), {"n": n, "steps": 2})
    for operator in ("lsq_plus_backward", "lsq_plus_backward_of_parameters"):
        yield Case(operator, (grad, x, *plus, 0.5), one | {"steps": 2})
    yield Case("pact", (x, alpha, 3), {"n": n})
    yield Case("pact_backward", (grad, mask, mask.flip(0), alpha), one)
    yield Case("dorefa_activation", (x, 2), {"n": n})
    for bits in (1, 2, 4, 8):
        yield from coded(n, dtype, bits, None, 1)
    yield Case("xnor_weight", (x, False), one)
    yield Case("mean_magnitude", (x, False), one)
    yield Case("xnor_weight_backward", (grad, x, torch.ones(1, dtype=wide), False), one | {"P": 2 * A})
    yield Case("magnitude_aware_sign_backward", (grad, x, torch.ones(1, dtype=wide), False), one)
    for held in (False, True):
        yield Case("scaled_sign_backward", (grad, x, torch.ones(1, dtype=wide), False, held), one)
    yield Case("bitnet_weight", (x, False), one)
    yield Case("dorefa_weight", (x, 3, False), one)
    yield Case("dorefa_weight_backward", (grad, x, torch.ones(2, dtype=wide), False), one | {"P": 3 * A})
    yield Case("clip_gradient_value_backward", (grad, 0.5), {"n": n})


def coded(n: int, dtype: torch.dtype, bits: int, scale: Tensor | None, inner: int) -> Iterator[Case]:
    """All values come, and with a scale each of its channels."""
    values = torch.arange(2.0**bits).to(torch.promote_types(dtype, torch.float32))
    q = values[torch.arange(n) % 2**bits]
    q = (q if scale is None else (q.view(len(scale), inner) * scale[:, None]).view(n)).to(dtype)
    table = values, scale, inner, bits
    sizes = {"n": n, "bits": bits, "values": 2**bits, "scales": 0 if scale is None else len(scale)}
    sizes["runs"] = up(n * q.element_size(), 512)
    yield Case("pack_codes", (q, *table), sizes)
    yield Case("unpack_codes", (ops.pack_codes(q, *table), *table, torch.empty_like(q)), sizes)


def channels(n: int, dtype: torch.dtype) -> Iterator[Case]:
    """One task for each of a few channels."""
    x, grad = (torch.randn(CHANNELS, n // CHANNELS).to(dtype) for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    scale, zero_point = torch.rand(CHANNELS) + 0.1, torch.arange(float(CHANNELS))
    each = {"n": n, "groups": CHANNELS, "parts": 1, "steps": CHANNELS}
    yield Case("fake_quantize", (x, scale, zero_point, 0.0, 0.0, -4, 3, 0), {"n": n, "steps": 2 * CHANNELS})
    yield Case("lsq", (x, scale, -4, 3, 0), each)
    yield Case("lsq_backward", (grad, x, scale, -4, 3, 0, 0.5), each)
    plus = (scale, zero_point / 4, -4, 3, 0)
    yield Case("lsq_plus", (x, *plus), each | {"steps": 2 * CHANNELS})
    yield Case("lsq_plus_backward", (grad, x, *plus, 0.5), each | {"steps": 2 * CHANNELS})
    yield Case("xnor_weight", (x, True), each)
    yield Case("bitnet_activation", (x, 8), each)
    yield from coded(n, dtype, 4, scale.to(wide), n // CHANNELS)
    yield Case("dorefa_weight", (x, 3, True), each)
    yield Case("stochastic_round", (x, seed(CHANNELS)), {"n": n, "seeds": CHANNELS})
    yield Case("bernoulli", (x.sigmoid(), seed(CHANNELS)), {"n": n, "seeds": CHANNELS})
    for m in (4, 8):
        yield Case("sr_ste", (x, 2, m), {"n": n})
        yield Case("sr_ste_backward", (grad, x, 2, m, 0.1), {"n": n})
    sizes = {"rows": CHANNELS, "n": n // CHANNELS}
    yield Case("clip_gradient_norm_backward", (grad, 1, 0.5, 2.0), sizes)
    # A channel in several parts, each of which is a result.
    x = torch.randn(2, n).to(dtype)
    parts = up(n, 8 * 256 * (16 // x.element_size()))
    yield Case("lsq", (x, scale[:2], -4, 3, 0), {"n": 2 * n, "steps": 2})
    yield Case("bitnet_activation", (x, 8), {"n": 2 * n, "groups": 2, "parts": parts})
    yield Case(
        "xnor_weight", (x.to(wide), True), {"n": 2 * n, "groups": 2, "parts": up(n, 8 * 256 * (16 // wide.itemsize))}
    )


def looks(dtype: torch.dtype, *labels: str) -> dict[str, list[dict[str, str]]]:
    """The passes of a norm; those of the second look are launched for float64 alone."""
    passes = [{"label": label} for label in (["", *labels] if dtype == torch.float64 else [""])]
    return {"norm_partials_kernel": passes, "strided_partials_kernel": passes, "norm_finish_kernel": passes}


NOTHING = ("nothing to do", "nothing to do")


def clipping(n: int, dtype: torch.dtype) -> Iterator[Case]:
    x = torch.randn(n).to(dtype)
    T = x.element_size()
    norm = 8 if dtype == torch.float64 else 4
    one = {"n": n, "T": T, "blocks": up(n, BLOCK), "norm": norm, "launched": 1, "tensors": 1}
    first = looks(dtype, *NOTHING)
    alone = {"rewrite_kernel": {"label": "all left alone"}}

    yield Case("total_norm", ([x], 2.0), one, first)
    yield Case("total_norm", ([x], float("inf")), one)
    yield Case("total_norm", ([x], 2.0, True), one, first)
    yield Case("clip_grad_norm_", ([x.clone()], 1e9, 2.0, 0), one, first | alone)
    yield Case("clip_grad_norm_", ([x.clone()], 0.5, 2.0, 0), one | {"changed": n}, first)
    yield Case("clip_grad_value_", ([x.clamp(-1, 1)], 2.0), one | {"changed": 0})
    yield Case("clip_grad_value_", ([torch.full_like(x, 3.0)], 2.0), one | {"changed": n})
    few = torch.zeros_like(x)
    few[100] = 3.0  # of whose vector alone the clamp writes
    yield Case("clip_grad_value_", ([few], 2.0), one | {"changed": 16 // T})
    several = [x.clone(), torch.randn(BLOCK + 16).to(dtype), torch.randn(3).to(dtype)]
    all_of = one | {"n": n + BLOCK + 19, "blocks": up(n, BLOCK) + 3, "launched": 3, "tensors": 3}
    yield Case("total_norm", (several, 2.0, True), all_of, first)
    yield Case("clip_grad_norm_", (several, 0.5, 2.0, 0), all_of | {"changed": all_of["n"]}, first)
    strided = torch.randn(2, n).to(dtype).t()[::2]
    of_strided = one | {"n": strided.numel(), "blocks": up(strided.numel(), BLOCK)}
    yield Case("total_norm", ([strided], 2.0, True), of_strided, first)
    changed = of_strided | {"changed": strided.numel()}
    yield Case("clip_grad_norm_", ([strided], 0.5, 2.0, 0), changed, first)
    yield Case(
        "clip_grad_norm_",
        ([strided], 1e9, 2.0, 0),
        of_strided,
        first | {"strided_rewrite_kernel": {"label": "all left alone"}},
    )
    if dtype == torch.float64:
        second = looks(dtype, "largest", "second look")
        yield Case("total_norm", ([torch.full_like(x, 1e-200)], 2.0), one, second)
        yield Case("total_norm", ([strided.fill_(1e-200)], 2.0), of_strided, second)

    units = [torch.randn(CHANNELS, n // CHANNELS).to(dtype) for _ in range(2)]
    sizes = {"n": units[0].numel(), "T": T, "W": T}
    yield Case("clip_grad_agc_", ([units[0]], [units[1] * 9], 0.01, 1e-3), sizes | {"changed": sizes["n"]})
    yield Case("clip_grad_agc_", ([units[0]], [units[1] / 999], 0.01, 1e-3), sizes | {"changed": 0})
    units = [unit[:, ::2] for unit in units]
    sizes["n"] = units[0].numel()
    yield Case("clip_grad_agc_", (units[:1], [units[1].mul_(9)], 0.01, 1e-3), sizes | {"changed": sizes["n"]})


def many_parts(dtype: torch.dtype) -> Iterator[Case]:
    """More results of a group than one thread joins."""
    n = 33 * 8 * 256 * (16 // dtype.itemsize)
    yield Case("bitnet_weight", (torch.randn(n).to(dtype), False), {"n": n, "groups": 1, "parts": 33})


def per_sample(dtype: torch.dtype) -> Iterator[Case]:
    batch, columns = 3, 5000
    samples, total = torch.randn(batch, columns).to(dtype), torch.zeros(columns, dtype=dtype)
    scaled = {"label": "scaled"}
    wide = dtype == torch.float64
    kernels = {"sample_partials_kernel": [{}, scaled], "sample_norms_kernel": scaled} if wide else {}
    sizes = {"n": batch * columns, "T": samples.element_size(), "batch": batch, "partials": batch * up(columns, 2048)}
    yield Case("clip_per_sample_", ([samples], [total], 0.5), sizes | {"norm": 8 if wide else 4}, kernels)


def long_row(dtype: torch.dtype) -> Iterator[Case]:
    """A row of clip_gradient_norm_backward that is worth the whole device."""
    n = 16 * BLOCK
    sizes = {"n": n, "T": dtype.itemsize, "blocks": 16, "norm": 8}
    yield Case("clip_gradient_norm_backward", (torch.randn(1, n).to(dtype), 1, 0.5, 2.0), sizes, looks(dtype, *NOTHING))


def sampling(dtype: torch.dtype) -> Iterator[Case]:
    rows, n, k = 2, 5000, 3000
    weights = torch.rand(rows, n).to(dtype)
    tiles = rows * up(n, TILE)
    of_rows = {"rows": rows, "n": n, "tiles": tiles, "draws": rows * k, "buckets": min(n, k)}
    yield Case("alias_table", (weights,), of_rows)
    yield Case("alias_sample", (*ops.alias_table(weights), seed(), 0, k), of_rows)
    yield Case("inverse_cdf_sample", (weights, seed(), 30), of_rows | {"draws": 30 * rows})
    short = torch.rand(7, 900).to(dtype)
    yield Case("inverse_cdf_sample", (short, seed(), 30), {"rows": 7, "n": 900, "draws": 210})
    for name in ("systematic_resample", "stratified_resample"):
        yield Case(name, (weights, seed(), k), of_rows)
    yield Case("residual_resample", (weights, seed(), k), of_rows, {"sum_up_kernel": {"label": "residual"}})
    states = torch.ones(rows, dtype=torch.int64)
    yield Case("refuse_states", (weights, states, "a test"), of_rows)
    rows = 3 * TILE + 7
    by_blocks = {"report_rows_kernel": {"label": "many rows"}}
    states, short = torch.ones(rows, dtype=torch.int64), torch.rand(rows, 2).to(dtype)
    yield Case("refuse_states", (short, states, "a test"), {"rows": rows, "n": 2, "searchers": 4}, by_blocks)
    rows = 2
    few, many = of_rows | {"selected": 5, "draws": 5 * rows}, of_rows | {"draws": 400 * rows}
    again = {"n": 5 * tiles // rows, "tiles": rows}
    yield Case("multinomial_without_replacement", (weights, seed(), 5, "a test"), few, {"select_kernel": [{}, again]})
    yield Case("multinomial_without_replacement", (weights, seed(), 400, "a test"), many)


def rows_of_logits(dtype: torch.dtype) -> Iterator[Case]:
    """A row for a few lanes, and one for a block."""
    for rows, n in ((300, 7), (3, 1500)):
        x, grad = (torch.randn(rows, n).to(dtype) for _ in range(2))
        sizes = {"rows": rows, "n": n, "seeds": 1}
        yield Case("categorical", (x, seed()), sizes)
        yield Case("gumbel_noise", (x, seed()), sizes)
        index = torch.arange(rows) % n
        for estimator, (drawn, seeds) in enumerate([(0, 0), (rows, 1), (rows, 0)]):
            more = {"drawn": drawn, "seeds": seeds}
            yield Case("categorical_backward", (grad, x, seed(), index, estimator, 0.5), sizes | more)
        yield Case("subset", (x, seed(), 3), sizes | {"teams": rows})
        yield Case("subset_backward", (grad, x, seed(), 3, 0.5), sizes)


def trees(dtype: torch.dtype) -> Iterator[Case]:
    n, count = 5000, 20
    weights = torch.rand(n).to(dtype)
    levels = [up(n, 16), up(n, 256), up(n, 4096), 1]
    of_levels = [{"nodes": nodes, "label": "above" if i else "level 1"} for i, nodes in enumerate(levels)]
    yield Case("sum_tree", (weights,), {"n": n}, {"sum_level_kernel": of_levels})
    nodes = ops.sum_tree(weights)[1]
    index, values = torch.arange(count) % 9, torch.rand(count).to(dtype)
    # The levels that have no more nodes than entries are summed as a whole.
    whole = [level for level in of_levels if level["nodes"] <= count]
    kernels = {"sum_level_kernel": whole, "inspect_entries_kernel": {"label": "with indices"}}
    yield Case("sum_tree_update_", (weights, nodes, index, values), {"n": count}, kernels)
    yield Case("sum_tree_sample", (nodes, n, seed(), 0, 300), {"n": n})


def products(dtype: torch.dtype) -> Iterator[Case]:
    """Bits of numbers, and products, whose operands are packed once each."""
    x = torch.randn(3, 1007).to(dtype)
    T, words = x.element_size(), up(1007, 32)
    for of, dim, count in ((x, 1, 3 * up(1007, 8)), (x.t().contiguous(), 0, 3 * up(1007, 8))):
        sizes = {"n": x.numel(), "bytes": count}
        yield Case("pack_bits", (of, dim), sizes)
        yield Case("unpack_bits", (ops.pack_bits(of, dim), dim, torch.empty_like(of)), sizes)
    weight = torch.randn(20, 1007).to(dtype)
    panels = [{"numbers": t.numel(), "size": T, "words": up(t.shape[0], 16) * 16 * words} for t in (x, weight)]
    plain = (None, None, 1007)
    yield Case("binary_linear", (x, weight, *plain, 20, False, dtype), {}, {"pack_panels_kernel": panels})
    image, kernel = torch.randn(2, 40, 5, 9).to(dtype), torch.randn(20, 40, 3, 3).to(dtype)
    sizes = [[3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, 0, False, False, dtype]
    packed = {
        "pack_panels_kernel": {"numbers": kernel.numel(), "size": T, "words": 32 * 9 * 2},
        "pack_planes_kernel": {"numbers": image.numel(), "size": T, "words": 2 * 2 * 45},
    }
    yield Case("binary_conv2d", (image, kernel, None, None, 40, 20, *sizes), {}, packed)


FAMILIES: dict[str, Callable[[torch.dtype], Iterator[Case]]] = {
    "elementwise": lambda dtype: elementwise(EVEN, dtype),
    "elementwise ragged": lambda dtype: elementwise(RAGGED, dtype),
    "channels": lambda dtype: channels(EVEN, dtype),
    "clipping": lambda dtype: clipping(EVEN, dtype),
    "clipping ragged": lambda dtype: clipping(RAGGED, dtype),
    "many parts": many_parts,
    "per sample": per_sample,
    "long row": long_row,
    "sampling": sampling,
    "rows of logits": rows_of_logits,
    "trees": trees,
    "products": products,
}
