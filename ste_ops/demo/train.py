"""A binary network and its training, the same code for the native operators and for the reference."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

import ste_ops
from ste_ops._names import show_public_names
from ste_ops.demo.data import CLASSES, Digits, is_rare

HIDDEN = 64
BATCH = 64
LEARNING_RATE = 1e-2
MAX_NORM = 1.0


class ReferenceSampler(Sampler[int]):
    """`ste_ops.data.WeightedRandomSampler` on the reference: from a generator of the same state, the same draws."""

    def __init__(self, weights: Tensor, num_samples: int, generator: Generator) -> None:
        self.weights, self.num_samples, self.generator = weights, num_samples, generator

    def __iter__(self) -> Iterator[int]:
        draws = ste_ops.reference.multinomial(self.weights, self.num_samples, True, generator=self.generator)
        return iter(draws.tolist())

    def __len__(self) -> int:
        return self.num_samples


@dataclass(frozen=True)
class Operators:
    """The operators of a run: native ones, or those of the reference."""

    name: str
    sign: Callable[[Tensor], Tensor]
    clip_grad_norm_: Callable[..., Tensor]
    sampler: Callable[..., Sampler[int]]


NATIVE = Operators("native", ste_ops.sign, ste_ops.clip_grad_norm_, ste_ops.data.WeightedRandomSampler)
REFERENCE = Operators("reference", ste_ops.reference.sign, ste_ops.reference.clip_grad_norm_, ReferenceSampler)
# Hardtanh has as its derivative what `sign` passes, and leaves weights as they are, which a step clamps to its bounds.
FLOAT = replace(NATIVE, name="float", sign=nn.functional.hardtanh)


class BinaryLinear(nn.Module):
    """A linear layer that sees only the signs of its weights; the optimizer moves the floats behind them."""

    def __init__(self, inputs: int, outputs: int, operators: Operators) -> None:
        super().__init__()
        self.operators = operators
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.operators.sign(self.weight))

    @torch.no_grad()
    def clamp_(self) -> None:
        # BinaryNet (arXiv:1602.02830, section 1.5): beyond 1 a weight gets no gradient and would never come back.
        self.weight.clamp_(-1, 1)


class BinaryNet(nn.Module):
    """Three binary layers, a batch normalization after each, and signs in between."""

    def __init__(self, inputs: int, operators: Operators, hidden: int = HIDDEN) -> None:
        super().__init__()
        sizes = [inputs, hidden, hidden, CLASSES]
        self.linear = nn.ModuleList(BinaryLinear(a, b, operators) for a, b in itertools.pairwise(sizes))
        self.norm = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])
        self.operators = operators

    def forward(self, x: Tensor) -> Tensor:
        for layer, (linear, norm) in enumerate(zip(self.linear, self.norm, strict=True)):
            x = norm(linear(x if layer == 0 else self.operators.sign(x)))
        return x

    def layers(self) -> list[BinaryLinear]:
        return [module for module in self.modules() if isinstance(module, BinaryLinear)]

    def use(self, operators: Operators) -> None:
        self.operators = operators
        for layer in self.layers():
            layer.operators = operators


@dataclass
class Run:
    """One training, epoch by epoch, and what was seen on the way."""

    operators: Operators
    weighted: bool
    net: BinaryNet
    optimizer: torch.optim.Optimizer
    schedule: Any
    batches: DataLoader
    dataset: Digits
    losses: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    rare_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    drawn: int = 0
    rare_drawn: int = 0

    @property
    def name(self) -> str:
        return f"{self.operators.name}, {'weighted' if self.weighted else 'plain'} sampler"

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(images, labels)
        loss.backward()
        self.operators.clip_grad_norm_(self.net.parameters(), MAX_NORM)
        self.optimizer.step()
        for layer in self.net.layers():
            layer.clamp_()
        return loss.detach()

    def epoch(self) -> Iterator[None]:
        """Yields after every training step."""
        self.net.train()
        losses = []
        for images, labels in self.batches:
            self.drawn += len(labels)
            self.rare_drawn += int(is_rare(labels).sum())
            images, labels = images.to(self.device), labels.to(self.device)
            wait_for(self.device)
            start = time.perf_counter()
            loss = self.step(images, labels)
            wait_for(self.device)
            self.seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
            yield
        self.schedule.step()
        self.losses.append(sum(losses) / len(losses))
        self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> None:
        self.net.eval()
        labels = self.dataset.test_labels
        right = self.net(self.dataset.test_images.to(self.device)).argmax(1).cpu() == labels
        self.accuracy.append(right.double().mean().item())
        self.rare_accuracy.append(right[is_rare(labels)].double().mean().item())

    def saved_bytes(self) -> tuple[int, int]:
        """The bytes that one training step keeps for its backward: in all, and by the calls of `sign` among it."""
        images, labels = (part.to(self.device) for part in next(iter(self.batches)))
        run = replace(self, net=copy.deepcopy(self.net).train())  # whose norms take this batch into their statistics
        everything, of_sign = SavedBytes(run.net, images), SavedBytes(run.net, images)
        loss = everything.during(lambda: run.loss(images, labels))
        run.net.use(replace(self.operators, sign=lambda x: of_sign.during(lambda: self.operators.sign(x))))
        other = run.loss(images, labels)  # both graphs stay alive, or a storage's address could come twice
        del loss, other
        return everything.total, of_sign.total


class SavedBytes:
    """Counts each storage that autograd keeps once; parameters and the input live without it and are left out."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.apart = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), images]}
        self.storages: dict[int, int] = {}

    def during(self, call: Callable[[], Tensor]) -> Tensor:
        with saved_tensors_hooks(self._pack, lambda tensor: tensor):
            return call()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.apart:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prepare(
    dataset: Digits, operators: Operators, weighted: bool, epochs: int, seed: int, device: str, hidden: int = HIDDEN
) -> Run:
    labels = dataset.train_labels
    draws = Generator().manual_seed(seed)
    sampler: Sampler[int]
    if weighted:
        weights = ste_ops.data.class_weights(labels)[labels]
        sampler = operators.sampler(weights, len(labels), generator=draws)
    else:
        sampler = RandomSampler(labels, generator=draws)
    batches = DataLoader(
        TensorDataset(dataset.train_images, labels),
        batch_size=min(BATCH, len(labels)),
        sampler=sampler,
        drop_last=True,  # a batch of one has no variance to normalize by
        generator=Generator().manual_seed(seed),
    )
    torch.manual_seed(seed)
    net = BinaryNet(dataset.train_images.shape[1], operators, hidden).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    return Run(operators, weighted, net, optimizer, schedule, batches, dataset)


def compare(dataset: Digits, epochs: int, seed: int, device: str) -> list[Run]:
    """The three runs."""
    choices = [(NATIVE, True), (REFERENCE, True), (NATIVE, False)]
    runs = [prepare(dataset, operators, weighted, epochs, seed, device) for operators, weighted in choices]
    train(runs, epochs)
    return runs


def train(runs: list[Run], epochs: int) -> None:
    """An epoch of each run in turn: whatever else the machine does slows all of them alike."""
    from tqdm import tqdm

    with tqdm(total=epochs * sum(len(run.batches) for run in runs), unit="step") as bar:
        for _ in range(epochs):
            for run in runs:
                bar.set_description(f"{run.name:27}")
                for _ in run.epoch():
                    bar.update()


show_public_names(__name__)
