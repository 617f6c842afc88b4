"""The seed that every draw takes from a generator, and the random bits that follow from it."""

from __future__ import annotations

import sys
import threading
from types import FrameType

import torch
from torch import Generator, Tensor

from ste_ops._torch import current_backward

# Seeds are below it.
SEEDS = 2**63 - 1
MASK32 = 2**32 - 1
MASK64 = 2**64 - 1


def check_generator(operator: str, generator: object) -> None:
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"{operator}: generator must be a torch.Generator or None, got {type(generator).__name__}")


def draw_seed(operator: str, device: torch.device, generator: Generator | None) -> Tensor:
    """A seed drawn on `device`, so that neither the host nor a CUDA graph waits for it."""
    if generator is None:
        return torch.randint(SEEDS, (1,), device=device)  # int64, whatever the default dtype is
    _check_source(operator, device, generator)
    return torch.randint(SEEDS, (1,), device=device, generator=generator)


_thread = threading.local()
_CPU = torch.device("cpu")


def seed_of_thread(operator: str, generator: Generator | None) -> Tensor:
    """What `draw_seed` would draw on the CPU, in half the time.

    Every call of a thread draws it in the same tensor, so it is for what reads it at once.
    """
    if generator is not None:
        quickly = type(generator) is Generator and generator.device == _CPU and current_backward() < 0
        if not quickly:
            _check_source(operator, _CPU, generator)
    held: Tensor | None = getattr(_thread, "seed", None)
    if held is None:
        with torch.inference_mode(False):
            held = _thread.seed = torch.empty(1, dtype=torch.int64, device=_CPU)
    return held.random_(SEEDS) if generator is None else held.random_(SEEDS, generator=generator)


def _check_source(operator: str, device: torch.device, generator: Generator) -> None:
    """Refuses a generator of another device, or one that has gone on since the call that is computed again."""
    if type(generator) is not Generator:
        check_generator(operator, generator)
    if generator.device.type != device.type:
        raise RuntimeError(
            f"{operator}: generator must be on the device of the draws, {device}, got one on {generator.device}"
        )
    if not torch.compiler.is_compiling() and current_backward() >= 0 and recomputed():
        raise RuntimeError(
            f"{operator}: generator must be None in what torch.utils.checkpoint computes again, got a generator, which "
            "has gone on since and would draw other values; torch's default generator is put back for it"
        )


def recomputed() -> bool:
    """Whether torch.utils.checkpoint runs a forward again; asked within a backward alone.

    A hook or a Function may draw in a backward too, which is no repetition; so the calls between here and the engine
    are asked whose they are.
    """
    frame: FrameType | None = sys._getframe()
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
