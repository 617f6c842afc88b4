"""Draws with a gradient against torch's Gumbel-softmax, and a ReinMax in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import gumbel_softmax

import ste_ops
from benchmarks.measure import Count, Row


def reinmax(logits: Tensor) -> Tensor:
    """Algorithm 2 of arXiv:2304.08612 at tau = 1."""
    pi_0 = torch.softmax(logits, -1)
    index = torch.multinomial(pi_0.detach().view(-1, logits.shape[-1]), 1).view(*logits.shape[:-1], 1)
    drawn = torch.zeros_like(logits).scatter_(-1, index, 1.0)
    pi_1 = torch.softmax((((drawn + pi_0) / 2).log() - logits).detach() + logits, -1)
    pi_2 = 2 * pi_1 - pi_0 / 2
    return pi_2 - pi_2.detach() + drawn


def relaxed_top_k(logits: Tensor, k: int) -> Tensor:
    """As the authors of arXiv:1901.10517 write it."""
    keys = logits - torch.empty_like(logits).exponential_().log()
    soft, p = torch.zeros_like(keys), torch.zeros_like(keys)
    for _ in range(k):
        keys = keys + (1 - p).clamp(min=1e-7).log()
        p = torch.softmax(keys, -1)
        soft = soft + p
    hard = torch.zeros_like(soft).scatter_(-1, soft.topk(k, -1).indices, 1.0)
    return hard - soft.detach() + soft


def train(draw: Callable[[Tensor], Tensor], logits: Tensor, grad: Tensor) -> Callable[[], None]:
    def step() -> None:
        logits.grad = None
        draw(logits).backward(grad)

    return step


def saved_bytes(draw: Callable[[Tensor], Tensor], logits: Tensor) -> int:
    """Of what autograd keeps, logits not counted: each storage once."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        draw(logits).sum()
    saved.pop(logits.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    shrink = 64 if quick else 1
    compiled = torch.compile(lambda x: gumbel_softmax(x, hard=True), dynamic=False)
    torchs = "gumbel_softmax(hard=True)"
    for count, categories in ((2**18, 4), (2**17, 10), (4096, 256), (8, 10**5)):
        x = torch.randn(max(count // shrink, 1), categories, device=device, requires_grad=True)
        grad = torch.randn_like(x)
        work = f"forward + backward, {x.shape[0]} x {categories}"
        for estimator, other, name, bound in (
            ("gumbel", lambda x: gumbel_softmax(x, hard=True), torchs, 3.0),
            ("gumbel", compiled, f"torch.compile of {torchs}", 1.0),
            ("reinmax", reinmax, "algorithm 2 in plain torch", 2.0),
        ):

            def ours(x: Tensor, estimator: str = estimator) -> Tensor:
                return ste_ops.categorical_ste(x, estimator)

            timed = train(ours, x, grad), train(other, x, grad)
            yield Row(f"categorical_ste {estimator} {work}", name, *timed, bound, at_most=False, rounds=7)
        timed = train(lambda x: ste_ops.subset_ste(x, 3), x, grad), train(lambda x: relaxed_top_k(x, 3), x, grad)
        yield Row(f"subset_ste k = 3 {work}", "relaxed top-k in plain torch", *timed, 1.0, at_most=False, rounds=7)
    x = torch.randn(4096, 256, device=device, requires_grad=True)
    for name, draw, other, against in (
        ("gumbel", lambda x: ste_ops.categorical_ste(x, "gumbel"), lambda x: gumbel_softmax(x, hard=True), torchs),
        ("reinmax", lambda x: ste_ops.categorical_ste(x, "reinmax"), reinmax, "algorithm 2 in plain torch"),
        ("subset", lambda x: ste_ops.subset_ste(x, 3), lambda x: relaxed_top_k(x, 3), "relaxed top-k in plain torch"),
    ):
        kept, theirs = saved_bytes(draw, x), saved_bytes(other, x)
        yield Count(
            f"bytes saved for backward beside logits, 4096 x 256, {name}: {kept}",
            f"{against}: {theirs}",
            kept / theirs,
            0.02,
        )
