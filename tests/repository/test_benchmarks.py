"""The benchmark of a busy machine, without its spinning processes."""

from __future__ import annotations

import pytest
import torch

busy = pytest.importorskip("benchmarks.busy", reason="runs in a checkout only")


def test_every_call_of_the_busy_benchmark_runs_beside_torchs():
    calls = list(busy.calls())
    assert len({call.work for call in calls}) == len(calls) > 15
    for call in calls:
        ours = call.ours()
        if call.other is not None and isinstance(ours, torch.Tensor):
            assert call.other().shape == ours.shape


def test_means_put_the_number_of_threads_back(monkeypatch):
    monkeypatch.setattr(busy, "ROUND", 1e-4)
    before, seen = torch.get_num_threads(), set()
    means = busy.means(lambda: seen.add(torch.get_num_threads()), 1e-3)
    assert (seen, torch.get_num_threads()) == ({1, 2}, before)
    assert means.one > 0 < means.two
    assert busy.Means(1e-4, 1.4e-4).reached
    assert not busy.Means(1e-4, 1.6e-4).reached
    assert busy.Means(3e-3, 1.0).reached
