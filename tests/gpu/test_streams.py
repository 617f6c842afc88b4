"""Every operator on two streams at once. Off the GPU the calls come one after the other on the only stream there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from support.operator_calls import NAMES, assert_same, copies, some


@contextlib.contextmanager
def busy_stream(device: str) -> Iterator[None]:
    """A new stream, on which what follows waits some milliseconds."""
    if device != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_two_streams_at_once(device: str, name: str) -> None:
    """The inputs are complete on their own stream only, and the default stream takes at once what memory is free: an
    operator that launched, allocated or freed on another stream than its own would read or return something else."""
    for first, second in zip(some(name, 0, device), some(name, 1, device), strict=True):
        values = [first.on(device), second.on(device)]
        wanted = [copies(first.on(device)()), copies(second.on(device)())]
        late = [second.on(device), first.on(device)]
        if device == "cuda":
            torch.cuda.synchronize()
        out = []
        for call, value in zip(late, values, strict=True):
            with busy_stream(device):
                call.overwrite(value)
                out.append(call())
        taken = [torch.full((512 << k,), 255, dtype=torch.uint8, device=device) for k in range(12) for _ in range(4)]
        if device == "cuda":
            torch.cuda.synchronize()
        assert len(taken) == 48
        for received, expected in zip(out, wanted, strict=True):
            assert_same(received, expected, name)
