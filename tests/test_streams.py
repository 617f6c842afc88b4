"""Every operator on side streams, and on a GPU that is not the current one. Off the GPU the calls come one after the
other on the only stream and device there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from calls import NAMES, Call, assert_same, calls, copies


@contextlib.contextmanager
def busy_stream(device: str) -> Iterator[None]:
    """A new stream, on which what follows waits some milliseconds."""
    if device != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        yield


def samples(name: str, device: str, seed: int) -> list[Call]:
    """All on a GPU; elsewhere one shows that the test runs."""
    return list(calls(name, seed))[: None if device == "cuda" else 1]


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@pytest.mark.parametrize("name", NAMES)
def test_two_streams_at_once(device: str, name: str) -> None:
    """The inputs are complete on their own stream only, and the default stream takes at once what memory is free: an
    operator that launched, allocated or freed on another stream than its own would read or return something else."""
    for first, second in zip(samples(name, device, 0), samples(name, device, 1), strict=True):
        values = [first.on(device), second.on(device)]
        wanted = [copies(first.on(device)()), copies(second.on(device)())]
        late = [second.on(device), first.on(device)]
        synchronize(device)
        out = []
        for call, value in zip(late, values, strict=True):
            with busy_stream(device):
                call.overwrite(value)
                out.append(call())
        taken = [torch.full((512 << k,), 255, dtype=torch.uint8, device=device) for k in range(12) for _ in range(4)]
        synchronize(device)
        assert len(taken) == 48
        for received, expected in zip(out, wanted, strict=True):
            assert_same(received, expected, name)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_on_another_gpu_than_the_current_one(device: str, name: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU is present")
    place = "cuda:1" if device == "cuda" else "cpu"
    for sample in samples(name, device, 0):
        received = sample.on(place)()
        synchronize(place)
        assert {str(t.device) for t in received} <= {place}
        assert_same(received, sample.on("cpu")(), name, exactly=False)
    assert device == "cpu" or torch.cuda.current_device() == 0
