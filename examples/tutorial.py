"""The PyTorch tutorial on data loading and gradients, from top to bottom, with the operators of ste_ops.

    python examples/tutorial.py                  # on the CPU; docs/tutorial.txt is what it prints
    python examples/tutorial.py --device cuda

A section is a function that first says why. Seeds are fixed, so each run prints the same.
"""

from __future__ import annotations

import argparse
import itertools
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.autograd.functional import hessian, jacobian
from torch.autograd.gradcheck import GradcheckError
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)
from torch.utils.data import WeightedRandomSampler as TorchWeightedRandomSampler

import ste_ops
from ste_ops.data import WeightedRandomSampler, class_weights
from ste_ops.surrogate import Clip, Sigmoid


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(value: Any) -> str:
    """Plain numbers of four digits, wherever a tensor was."""
    if isinstance(value, Tensor):
        return text(value.tolist())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(text, value)) + "]"
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)  # + 0.0: -0 is shown as 0


def show(what: str, value: Any) -> None:
    print(f"    {what:<52}  {text(value)}")


def say(why: str) -> None:
    print("\n" + textwrap.fill(" ".join(why.split()), 100, initial_indent="  ", subsequent_indent="  "))


# Dataset, TensorDataset, Subset, DataLoader, IterableDataset


class Tens(Dataset):
    """Sample i is 10 i. With `__getitems__`, a DataLoader asks once for a batch and not once for a sample."""

    def __init__(self, count: int) -> None:
        self.values = torch.arange(count) * 10
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        return self.values[index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.asked.append(indices)
        return list(self.values[indices])


class WeightedStream(IterableDataset):
    """An endless stream has no indices, so no sampler drives it: it draws for itself.

    Draw i is a function of the table, the seed and i. So worker w of n takes every n-th stretch, and the DataLoader,
    which asks its workers in turn, puts together the very stream that one process draws.
    """

    def __init__(self, weights: Tensor, seed: int, num_samples: int, stretch: int) -> None:
        self.table, self.seed = ste_ops.AliasTable(weights), seed
        self.num_samples, self.stretch = num_samples, stretch

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for start in range(first * self.stretch, self.num_samples, step * self.stretch):
            count = min(self.stretch, self.num_samples - start)
            yield from self.table.sample_at(self.seed, start, count).tolist()


def pad(samples: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(samples), batch_first=True, padding_value=-1)


def datasets(device: torch.device) -> None:
    """A sampler yields indices and knows nothing of the data, so ours drive whatever has a length and an index."""
    weights = torch.arange(10.0)  # sample 0 never, sample 9 most often

    say("Dataset. A batch is one call of __getitems__, with the indices that our sampler drew.")
    tens = Tens(10)
    loader = DataLoader(tens, batch_size=4, sampler=WeightedRandomSampler(weights, 8, generator=seeded()))
    show("len(dataset), dataset[3]", [len(tens), tens[3]])
    show("list(loader)", list(loader))
    show("what __getitems__ was asked for", tens.asked)

    say("TensorDataset zips tensors; Subset renumbers a part, and the weights are those of the part.")
    pairs = TensorDataset(torch.arange(10), torch.arange(10) ** 2)
    odd = Subset(pairs, [1, 3, 5, 7, 9])
    loader = DataLoader(odd, batch_size=4, sampler=WeightedRandomSampler(weights[odd.indices], 4, generator=seeded()))
    show("pairs[3]", pairs[3])
    show("numbers, squares of one batch", next(iter(loader)))

    say("collate_fn makes the batch: here it pads sequences of unequal lengths, drawn by length.")
    words = [torch.arange(length) for length in (1, 2, 3, 4)]
    by_length = WeightedRandomSampler([float(len(word)) for word in words], 3, generator=seeded())
    show("one batch", next(iter(DataLoader(words, batch_size=3, sampler=by_length, collate_fn=pad))))

    say("drop_last leaves the short batch out.")
    for drop_last in (False, True):
        sampler = WeightedRandomSampler(weights, 10, generator=seeded())
        sizes = [len(batch) for batch in DataLoader(tens, batch_size=4, sampler=sampler, drop_last=drop_last)]
        show(f"sizes with drop_last={drop_last}", sizes)

    say("num_workers moves the loading, not the drawing: the sampler runs here and the epoch stays what it was.")
    epochs = []
    for workers in (0, 2):
        sampler = WeightedRandomSampler(weights, 12, generator=seeded())
        epochs.append(torch.cat(list(DataLoader(tens, batch_size=4, sampler=sampler, num_workers=workers))))
    show("12 samples by 2 workers", epochs[1])
    show("the same as by none", torch.equal(*epochs))

    say("pin_memory puts batches where an accelerator can fetch them while it computes.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batch = next(iter(DataLoader(tens, batch_size=4, sampler=SequentialSampler(tens), pin_memory=True)))
    show("batch.is_pinned()", batch.is_pinned())
    show("torch warns that there is no accelerator", any("no accelerator" in str(w.message) for w in caught))

    say("IterableDataset. Workers that draw their own stretches give the stream of one process.")
    streams = []
    for workers in (0, 2):
        stream = WeightedStream(weights, seed=0, num_samples=12, stretch=4)
        streams.append(torch.cat(list(DataLoader(stream, batch_size=4, num_workers=workers))))
    show("12 draws by 2 workers", streams[1])
    show("the same as by none", torch.equal(*streams))


# SequentialSampler, RandomSampler, SubsetRandomSampler, BatchSampler, DistributedSampler


def samplers(device: torch.device) -> None:
    """Samplers are iterables of indices, so torch's and ours stand in each other's place and inside each other."""
    weights = torch.arange(10.0)
    tens = Tens(10)

    say("In order for evaluation, shuffled for training, by weight where some samples matter more.")
    show("SequentialSampler", list(SequentialSampler(tens)))
    show("RandomSampler", list(RandomSampler(tens, generator=seeded())))
    show("ste_ops WeightedRandomSampler", list(WeightedRandomSampler(weights, 10, generator=seeded())))

    say("SubsetRandomSampler shuffles a part: five samples that ste_ops.multinomial picks by weight, none twice.")
    part = ste_ops.multinomial(weights, 5, generator=seeded())
    show("ste_ops.multinomial(weights, 5)", part)
    for epoch in range(2):
        show(f"SubsetRandomSampler of them, epoch {epoch}", list(SubsetRandomSampler(part, generator=seeded(epoch))))

    say("BatchSampler groups ours as it groups its own.")
    batches = BatchSampler(WeightedRandomSampler(weights, 10, generator=seeded()), batch_size=4, drop_last=False)
    show("BatchSampler(ste_ops sampler, 4)", list(batches))
    show("in a DataLoader", list(DataLoader(tens, batch_sampler=batches)))

    say("DistributedSampler deals a shuffled set out to the ranks.")
    for rank in range(2):
        show(f"DistributedSampler, rank {rank} of 2", list(DistributedSampler(tens, num_replicas=2, rank=rank)))


# WeightedRandomSampler, class weights


def imbalance(device: torch.device) -> None:
    """Where one class is rare, a net learns to ignore it. Drawn by weight, every class comes equally often."""
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    per_class = class_weights(labels)

    say("The weight of a sample is that of its class.")
    show("samples of each class", torch.bincount(labels))
    show("class_weights(labels)", per_class)
    for name, weights in (("drawn evenly", torch.ones(1000)), ("drawn by class weight", per_class[labels])):
        drawn = labels[list(WeightedRandomSampler(weights, 3000, generator=seeded()))]
        show(f"of 3000 {name}", torch.bincount(drawn))

    say("The same arguments as torch's, and the same errors.")
    for sampler in (TorchWeightedRandomSampler, WeightedRandomSampler):
        try:
            sampler([0.5, 0.5], num_samples=0)
        except ValueError as error:
            show(f"{sampler.__module__.split('.')[0]}", error)
    show("without replacement", sorted(WeightedRandomSampler([1.0] * 8, 8, replacement=False, generator=seeded())))

    say("An epoch holds no list of its indices: this one has 10^12, and starts at once.")
    endless = WeightedRandomSampler(per_class[labels], 10**12, generator=seeded())
    show("len(sampler)", len(endless))
    show("its first five", list(itertools.islice(endless, 5)))

    say("The table behind it stands on the device of its weights, and a seed draws the same there.")
    table = ste_ops.AliasTable(per_class[labels].to(device))
    show("table.sample_at(seed=0, start=10**9, num_samples=5)", table.sample_at(0, 10**9, 5))


def many_categories(device: torch.device) -> None:
    """torch.multinomial, and so torch's sampler, takes at most 2^24 weights. A data set of web images has more."""
    weights = torch.ones(2**24 + 1)
    try:
        next(iter(TorchWeightedRandomSampler(weights, 2)))
    except RuntimeError as error:
        show("torch, with 2^24 + 1 weights", error)
    drawn = list(WeightedRandomSampler(weights, 2, generator=seeded()))
    show("ste_ops, with 2^24 + 1 weights", drawn)


# Gradients


def gradients(device: torch.device) -> None:
    """A step is flat: its true gradient is 0 and nothing would learn. Ours passes the surrogate's derivative on, and
    is otherwise a node of the graph like any other."""
    values = torch.tensor([-1.5, -0.5, 0.25, 2.0], device=device)

    say(".grad: Clip(1.0) lets the gradient pass where abs(x) <= 1. It adds up until it is cleared.")
    x = values.clone().requires_grad_()
    show("x", x)
    show("heaviside(x)", ste_ops.heaviside(x))
    show("sign(x)", ste_ops.sign(x))
    ste_ops.heaviside(x).sum().backward()
    show("x.grad", x.grad)
    ste_ops.heaviside(x).sum().backward()
    show("x.grad, after a second backward", x.grad)

    say("retain_grad keeps the gradient of what is no leaf.")
    x = values.clone().requires_grad_()
    hidden = 2 * x
    hidden.retain_grad()
    ste_ops.sign(hidden).sum().backward()
    show("hidden.grad, of sign(hidden)", hidden.grad)
    show("x.grad, of hidden = 2 x", x.grad)

    say("no_grad, set_grad_enabled and detach cut the graph; requires_grad_ starts one.")
    with torch.no_grad():
        show("requires_grad under no_grad", ste_ops.sign(x).requires_grad)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            show(f"under set_grad_enabled({enabled})", ste_ops.sign(x).requires_grad)
    show("of sign(x.detach())", ste_ops.sign(x.detach()).requires_grad)
    show("of sign(values), values.requires_grad_()", ste_ops.sign(values.clone().requires_grad_()).requires_grad)
    show("of sign(x).detach()", ste_ops.sign(x).detach().requires_grad)

    say("backward(gradient=): what is no scalar needs the gradient that comes in from above.")
    x = values.clone().requires_grad_()
    ste_ops.heaviside(x).backward(gradient=torch.tensor([1.0, 2.0, 3.0, 4.0], device=device))
    show("x.grad", x.grad)

    say("autograd.grad(create_graph=True): the gradient is a graph itself, and a curve has a second derivative.")
    x = torch.tensor([-0.5, 0.0, 0.5], device=device, requires_grad=True)
    (first,) = torch.autograd.grad(ste_ops.heaviside(x, Sigmoid(4.0)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    show("s'(x) of Sigmoid(4.0)", first)
    show("s''(x)", second)
    weight = torch.tensor([0.5, -0.25], device=device, requires_grad=True)
    (slope,) = torch.autograd.grad((weight * ste_ops.sign(x[:2])).sum(), x, create_graph=True)
    (slope.norm() - 1).square().backward()  # the penalty of WGAN-GP, through a binary layer
    show("weight.grad of a gradient penalty", weight.grad)

    say("autograd.backward takes several roots at once.")
    x = values.clone().requires_grad_()
    roots = [ste_ops.heaviside(x), ste_ops.sign(x)]
    torch.autograd.backward(roots, [torch.ones(4, device=device), torch.full((4,), 10.0, device=device)])
    show("x.grad of 1 heaviside(x) + 10 sign(x)", x.grad)

    say("zero_grad clears: to None, or in place.")
    optimizer = torch.optim.SGD([x], lr=0.1)
    optimizer.zero_grad(set_to_none=False)
    show("x.grad after zero_grad(set_to_none=False)", x.grad)
    optimizer.zero_grad()
    show("x.grad after zero_grad()", x.grad)


# autograd.gradcheck, autograd.functional.jacobian and hessian


def refused(step: Callable[[Tensor], Tensor], surrogate: Clip, x: Tensor) -> list[str]:
    """The checks of check_ste that a step does not pass."""
    failed: list[str] = []
    for _ in ste_ops.testing.CHECKS:
        try:
            ste_ops.testing.check_ste(step, surrogate, x.detach(), name="it", skip=failed)
            break
        except AssertionError as error:  # "check_ste: backward of it at x = ..."
            failed.append(str(error).split()[1])
    return failed


def checks(device: torch.device) -> None:
    """gradcheck compares with differences of the forward, and those of a step are 0: it must fail on every
    straight-through estimator. check_ste takes the differences of the surrogate's primitive in their place."""
    x = torch.tensor([-1.5, -0.5, 0.25, 2.0], dtype=torch.float64, device=device, requires_grad=True)

    say("gradcheck fails, as it must; check_ste passes the right surrogate and refuses a wrong one.")
    try:
        gradcheck(ste_ops.heaviside, x)
    except GradcheckError as error:
        show("gradcheck(heaviside, x)", str(error).split(",")[0])
    report = ste_ops.testing.check_ste(ste_ops.heaviside, Clip(1.0), x.detach())
    show("check_ste(heaviside, Clip(1.0), x) passes", sorted(report.checked))
    show("check_ste(heaviside, Clip(0.4), x) fails at", refused(ste_ops.heaviside, Clip(0.4), x))

    say("jacobian is the surrogate's, on the diagonal. hessian: of Clip alone 0, of a product not, of a curve s''.")
    show("jacobian(sign, x)", jacobian(ste_ops.sign, x))
    show("hessian of sum of sign(x)", hessian(lambda x: ste_ops.sign(x).sum(), x[1:3]))
    show("hessian of sum of x sign(x)", hessian(lambda x: (x * ste_ops.sign(x)).sum(), x[1:3]))
    show("hessian with Sigmoid(4.0)", hessian(lambda x: ste_ops.heaviside(x, Sigmoid(4.0)).sum(), x[1:3]))


# autograd.Function: StraightThroughStep


class StraightThroughStep(torch.autograd.Function):
    """The tutorial's own: it saves all of x, and copies the gradient before it masks it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        grad = grad.clone()
        grad[torch.abs(x) > 1] = 0
        return grad


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def function(device: torch.device) -> None:
    """The tutorial writes its straight-through step as an autograd.Function. heaviside is that step, bit for bit, in
    float32, and saves one bit an element where the class saves 32."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32) * 2**16  # upper halves of float32, ±0 to NaN
    bounds = torch.tensor([1.0, -1.0]).repeat(3)
    bounds[2:] = torch.nextafter(bounds[2:], torch.tensor([2.0, -2.0, 0.0, 0.0]))
    values = torch.cat([patterns.view(torch.float32), bounds]).to(device)
    incoming = torch.randn(len(values), generator=seeded()).to(device)
    results = {}
    for name, step in (("StraightThroughStep", StraightThroughStep.apply), ("ste_ops.heaviside", ste_ops.heaviside)):
        x = values.clone().requires_grad_()
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.nbytes) or t, lambda t: t):
            y = step(x)
        y.backward(incoming)
        results[name] = (y.detach(), x.grad)
        show(f"{name}([-2, -0.5, 0, 0.5, 2])", step(torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], device=device)))
        show(f"saved for backward, {len(values)} elements", f"{sum(saved)} bytes")
    (ours, our_grad), (theirs, their_grad) = results["ste_ops.heaviside"], results["StraightThroughStep"]
    show("values of the same bits", f"{int((bits(ours) == bits(theirs)).sum())} of {len(values)}")
    show("gradients of the same bits", f"{int((bits(our_grad) == bits(their_grad)).sum())} of {len(values)}")

    say("The class is right in float32 alone, and knows neither torch.func nor forward mode.")
    x = torch.tensor([-1.5, -0.5, 0.25, 2.0], dtype=torch.float64, device=device)
    show("check_ste(StraightThroughStep.apply, ...) fails at", refused(StraightThroughStep.apply, Clip(1.0), x))
    show("check_ste(ste_ops.heaviside, ...) fails at", refused(ste_ops.heaviside, Clip(1.0), x))


