"""Errors in values that a CUDA kernel finds while the host is ahead: noted on the device, raised by a later call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import ste_ops
from ste_ops._library import ops

LATE = r" \(in an earlier call on this device, for which the host did not wait\)$"
NAN = float("nan")

FAULTS = [
    ([1.0, -0.5], True, r"weights must be non-negative, got -0\.5 at index 1"),
    ([1.0, -0.5], False, r"weights must be non-negative, got -0\.5 at index 1"),
    ([[1.0, 1.0], [NAN, -1.0]], True, r"weights must be finite and non-negative, got nan at index \(1, 0\)"),
    ([[1.0, 1.0], [NAN, -1.0]], False, r"weights must be finite and non-negative, got nan at index \(1, 0\)"),
    ([0.0, 0.0], True, "weights must have a positive sum, got only zeros"),
    ([[1.0, 1.0], [0.0, 0.0]], False, "weights must have a positive sum, got only zeros in row 1"),
    ([1.0, 0.0], False, "num_samples must be at most 1, the number of positive weights, without replacement, got 2"),
    ([[1.0, 1.0], [0.0, 1.0]], False, r"num_samples must be at most 1, the number of positive weights in row 1, .* 2$"),
]


@pytest.fixture
def late(device: str) -> Iterator[str]:
    """A device on which errors come late; no test leaves one behind."""
    if device == "cpu" and ops.namespace == "ste_ops":
        pytest.skip("the CPU kernels raise at once")
    yield device
    ste_ops.check_deferred_errors(device)


@pytest.mark.parametrize(("weights", "replacement", "message"), FAULTS)
def test_a_later_call_raises(late: str, weights: list, replacement: bool, message: str) -> None:
    bad, good = torch.tensor(weights, device=late), torch.ones(3, device=late)
    pattern = "^multinomial: " + message.removesuffix("$") + LATE
    drawn = ste_ops.multinomial(bad, 2, replacement)
    assert (drawn.reshape(-1, 2)[-1] == -1).any()
    with pytest.raises(RuntimeError, match=pattern):
        ste_ops.check_deferred_errors(late)
    ste_ops.check_deferred_errors(late)  # once
    ste_ops.multinomial(bad, 2, replacement)
    if late == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match=pattern):
        ste_ops.multinomial(good, 1, not replacement)
    assert (ste_ops.multinomial(good, 3) >= 0).all()


def test_bernoulli_reports(late: str) -> None:
    p = torch.full((100,), 0.5, device=late)
    p[70] = 1.5
    assert ste_ops.bernoulli_ste(p).isnan().sum() == 1
    with pytest.raises(RuntimeError, match=r"^bernoulli_ste: p must be in \[0, 1\], got 1\.5 at index 70" + LATE):
        ste_ops.check_deferred_errors(late)


def test_the_first_error_stays(late: str) -> None:
    seed = torch.tensor([1], device=late)
    one = torch.ones((), dtype=torch.int64, device=late)
    w = torch.tensor([1.0, -3.0], device=late)
    assert ops.refuse_states(w, -2 * one, "first") == -2
    with pytest.raises(RuntimeError, match=r"^first: weights must be non-negative, got -3\.0 at index 1"):
        ops.multinomial_without_replacement(w, seed, 1, "multinomial")
    assert ops.refuse_states(w, 0 * one, "second") == 0
    with pytest.raises(RuntimeError, match=r"^second: weights must have a positive sum"):
        ste_ops.check_deferred_errors(late)


@pytest.mark.parametrize("rows", [450, 5000])  # one block searches them, or several
def test_of_a_call_the_first_row_is_named(late: str, rows: int) -> None:
    w = torch.ones(rows, 3, device=late)
    bad = [rows - 50, rows // 2 - 17, rows - 99]
    w[bad, 1] = -1
    for draw in (ste_ops.multinomial, ste_ops.systematic_resample) if rows < 1000 else ():
        draw(w, 2)
        with pytest.raises(RuntimeError, match=rf"at index \({bad[1]}, 1\)"):
            ste_ops.check_deferred_errors(late)
    states = torch.arange(1, rows + 1, device=late)
    assert torch.equal(ops.refuse_states(w, states, "a test"), states)
    states[bad] = -2
    assert torch.equal(ops.refuse_states(w, states, "a test"), states)
    with pytest.raises(RuntimeError, match=rf"at index \({bad[1]}, 1\)"):
        ste_ops.check_deferred_errors(late)


@pytest.mark.parametrize("replacement", [True, False])
def test_compiled_draws_report(late: str, replacement: bool) -> None:
    def draw(w: Tensor) -> Tensor:
        return ste_ops.multinomial(w, 2, replacement) * 2

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert (compiled(torch.ones(4, device=late)) >= 0).all()
    assert compiled(torch.tensor([1.0, 2.0, 3.0, -1.0], device=late)).tolist() == [-2, -2]
    with pytest.raises(RuntimeError, match=r"^multinomial: .* got -1\.0 at index 3 \(in an earlier call"):
        ste_ops.check_deferred_errors(late)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_cpu_raises_at_once_when_compiled(replacement: bool) -> None:
    compiled = torch.compile(lambda w: ste_ops.multinomial(w, 2, replacement), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"multinomial: weights must be non-negative, got -1\.0 at index 3$"):
        compiled(torch.tensor([1.0, 2.0, 3.0, -1.0]))


def test_nothing_is_deferred_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="multinomial: weights must have a positive sum, got only zeros"):
        ste_ops.multinomial(torch.zeros(3), 1)
    ste_ops.check_deferred_errors()
    ste_ops.check_deferred_errors("cpu")


@pytest.mark.parametrize("value", [-0.5, -2.0, -1e-7, -1e5, -1e20, -0.1, -5e-324, -float("inf"), NAN])
def test_values_are_printed_as_python_does(value: float) -> None:
    w = torch.tensor([value, 1.0], dtype=torch.float64)
    with pytest.raises(RuntimeError) as caught:
        ste_ops.multinomial(w, 1)
    assert f"got {value} at index 0" in str(caught.value)


def test_states_are_checked(device: str) -> None:
    w = torch.ones(2, 3, device=device)
    for states, message in [
        (torch.ones(3, dtype=torch.int64, device=device), "states must hold one int64 for each of 2 rows"),
        (torch.ones(2, dtype=torch.int32, device=device), "states must hold one int64 for each of 2 rows"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.refuse_states(w, states, "multinomial")
    states = torch.tensor([4, 9], device=device)
    assert torch.equal(ops.refuse_states(w, states, "multinomial"), states)
