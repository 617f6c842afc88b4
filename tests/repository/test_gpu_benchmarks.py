"""The benchmark for a GPU, on the CPU at small sizes: every part gives its rows, and they make tables and a picture."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

gpu = pytest.importorskip("benchmarks.gpu", reason="runs in a checkout only")
from benchmarks import clip, gpu_report, measure  # noqa: E402


def rows(part: str, tmp_path: Path) -> list[dict[str, Any]]:
    out = tmp_path / f"{part}.json"
    gpu.main(["--part", part, "--device", "cpu", "--quick", "--out", str(out)])
    return json.loads(out.read_text())["rows"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that saves a mask and one with a learned scale; without code generation, which takes seconds a case."""
    monkeypatch.setattr(gpu, "CASES", [case for case in gpu.CASES if case.name.startswith(("heaviside", "lsq"))])
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(clip, "resnet_50", lambda: [(3, 3), (3,)])


def test_elementwise_operators(tmp_path: Path) -> None:
    found = rows("bfloat16", tmp_path)
    assert found[0]["part"] == "bandwidth"
    assert [(row["work"], row["size"]) for row in found[1:3]] == [("clone()", 2**12), ("clone()", 2**14)]
    works = [f"{case.name}, {way}" for case in gpu.CASES for way in ("forward", "backward")]
    assert {row["work"] for row in found[3:]} == set(works)
    assert len(found[3:]) == 2 * len(works)
    assert all(row["ours_us"] > 0 < row["eager_us"] and row["compiled_us"] > 0 for row in found[3:])
    copy = found[0]["bytes"] / found[0]["ours_us"]
    forward = next(row for row in found if row["work"] == works[0] and row["size"] == 2**14)
    assert forward["bytes"] == 2**14 * 2 * 2 + 2**14 // 8  # x, the output and its mask
    assert forward["fraction"] == pytest.approx(forward["bytes"] / forward["ours_us"] / copy)
    of_lsq = next(row for row in found if row["work"] == "lsq, backward" and row["size"] == 2**14)
    assert of_lsq["bytes"] == 2**14 * 2 * 3 + 4  # the gradient, x and the result; the scale


def test_a_size_that_an_operator_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("sr_ste: must be a multiple of 4")

    case = gpu.Case("sr_ste", refuses, refuses, refuses, refuses, 1.0)
    monkeypatch.setattr(gpu, "CASES", [case])
    last = rows("float32", tmp_path)[-1]
    assert (last["ours_us"], last["note"]) == (None, "not at this size: sr_ste: must be a multiple of 4")


def test_clipping_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_clip = rows("clip", tmp_path)
    assert [row["of"] for row in of_clip if row["part"] == "bandwidth"] == ["read", "copy"] * 2
    assert len([row for row in of_clip if row["part"] == "clip"]) == 2 * 4 * 2
    monkeypatch.setattr(gpu, "MOST_OF_MULTINOMIAL", 5000)
    of_draws = rows("draws", tmp_path)
    assert [row["eager_us"] is None for row in of_draws] == [False] * 4 + [True] * 4
    assert of_draws[-1]["note"] == "torch.multinomial takes at most 2^24 categories"


def test_tables_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    promised = {"work": "a", "against": "b", "ratio": 1.0, "target": "<= 1.1", "reached": True}
    given = {"float32": rows("float32", tmp_path), "draws": rows("draws", tmp_path), "promises": [promised]}
    done = {"result": "passed", "seconds": 2.0, "counts": {"rows": 3}}
    record = {
        "machine": {"device": "A GPU", "commit": "abc"},
        "stages": {name: {**done, "rows": r} for name, r in given.items()},
    }
    path = tmp_path / "gpu-x.json"
    path.write_text(json.dumps(record))
    gpu_report.main([str(path)])
    said = (tmp_path / "gpu-x.md").read_text()
    for text in ("- device: A GPU", "| float32 | passed | 2 | 3 rows |", "| lsq, backward | float32 | 2^14 | ", "GB/s"):
        assert text in said
    assert "10 draws without a table" in said
    assert "| a | b | 1 | <= 1.1 | yes |" in said
    assert "| lsq, backward | float32 | 2^12 | " not in said  # the largest size alone

    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(gpu_report, "plot", missing)
    capsys.readouterr()
    gpu_report.main([str(path)])
    assert "no picture: matplotlib is not installed" in capsys.readouterr().out


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gpu_report.plot(rows("float32", tmp_path), "A GPU", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_medians_tell_work_apart(device: str) -> None:
    wait = (lambda: torch.cuda._sleep(20_000_000)) if device == "cuda" else (lambda: time.sleep(0.01))
    short, long = measure.medians([lambda: None, wait], 3, device)
    assert 0 <= short < long / 2
    assert 0.001 < long < 1
