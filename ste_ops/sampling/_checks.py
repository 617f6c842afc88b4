"""What every sampling operator checks of its arguments, and the seed that it draws."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
INTEGER = frozenset(
    {torch.bool, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
MOST = 2**40


def check_logits(operator: str, logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"{operator}: logits must be a tensor, got {type(logits).__name__}")
    if logits.dtype not in FLOATING:
        raise TypeError(f"{operator}: logits must be float64, float32, bfloat16 or float16, got {logits.dtype}")
    if logits.dim() == 0:
        raise ValueError(f"{operator}: logits must have at least one dimension, got shape ()")
    if logits.shape[-1] == 0:
        raise ValueError(f"{operator}: logits must have at least one category, got shape {tuple(logits.shape)}")


def check_tau(operator: str, tau: float) -> float:
    if isinstance(tau, bool) or not isinstance(tau, (int, float)):
        raise TypeError(f"{operator}: tau must be a number, got {type(tau).__name__}")
    if not 1e-30 <= tau <= 1e30:
        raise ValueError(f"{operator}: tau must be in [1e-30, 1e30], got {tau}")
    return float(tau)


def as_weights(operator: str, weights: Tensor, error: type[Exception]) -> Tensor:
    """Weights as the native table takes them, or the operator's error."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{operator}: weights must be a tensor, got {type(weights).__name__}")
    if weights.dim() not in (1, 2):
        raise error(f"{operator}: weights must be 1-D or 2-D, got shape {tuple(weights.shape)}")
    if weights.shape[-1] == 0:
        raise error(f"{operator}: weights must not be empty, got shape {tuple(weights.shape)}")
    if weights.dtype in INTEGER:
        return weights.to(torch.float64)
    if weights.dtype not in FLOATING:
        allowed = "float64, float32, bfloat16, float16, an integer dtype or bool"
        raise error(f"{operator}: weights must be {allowed}, got {weights.dtype}")
    return weights.detach()


def check_count(operator: str, name: str, value: int, least: int, error: type[Exception]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{operator}: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise error(f"{operator}: {name} must be >= {least}, got {value}")
    if value > MOST:
        raise error(f"{operator}: {name} must be at most 2**40, got {value}")


def draw_seed(operator: str, device: torch.device, generator: Generator | None) -> Tensor:
    """A seed drawn on `device`, so that neither the host nor a CUDA graph waits for it."""
    if generator is None:
        return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device)
    if not isinstance(generator, Generator):
        raise TypeError(f"{operator}: generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise RuntimeError(
            f"{operator}: generator must be on the device of the draws, {device}, got one on {generator.device}"
        )
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def refuse_invalid(operator: str, weights: Tensor, states: Tensor, error: type[Exception]) -> None:
    """Raises what a native pass found wrong with the weights; reads `states`, one number a row, on the host.

    A number above 0 says that all is well, 0 that every weight is zero, -1 - i that weight i is the first invalid one.
    """
    if int(states if states.dim() == 0 else states.amin() if states.numel() else 1) > 0:
        return
    rows = states.reshape(-1)
    row = int((rows <= 0).to(torch.int8).argmax())
    state = int(rows[row])
    if state == 0:
        where = "" if weights.dim() == 1 else f" in row {row}"
        raise error(f"{operator}: weights must have a positive sum, got only zeros{where}")
    index = -1 - state
    value = weights[index].item() if weights.dim() == 1 else weights[row, index].item()
    place = index if weights.dim() == 1 else (row, index)
    kind = "non-negative" if -float("inf") < value < 0 else "finite and non-negative"
    raise error(f"{operator}: weights must be {kind}, got {value} at index {place}")
