"""The seed that every draw takes from a generator, and the random bits that follow from it."""

from __future__ import annotations

import sys

import torch
from torch import Generator, Tensor

from ste_ops._torch import current_backward

MASK32 = 2**32 - 1
MASK64 = 2**64 - 1


def check_generator(operator: str, generator: object) -> None:
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"{operator}: generator must be a torch.Generator or None, got {type(generator).__name__}")


def draw_seed(operator: str, device: torch.device, generator: Generator | None) -> Tensor:
    """A seed drawn on `device`, so that neither the host nor a CUDA graph waits for it."""
    if generator is None:
        return torch.randint(2**63 - 1, (1,), device=device)  # int64, whatever the default dtype is
    check_generator(operator, generator)
    if generator.device.type != device.type:
        raise RuntimeError(
            f"{operator}: generator must be on the device of the draws, {device}, got one on {generator.device}"
        )
    if not torch.compiler.is_compiling() and recomputed():
        raise RuntimeError(
            f"{operator}: generator must be None in what torch.utils.checkpoint computes again, got a generator, which "
            "has gone on since and would draw other values; torch's default generator is put back for it"
        )
    return torch.randint(2**63 - 1, (1,), device=device, generator=generator)


def recomputed() -> bool:
    """Whether torch.utils.checkpoint runs a forward again, within a backward.

    A hook or a Function may draw in a backward too, which is no repetition; so the calls between here and the engine
    are asked whose they are.
    """
    frame = sys._getframe() if current_backward() >= 0 else None
    while frame is not None and frame.f_globals.get("__name__") != "torch.autograd.graph":
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11), on 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def random_bits(seed: int, stream: int, index: int) -> tuple[int, int]:
    """Draw number `index` of `stream` under `seed`: two numbers of 64 random bits."""
    words = philox((index & MASK32, index >> 32, stream & MASK32, stream >> 32), (seed & MASK32, seed >> 32 & MASK32))
    return words[0] | words[1] << 32, words[2] | words[3] << 32
