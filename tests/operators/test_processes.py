"""Every public object as an argument of another process, and through a queue."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import multiprocessing
import pickle
from itertools import islice
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch
from torch import Generator, nn
from torch.utils.data import Sampler

import ste_ops
from ste_ops import data, surrogate

LABELS = [0, 0, 1, 1, 1, 2]


class TwoTrees:
    """What a dataset with priorities holds; each tree alone would do."""

    def __init__(self) -> None:
        self.trees = [ste_ops.SumTree(torch.full((300,), float(w))) for w in (1, 2)]
        self.images = torch.full((300,), 7.0)


def seeded() -> Generator:
    return Generator().manual_seed(3)


def samplers() -> list[Sampler]:
    going_on = data.WeightedRandomSampler([1.0, 2.0], 9, generator=seeded())
    next(iter(going_on))
    return [
        data.WeightedRandomSampler([1.0, 2.0], 9, generator=seeded()),
        data.WeightedRandomSampler([1.0, 2.0, 3.0], 3, replacement=False, generator=seeded()),
        data.WeightedBatchSampler([1.0, 2.0], 2, 9, generator=seeded()),
        data.DistributedWeightedSampler([1.0, 2.0], 9, num_replicas=2, rank=1, seed=5),
        data.MPerClassBatchSampler(LABELS, 1, 2, generator=seeded()),
        data.ClassBalancedBatchSampler(LABELS, 3, generator=seeded()),
        going_on,
    ]


def modules() -> list[nn.Module]:
    learned, rounding = ste_ops.nn.LSQ(2), ste_ops.nn.StochasticRound(seeded())
    layers = [
        ste_ops.nn.QuantLinear(3, 2, weight_quantizer=learned, input_quantizer=ste_ops.nn.PACT(bits=4)),
        ste_ops.nn.QuantConv1d(3, 2, 1, weight_quantizer=ste_ops.nn.DoReFaWeight(1)),
        ste_ops.nn.QuantConv2d(3, 2, 1, weight_quantizer=ste_ops.nn.XNORWeight(surrogate.Clip(2.0))),
        ste_ops.nn.QuantConv3d(3, 2, 1, input_quantizer=ste_ops.nn.DoReFaActivation(2)),
        ste_ops.nn.quantize_(nn.Sequential(nn.Linear(3, 2)), weight=ste_ops.nn.BitNetWeight()),
    ]
    clips = [ste_ops.nn.ClipGradientNorm(1.0), ste_ops.nn.ClipGradientValue(1.0)]
    steps = [ste_ops.nn.Sign(), ste_ops.nn.Heaviside(surrogate.Sigmoid(3.0)), ste_ops.nn.Ternary()]
    others = [
        ste_ops.nn.LSQPlus(4),
        ste_ops.nn.FakeQuantize(scale=0.5),
        ste_ops.nn.BitNetActivation(),
        ste_ops.nn.MagnitudeAwareSign(),
        ste_ops.nn.SRSTE(),
    ]
    return [*layers, *clips, *steps, *others, rounding, deployed()]


def deployed() -> nn.Module:
    """A net whose norm is folded and whose layers are packed."""
    options = {"weight_quantizer": ste_ops.nn.Sign(), "input_quantizer": ste_ops.nn.Sign()}
    convolutions = (ste_ops.nn.QuantConv1d, ste_ops.nn.QuantConv2d, ste_ops.nn.QuantConv3d)
    net = nn.ModuleList(nn.Sequential(of(8, 8, 1, **options)) for of in convolutions)
    linear = ste_ops.nn.QuantLinear(8, 8, **options)
    net.append(nn.Sequential(linear, nn.BatchNorm1d(8), ste_ops.nn.QuantLinear(8, 4, **options)).eval())
    ste_ops.nn.fold_batch_norm_(net[-1], torch.randn(4, 8), untrained=True)
    return ste_ops.nn.pack_(net.eval())


def surrogates() -> list[surrogate.Surrogate]:
    return [getattr(surrogate, name)() for name in surrogate.__all__ if name not in ("Custom", "Surrogate")]


def objects() -> list[Any]:
    tensors = [torch.rand(3) for _ in range(2)]
    summary = ste_ops.nn.summary(nn.Sequential(nn.Linear(3, 2)))
    net = ste_ops.nn.recompute_(nn.Sequential(nn.Linear(64, 80), nn.BatchNorm1d(80)), torch.randn(64, 64))
    folded = ste_ops.nn.folded(modules()[-1][-1])
    return [
        ste_ops.SumTree(torch.rand(1000)),
        ste_ops.SumTree(torch.rand(7).bfloat16()),
        TwoTrees(),
        ste_ops.AliasTable(torch.rand(2, 50)),
        ste_ops.ClipResult(tensors[0].sum(), tensors[1], 1.0, (0, 1, 2)),
        summary,
        *summary.rows,
        ste_ops.nn.recomputed(net),
        *ste_ops.nn.recomputed(net),
        folded,
        *folded,
        ste_ops.nn.QuantLinear(3, 2, weight_quantizer=ste_ops.nn.Sign()).weight_codes(),
        *samplers(),
        *modules(),
        *surrogates(),
    ]


def facts(of: Any) -> Any:
    """What an object is and does, in numbers and strings."""
    if isinstance(of, TwoTrees):
        return [*map(facts, of.trees), of.images.tolist()]
    if isinstance(of, (ste_ops.SumTree, ste_ops.AliasTable)):
        return of.sample_at(1, 0, 20).tolist(), of.probabilities().tolist()
    if isinstance(of, Sampler):
        return list(islice(of, 20)), of.state_dict()
    if isinstance(of, nn.Module):
        state = {name: value.tolist() for name, value in of.state_dict().items()}
        generator = getattr(of, "generator", None)
        return repr(of), state, generator and generator.get_state().tolist()
    if isinstance(of, ste_ops.nn.Codes):
        return of.values.tolist(), of.dequantize().tolist(), of.bits
    return dataclasses.asdict(of) if dataclasses.is_dataclass(of) else repr(of)


def child(given: list[Any], more: Queue, answers: Queue) -> None:
    torch.set_num_threads(1)
    # What comes through the queue is asked first: the generators of what was given move on.
    answers.put([facts(of) for of in more.get()])
    answers.put([facts(of) for of in given])


def test_every_kind_of_object_is_there() -> None:
    """What is public and no function; the bases stand for their subclasses."""
    bases = {ste_ops.nn.Quantizer, ste_ops.nn.QuantLayer, ste_ops.nn.PackedLayer, surrogate.Surrogate}
    needs_a_function = {surrogate.Custom}
    of_this_process = {ste_ops.patch_torch}
    rooms = (ste_ops, ste_ops.nn, data, surrogate)
    public = {value for room in rooms for name in room.__all__ if inspect.isclass(value := getattr(room, name))}
    inside = [part for of in modules() for part in of.modules()]
    assert public - bases - needs_a_function - of_this_process <= {type(of) for of in [*objects(), *inside]}


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_every_object_goes_to_another_process(start: str) -> None:
    context = multiprocessing.get_context(start)
    more, answers = context.Queue(), context.Queue()
    given = objects()
    expected = [facts(of) for of in copy.deepcopy(given)]
    process = context.Process(target=child, args=(given, more, answers))
    process.start()
    given[0].update(0, 1e6)  # the child has the tree as it was
    queued = copy.deepcopy(given)
    changed = [facts(of) for of in copy.deepcopy(given)]
    more.put(queued)
    for of, sent, now in zip(given, answers.get(timeout=120), changed, strict=True):
        assert sent == now, f"{type(of).__name__} through a queue"
    for of, sent, before in zip(given, answers.get(timeout=120), expected, strict=True):
        assert sent == before, f"{type(of).__name__} as an argument"
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda of: pickle.loads(pickle.dumps(of))])
def test_every_object_is_copied(copied: Any) -> None:
    for of in objects():
        expected = facts(copy.deepcopy(of))  # first: a shallow copy has the same generator
        assert facts(copied(of)) == expected
