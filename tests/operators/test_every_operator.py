"""Every registered operator called with the samples: the same bits twice, and what the CPU kernels give.

Short, and it reaches every kernel: `make gpu-proof` runs the parameter `cuda` under compute-sanitizer.
"""

from __future__ import annotations

import pytest
from support.operator_arguments import SAMPLES, WITHOUT_TENSORS
from support.operator_calls import NAMES, assert_same, calls

from ste_ops import _library
from ste_ops._library import ops


def test_no_operator_lacks_a_sample() -> None:
    assert set(SAMPLES) == set(_library._operator_names("ste_ops")) - WITHOUT_TENSORS


@pytest.mark.parametrize("name", NAMES)
def test_twice_and_as_the_cpu_kernels(device: str, name: str) -> None:
    samples = list(calls(name, seed=0))
    received = [(sample.on(device)(), sample.on(device)()) for sample in samples]
    namespace = ops.namespace
    ops.use("ste_ops")
    expected = [sample.on("cpu")() for sample in samples]
    ops.use(namespace)
    for (first, again), wanted in zip(received, expected, strict=True):
        assert_same(again, first, f"{name} again")
        assert_same(first, wanted, f"{name} and the CPU kernel", exactly=False)
