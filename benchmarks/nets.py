"""python -m benchmarks.nets [--nets NAME ...] [--batches 4 64] [--size 64] [--compiled | --bytes] [--out FILE]

Whole training steps: time, bytes kept for the backward, and the most that is allocated during a step. Each net in
float, with the usual straight-through code in plain torch, on our layers, on these behind `recompute_`, and with
Brevitas and torchao where they have such layers and are installed; images contiguous and channels_last. With --compiled
under torch.compile too, where `recompute_` does nothing. Times are medians of rounds in which all take turns.

With --bytes the bytes kept alone, which any machine gives; there "ours, floats kept" is what our layers kept if they
kept floats, as they do where hooks of others are around them.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ste_ops
from benchmarks.memory import kept_bytes
from benchmarks.net_kinds import NETS

RECOMPUTED = "ours, recompute_"
KINDS = ("float", "plain", "ours", RECOMPUTED, "brevitas", "torchao")
ROUNDS = 9


def made(make: Callable[[str], nn.Module], kind: str, x: Tensor) -> nn.Module | None:
    """None where the package has no such layers, or is not here."""
    torch.manual_seed(0)
    try:
        net = make(kind.split(",")[0])
        net(x)
    except (ImportError, LookupError):
        return None
    return ste_ops.nn.recompute_(net, x) if kind == RECOMPUTED else net


def kept_and_peak(forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> tuple[int, int]:
    """Bytes: what is allocated after a forward while its graph lives, and the most within forward and backward."""
    kept = kept_bytes(lambda _: forward(), torch.empty(0))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        backward(forward())
    now = most = 0
    moves = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(moves, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return kept, most


class Trained:
    """A net with its optimizer and a batch."""

    def __init__(self, net: nn.Module, x: Tensor, compiled: bool) -> None:
        self.x = x
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            net = net.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        self.net: Callable[[Tensor], Tensor] = torch.compile(net, fullgraph=True) if compiled else net
        for _ in range(3):
            self.step()

    def forward(self) -> Tensor:
        return self.net(self.x).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()


def nets_of(make: Callable[[str], nn.Module], x: Tensor, compiled: bool) -> Iterator[tuple[str, Trained]]:
    for kind in KINDS:
        net = None if compiled and kind == RECOMPUTED else made(make, kind, x)
        if net is not None:
            try:
                yield kind, Trained(net, x, compiled)
            except torch._dynamo.exc.TorchDynamoException as error:
                print(f"{kind} does not compile: {str(error).splitlines()[0]}", flush=True)


def lines(name: str, batch: int, compiled: bool) -> Iterator[str]:
    make, shape = NETS[name]
    for layout in ("contiguous", "channels_last") if len(shape) == 3 else ("contiguous",):
        x = torch.randn(batch, *shape)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        torch._dynamo.reset()
        trained = dict(nets_of(make, x, compiled))
        times: dict[str, list[float]] = {kind: [] for kind in trained}
        for _ in range(ROUNDS):
            for kind, one in trained.items():
                start = time.perf_counter()
                one.step()
                times[kind].append(time.perf_counter() - start)
        of_plain = statistics.median(times["plain"])
        for kind, one in trained.items():
            one.optimizer.zero_grad()
            kept, peak = kept_and_peak(one.forward, lambda loss: loss.backward())
            step = statistics.median(times[kind])
            mode = "compiled" if compiled else "eager"
            yield (
                f"| {name}, {batch} | {layout} | {mode} | {kind} | {step * 1e3:.1f} | {step / of_plain:.2f} | "
                f"{kept / 2**20:.1f} | {peak / 2**20:.1f} |"
            )


def byte_lines(name: str, batch: int) -> Iterator[str]:
    make, shape = NETS[name]
    x = torch.randn(batch, *shape)
    floats = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    of_float = 0
    for kind, around in [(kind, contextlib.nullcontext()) for kind in KINDS] + [("ours, floats kept", floats)]:
        net = made(make, kind, x)
        if net is None:
            continue
        with around:
            kept = kept_bytes(net, x)
        of_float = of_float or kept
        work = f"{name}, {batch} of {'x'.join(map(str, shape))}"
        yield f"| {work} | {kind} | {kept / 2**20:.1f} | {kept / of_float:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", choices=[*NETS], default=[*NETS])
    parser.add_argument("--batches", nargs="*", type=int, default=[4, 64])
    parser.add_argument("--size", type=int, default=64, help="of the images of a ResNet-18; default: 64")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--bytes", action="store_true", help="no times")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    table = [f"torch {torch.__version__}, {torch.get_num_threads()} threads, ste_ops {ste_ops.__version__}", ""]
    for name, (make, shape) in NETS.items():
        if "ResNet-18" in name:
            NETS[name] = make, (*shape[:1], chosen.size, chosen.size)
    columns = ["net, batch", "kind", "MiB kept", "of float's"]
    if not chosen.bytes:
        columns = ["net, batch", "layout", "mode", "kind", "ms a step", "of plain's", "MiB kept", "MiB at most"]
    table += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    print("\n".join(table), flush=True)
    for name in chosen.nets:
        for batch in chosen.batches:
            modes = (False, True) if chosen.compiled else (False,)
            timed = (line for compiled in modes for line in lines(name, batch, compiled))
            for line in byte_lines(name, batch) if chosen.bytes else timed:
                print(line, flush=True)
                table.append(line)
    if chosen.out:
        chosen.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
