"""A command in a process group of its own, with a time limit and all that it says in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """`code` is None where the time limit ended it."""

    code: int | None
    seconds: float
    output: str


def run(command: Sequence[object], log: Path, limit: float, cwd: Path, env: Mapping[str, str]) -> Done:
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    started = time.monotonic()
    with open(log, "a") as file:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        start = file.tell()
        # Of its own group, so that compilers and workers that it starts end with it.
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, env=env, start_new_session=True
        )
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(max(limit, 0.1))
        finally:
            _end(process)
    seconds = time.monotonic() - started
    return Done(code, seconds, log.read_bytes()[start:].decode(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)  # also where the command itself has ended and left others
        except ProcessLookupError:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    process.wait()
