"""Recomputed models over several processes."""

from __future__ import annotations

from support import ranks
from support.recompute_ranks import CASES


def test_two_ranks(tmp_path):
    assert ranks.run(2, tmp_path, CASES) == {}
