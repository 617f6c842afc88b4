"""Quantized layers under tensor parallelism: real processes over gloo, against the same layers in one process."""

from __future__ import annotations

import pytest
from support import ranks
from support.tensor_parallel_ranks import CASES


@pytest.mark.parametrize("world", CASES)
def test_ranks(world, tmp_path):
    failures = ranks.run(world, tmp_path, {case.__name__: case for case in CASES[world]})
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())