# clip_grad_norm_, clip_grad_value_


def clipping(device: torch.device) -> None:
    """A surrogate can pass a large gradient many times over. Clipping bounds a step; the arguments are torch's."""
    say("clip_grad_norm_ scales all gradients to one norm together, and returns the norm that they had.")
    for name, clip in (("torch", nn.utils.clip_grad_norm_), ("ste_ops", ste_ops.clip_grad_norm_)):
        show(f"{name}: norm, gradients after", clipped(clip, 6.5, device))
    show("below the bound nothing changes", clipped(ste_ops.clip_grad_norm_, 20.0, device))
    show("norm_type=inf", clipped(lambda p, bound: ste_ops.clip_grad_norm_(p, bound, float("inf")), 6.0, device))

    say("clip_grad_value_ clamps each element by itself.")
    for name, clip in (("torch", nn.utils.clip_grad_value_), ("ste_ops", ste_ops.clip_grad_value_)):
        show(f"{name}: gradients after", clipped(clip, 3.5, device))


def clipped(clip: Callable[..., Any], bound: float, device: torch.device) -> list[Any]:
    """What `clip` returned, and the gradients [3, 4] and [12] after it."""
    parameters = [nn.Parameter(torch.zeros(2, device=device)), nn.Parameter(torch.zeros(1, device=device))]
    for parameter, grad in zip(parameters, ([3.0, -4.0], [12.0]), strict=True):
        parameter.grad = torch.tensor(grad, device=device)
    norm = clip(parameters, bound)
    return [result for result in (norm, *(p.grad for p in parameters)) if result is not None]


SECTIONS: dict[str, tuple[Callable[[torch.device], None], ...]] = {
    "Dataset, TensorDataset, Subset, DataLoader, IterableDataset": (datasets,),
    "SequentialSampler, RandomSampler, SubsetRandomSampler, BatchSampler, DistributedSampler": (samplers,),
    "WeightedRandomSampler, class weights": (imbalance, many_categories),
    ".grad and what makes it": (gradients,),
    "gradcheck, jacobian, hessian": (checks,),
    "autograd.Function: StraightThroughStep": (function,),
    "clip_grad_norm_, clip_grad_value_": (clipping,),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu", help="where the operators compute; default: cpu")
    device = torch.device(parser.parse_args(arguments).device)
    for number, (title, parts) in enumerate(SECTIONS.items(), start=1):
        print(f"{number}. {title}")
        for part in parts:
            say(part.__doc__ or "")
            torch.manual_seed(0)
            part(device)
        print()


if __name__ == "__main__":
    main()
