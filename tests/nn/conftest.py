"""Layers that keep codes of whatever size, and those that keep floats."""

from __future__ import annotations

import pytest

from ste_ops.nn import _kept, _tape


@pytest.fixture
def of_any_size(monkeypatch):
    """Codes are kept of small tensors too."""
    for name in ("LEAST_INPUT", "LEAST_WEIGHT", "LEAST_USES"):
        monkeypatch.setattr(_kept, name, 0)


@pytest.fixture
def of_any_tensor(monkeypatch, of_any_size):
    """A recomputed model decides of small tensors too."""
    monkeypatch.setattr(_tape, "LEAST", 0)


@pytest.fixture
def floats(monkeypatch):
    """Has layers keep floats, as torch does, within the context."""

    def within(call):
        with monkeypatch.context() as patch:
            patch.setattr(_kept, "keeps", lambda *_: False)
            return call()

    return within
