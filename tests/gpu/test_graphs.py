"""CUDA graphs: every operator captured once and replayed on other values. Off the GPU, where nothing can be captured, a
replay is the call again, so that all but the capture runs everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.operator_calls import NAMES, assert_same, calls, copies
from torch import Tensor
from torch.nn.functional import cross_entropy

import ste_ops


class Graph:
    """A call and its outputs, which a replay writes anew. Making it runs the call once."""

    def __init__(self, call: Callable[[], list[Tensor]], device: str) -> None:
        self.call = call
        self.graph = torch.cuda.CUDAGraph() if device == "cuda" else None
        if self.graph is None:
            self.out = call()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self.graph):
            self.out = call()

    def replay(self) -> list[Tensor]:
        if self.graph is not None:
            self.graph.replay()
        else:
            for old, new in zip(self.out, self.call(), strict=True):
                old.untyped_storage().copy_(new.untyped_storage())
        return copies(self.out)


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_replays(device: str, name: str) -> None:
    """With other values in the same memory, and for a draw another seed, it gives what an eager call gives for them."""
    for first, second in zip(calls(name, seed=0), calls(name, seed=1), strict=True):
        static = first.on(device)
        graph = Graph(static, device)
        for values in (second, first):
            static.overwrite(values)
            assert_same(graph.replay(), values.on(device)(), name)


FRESH = """
import torch, ste_ops
p = torch.rand(1000, device="{device}")
torch.cuda.synchronize() if p.is_cuda else None
graph = torch.cuda.CUDAGraph() if p.is_cuda else None
def calls():
    return ste_ops.bernoulli_ste(p), ste_ops.sign(p - 0.5), ste_ops.multinomial(p, 5)
if graph is None:
    drawn, signs, few = calls()
else:
    with torch.cuda.graph(graph):
        drawn, signs, few = calls()
    graph.replay()
assert set(drawn.tolist()) == {{0, 1}}, drawn
assert torch.equal(signs, ste_ops.sign(p - 0.5))
assert len(set(few.tolist())) == 5 and min(few.tolist()) >= 0, few
ste_ops.check_deferred_errors()
print("as an eager call")
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_the_first_launch_of_a_process_is_captured(device: str) -> None:
    """Kernels are loaded and the memory of late errors allocated while the stream is under capture."""
    done = subprocess.run([sys.executable, "-c", FRESH.format(device=device)], capture_output=True, text=True)
    assert done.stdout == "as an eager call\n", done.stderr


# What a draw is made from, and the draw: of so many numbers that two are never equal, from torch's default generator.
DRAWS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "stochastic_round": (lambda ones: ones / 2, ste_ops.stochastic_round),
    "bernoulli_ste": (lambda ones: ones / 2, ste_ops.bernoulli_ste),
    "categorical_ste": (lambda ones: ones.view(-1, 10), ste_ops.categorical_ste),
    "subset_ste": (lambda ones: ones.view(-1, 10), lambda x: ste_ops.subset_ste(x, 3)),
    "multinomial": (torch.clone, lambda w: ste_ops.multinomial(w, 500)),
    "multinomial, with replacement": (torch.clone, lambda w: ste_ops.multinomial(w, 500, True)),
    "AliasTable": (ste_ops.AliasTable, lambda table: table.sample(100)),
    "SumTree": (ste_ops.SumTree, lambda tree: tree.sample(100)),
    "residual_resample": (lambda ones: ones.cumsum(0), lambda w: ste_ops.residual_resample(w, 1000)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_replay_draws_anew(device: str, name: str) -> None:
    make, draw = DRAWS[name]
    source = make(torch.ones(1000, device=device))
    graph = Graph(lambda: [draw(source)], device)
    torch.manual_seed(5)
    first, second = graph.replay(), graph.replay()
    assert not torch.equal(first[0], second[0])
    torch.manual_seed(5)
    assert_same(first, [draw(source)], name)
    assert_same(second, [draw(source)], name)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)
        self.step = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.linear(x, ste_ops.sign(self.first.weight), self.first.bias)
        hidden = ste_ops.lsq(ste_ops.heaviside(hidden, ste_ops.surrogate.ATan()) * hidden, self.step, -8, 7)
        return ste_ops.clip_gradient_norm(self.second(hidden), 0.1)


def test_a_training_step_replays(device: str) -> None:
    def training() -> tuple[Net, Callable[[], list[Tensor]]]:
        torch.manual_seed(0)
        net = Net().to(device)
        x, labels = torch.randn(64, 16).to(device), torch.randint(4, (64,)).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step() -> list[Tensor]:
            optimizer.zero_grad()
            loss = cross_entropy(net(x), labels)
            loss.backward()
            norm = ste_ops.clip_grad_norm_(net.parameters(), 0.05)
            optimizer.step()
            return [loss.detach(), norm]

        return net, step

    (captured, step), (eager, eager_step) = training(), training()
    graph = Graph(step, device)
    received = [graph.replay() for _ in range(3)]
    wanted = [copies(eager_step()) for _ in range(4)][1:]
    for each, expected in zip(received, wanted, strict=True):
        assert_same(each, expected, "loss and norm", exactly=False)
    assert received[0][1] > 0.05
    assert_same(list(captured.parameters()), list(eager.parameters()), "parameters", exactly=False)
