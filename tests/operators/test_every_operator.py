"""Every registered operator called with the arguments of its row: the same bits twice, and what the CPU kernels give.

Short, and it reaches every kernel: `make gpu-proof` runs the parameter `cuda` under compute-sanitizer.
"""

from __future__ import annotations

import pytest
from support.operator_arguments import ARGUMENTS, WITHOUT_TENSORS
from support.operator_calls import NAMES, assert_same, calls

from ste_ops import _library
from ste_ops._library import ops


def test_no_operator_lacks_arguments() -> None:
    assert set(ARGUMENTS) == set(_library._operator_names("ste_ops")) - WITHOUT_TENSORS


@pytest.mark.parametrize("name", NAMES)
def test_twice_and_as_the_cpu_kernels(device: str, name: str) -> None:
    rows = list(calls(name, seed=0))
    received = [(call.on(device)(), call.on(device)()) for call in rows]
    namespace = ops.namespace
    ops.use("ste_ops")
    expected = [call.on("cpu")() for call in rows]
    ops.use(namespace)
    for (first, again), wanted in zip(received, expected, strict=True):
        assert_same(again, first, f"{name} again")
        assert_same(first, wanted, f"{name} and the CPU kernel", exactly=False)
