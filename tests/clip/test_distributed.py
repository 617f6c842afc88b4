"""Clipping on several machines: real processes over gloo, against the same gradients on one."""

from __future__ import annotations

import pytest
from support import clip_each_ranks, clip_ranks, ranks


@pytest.mark.parametrize("world", clip_ranks.CASES)
def test_ranks(world, tmp_path):
    cases = [*clip_ranks.CASES[world], *clip_each_ranks.CASES[world]]
    failures = ranks.run(world, tmp_path, {case.__name__: case for case in cases})
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())
