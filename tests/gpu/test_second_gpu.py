"""Every operator on a GPU that is not the current one. On the CPU it is called there, to show that the test runs."""

from __future__ import annotations

import pytest
import torch
from support.operator_calls import NAMES, assert_same, some


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_on_another_gpu_than_the_current_one(device: str, name: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU is present")
    place = "cuda:1" if device == "cuda" else "cpu"
    for sample in some(name, 0, device):
        received = sample.on(place)()
        assert {str(t.device) for t in received} <= {place}
        assert_same(received, sample.on("cpu")(), name, exactly=False)
    assert device == "cpu" or torch.cuda.current_device() == 0
