"""Sections 1 to 3 of examples/tutorial.py: datasets, samplers, weights."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
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
from tutorial_page import say, seeded, show

import ste_ops
from ste_ops.data import DistributedWeightedSampler, WeightedBatchSampler, WeightedRandomSampler, class_weights

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

    say("BatchSampler groups ours as it groups its own; WeightedBatchSampler draws the same batches whole.")
    batches = BatchSampler(WeightedRandomSampler(weights, 10, generator=seeded()), batch_size=4, drop_last=False)
    show("BatchSampler(WeightedRandomSampler, 4)", list(batches))
    whole = WeightedBatchSampler(weights, batch_size=4, num_samples=10, generator=seeded())
    show("WeightedBatchSampler(weights, 4)", list(whole))
    show("the next epoch in a DataLoader", list(DataLoader(tens, batch_sampler=whole)))
    show("len(tens.asked): calls of __getitems__", len(tens.asked))

    say("DistributedSampler deals a shuffled set out to the ranks; DistributedWeightedSampler one stream of draws.")
    for rank in range(2):
        show(f"DistributedSampler, rank {rank} of 2", list(DistributedSampler(tens, num_replicas=2, rank=rank)))
    for ranks in (1, 2):
        for rank in range(ranks):
            sampler = DistributedWeightedSampler(weights, 12, num_replicas=ranks, rank=rank)
            show(f"DistributedWeightedSampler, rank {rank} of {ranks}", list(sampler))
    sampler.set_epoch(1)  # as DistributedSampler: without it every epoch is the same
    show("rank 1 of 2, after set_epoch(1)", list(sampler))

    say("Stopped after 6 of 12 draws on two ranks, the epoch goes on on three. The state is a seed and a place.")
    sampler = DistributedWeightedSampler(weights, 12, num_replicas=2, rank=0)
    show("rank 0 of 2, until then", list(itertools.islice(sampler, 3)))
    state = sampler.state_dict()
    show("state['position']", state["position"])
    for rank in range(3):
        resumed = DistributedWeightedSampler(weights, 12, num_replicas=3, rank=rank)
        resumed.load_state_dict(state)
        show(f"rank {rank} of 3, the rest", list(resumed))


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
