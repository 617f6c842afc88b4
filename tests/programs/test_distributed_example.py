"""examples/distributed_digits.py: killed on two ranks it goes on on three, and DDP's checkpoint goes on under FSDP2."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import ranks

from examples import distributed_digits as example

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds, on a machine that does much else
DRAWS, BATCH, EVERY = 1501, 8, 10


def start(world: int, folder: Path, *options: str) -> subprocess.Popen:
    """torchrun takes a free port by itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += [str(ROOT / "examples" / "distributed_digits.py"), "--folder", str(folder), "--record", *options]
    command += ["--draws", str(DRAWS), "--batch", str(BATCH), "--every", str(EVERY)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(folder / f"{world}.txt", "w") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def records(folder: Path, world: int) -> list[list[dict]]:
    """What each rank has written, line by line; a killed one may have left half a line."""
    files = [folder / f"rank-{rank}-of-{world}.jsonl" for rank in range(world)]
    texts = [file.read_text() if file.exists() else "" for file in files]
    return [[json.loads(line) for line in text.split("\n")[:-1]] for text in texts]


def drawn(folder: Path, world: int, epoch: int) -> list[list[int]]:
    return [[i for line in lines if line["epoch"] == epoch for i in line["drawn"]] for lines in records(folder, world)]


def interleaved(shares: list[list[int]]) -> list[int]:
    """The stream that the ranks have read together, as far as all have come."""
    return [i for draw in zip(*shares, strict=False) for i in draw]


def stands(checkpoint: Path) -> tuple[int, int, int]:
    """Steps of the optimizer, the sampler's epoch and position."""
    state = torch.load(checkpoint, weights_only=True)
    steps = {int(parameter["step"]) for parameter in state["optimizer"]["state"].values()}
    assert len(steps) == 1
    return steps.pop(), state["sampler"]["epoch"], state["sampler"]["position"]


def kill(folder: Path, run: subprocess.Popen) -> None:
    """The ranks at once, as a machine that goes down; torchrun sees them gone and ends."""
    for pid in {lines[-1]["pid"] for lines in records(folder, 2) if lines}:
        os.kill(pid, signal.SIGKILL)
    assert run.wait(timeout=LIMIT) != 0


def wait_for(condition, run: subprocess.Popen, output: Path) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert run.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)


def test_killed_on_two_ranks_and_resumed_on_three(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    # A worker fetches ahead: the sampler has drawn more than training has used.
    run = start(2, tmp_path, "--epochs", "1000", "--workers", "1")
    try:
        wait_for(checkpoint.exists, run, tmp_path / "2.txt")
        kill(tmp_path, run)
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait(timeout=LIMIT)

    steps, epoch, position = stands(checkpoint)
    labels = example.dataset_of(0).train_labels
    sampler = example.sampler_of(labels, DRAWS, 0, num_replicas=1, rank=0)
    sampler.set_epoch(epoch)
    stream = list(sampler)
    before = interleaved(drawn(tmp_path, 2, epoch))
    used, lost = before[:position], before[position:]
    assert used == stream[:position]
    assert position == (steps - epoch * math.ceil(DRAWS / 2 / BATCH)) * 2 * BATCH  # what the saved weights have seen

    run = start(3, tmp_path, "--epochs", str(epoch + 1))
    try:
        assert run.wait(timeout=LIMIT) == 0, (tmp_path / "3.txt").read_text()
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait(timeout=LIMIT)
    after = interleaved(drawn(tmp_path, 3, epoch))
    padding = -(DRAWS - position) % 3
    assert used + after == stream + stream[:padding]
    assert after[: len(lost)] == lost[: len(after)]
    assert [len(share) for share in drawn(tmp_path, 3, epoch)] == [len(after) // 3] * 3

    output = (tmp_path / "3.txt").read_text()
    assert f"resumed epoch {epoch} at draw {position} of {DRAWS}\n3 ranks, DDP over gloo\n" in output
    loss, accuracy = re.search(
        rf"^epoch {epoch}  loss ([\d.]+)  test accuracy ([\d.]+)%", output, re.MULTILINE
    ).groups()
    assert float(loss) < 1.5
    assert float(accuracy) > 75
    assert stands(checkpoint) == (steps + math.ceil(len(after) / 3 / BATCH), epoch + 1, 0)
    assert not checkpoint.with_suffix(".part").exists()


def trained(folder: Path, epochs: int, fsdp: bool) -> dict:
    defaults = {"draws": 64, "batch": 16, "every": 1, "lr": 3e-3, "seed": 0, "workers": 0, "record": False}
    example.train(argparse.Namespace(folder=folder, epochs=epochs, fsdp=fsdp, **defaults), torch.device("cpu"))
    torch.distributed.barrier()
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def resume_under_fsdp(folder: Path, rank: int, world: int) -> None:
    """Two epochs at a stretch, against one in copies and one in shards that starts from its checkpoint."""
    straight = trained(folder / "straight", 2, fsdp=False)
    trained(folder / "parts", 1, fsdp=False)
    resumed = trained(folder / "parts", 2, fsdp=True)
    assert resumed["sampler"] == straight["sampler"]
    assert resumed["sampler"]["epoch"] == 2
    torch.testing.assert_close(resumed["model"], straight["model"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(resumed["optimizer"]["state"], straight["optimizer"]["state"], rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_copies_resumes_in_shards(tmp_path):
    assert ranks.run(2, tmp_path, {"fsdp": functools.partial(resume_under_fsdp, tmp_path)}) == {}


def test_a_save_that_is_interrupted_leaves_the_checkpoint_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "get_state_dict", lambda *arguments, options: ({"weight": torch.ones(3)}, {}))
    monkeypatch.setattr(example.dist, "get_rank", lambda: 0)
    path = tmp_path / "checkpoint.pt"
    example.save(path, None, None, {"position": 1})
    first = path.read_bytes()

    def interrupted(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(example.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        example.save(path, None, None, {"position": 2})
    assert path.read_bytes() == first
