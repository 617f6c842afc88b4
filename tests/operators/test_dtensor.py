"""The operators on DTensors: real processes over gloo, against the same tensors in one process."""

from __future__ import annotations

import pytest
from support import ranks
from support.dtensor_ranks import CASES, DRAWS, OF_PARAMETERS, OF_X, REFUSED

import ste_ops

# They change lists of gradients in place or return none: tests/clip/test_distributed.py.
LISTS = {"clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm", "fold_grad_clip_"}
LISTS |= {"clip_grad_agc_", "clip_per_sample_", "sr_ste_decay_", "ClipResult", "check_deferred_errors"}


def test_every_operator_has_a_row():
    assert {*OF_X, *OF_PARAMETERS} | DRAWS | {*REFUSED} | LISTS == {*ste_ops.functional.__all__, "round"}


@pytest.mark.parametrize("world", CASES)
def test_ranks(world, tmp_path):
    failures = ranks.run(world, tmp_path, {case.__name__: case for case in CASES[world]})
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())
