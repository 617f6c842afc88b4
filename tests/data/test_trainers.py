"""Samplers under trainers on two ranks: the loops of docs/trainers.md draw each index once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from support import ranks
from support.trainer_ranks import CASES


def test_trainers(tmp_path: Path) -> None:
    cases = [case for package in CASES if not package or importlib.util.find_spec(package) for case in CASES[package]]
    failures = ranks.run(2, tmp_path, {case.__name__: case for case in cases})
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())
