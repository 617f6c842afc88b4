"""`make gpu-proof` as far as it goes without a GPU: what it says then, and how it runs stages and keeps results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

main = pytest.importorskip("tools.gpu_proof.__main__", reason="runs in a checkout only")

from tools.gpu_proof import machine as machines  # noqa: E402
from tools.gpu_proof import processes, record, stages  # noqa: E402
from tools.gpu_proof.stages import Context, Outcome, Stage  # noqa: E402

PACKAGES = ["hypothesis", "pytest"]
GPU = machines.Machine("3.12", "2.11.0+cu130", "13.0", "", ["A GPU"], ["9.0"], [2**36], None, "8.0;9.0", PACKAGES)
NO_GPU = machines.Machine("3.12", "2.11.0", None, "torch 2.11.0 has none", [], [], [], None, "8.0;9.0", PACKAGES)


@pytest.fixture
def table() -> Iterator[dict[str, Stage]]:
    """STAGES, to be filled with others."""
    before = dict(stages.STAGES)
    stages.STAGES.clear()
    yield stages.STAGES
    stages.STAGES.clear()
    stages.STAGES.update(before)


def fixed(result: str, **counts: int) -> Stage:
    return Stage("says this", 1, 5, lambda context: Outcome(result, counts))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def proof(*given: str, machine: machines.Machine = GPU, commit: str = "abc", sources: str = "the same") -> int:
        monkeypatch.setattr(machines, "probe", lambda python: machine)
        monkeypatch.setattr(machines, "sources", lambda wheel: sources)
        where = ["--out", str(tmp_path / "out"), "--logs", str(tmp_path / "logs")]
        return main.main([*given, "--commit", commit, *where])

    return proof


def results(tmp_path: Path) -> list[dict[str, str]]:
    contents = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*.json"))]
    return [{name: stage["result"] for name, stage in content["stages"].items()} for content in contents]


# Without a GPU.


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_the_command_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.gpu_proof", "--skip", "build", "--logs", str(tmp_path)]
    done = subprocess.run(command, cwd=machines.ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("gpu-proof: not built, as asked; no GPU was found (")
    assert done.stdout.strip().endswith("), so nothing was proved")
    assert "torch.cuda.is_available() is False" in done.stdout or "is built without CUDA" in done.stdout


def test_without_a_gpu_it_stops_when_it_has_built(table: Any, call: Any, tmp_path: Path, capsys: Any) -> None:
    table |= {"build": fixed("passed"), "graphs": Stage("must not run", 1, 1, lambda context: 1 / 0)}
    assert call(machine=NO_GPU) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "build: passed, 0 s"
    assert said[1] == "gpu-proof: built; no GPU was found (torch 2.11.0 has none), so nothing was proved"
    assert len(said) == 2
    assert results(tmp_path) == []


def test_a_build_that_fails_is_no_proof(table: Any, call: Any, capsys: Any) -> None:
    table |= {"build": fixed("FAILED: exit status 1: no header"), "graphs": fixed("passed")}
    for machine in (GPU, NO_GPU):
        assert call(machine=machine) == 1
        assert "nothing else was run; the whole log is " in capsys.readouterr().out


def test_a_library_without_cuda_kernels_is_no_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = {"cuda": False, "cuda_reason": "no nvcc", "libraries": ["_C.abi3.so"]}
    monkeypatch.setattr(processes, "run", lambda *_: processes.Done(0, 1.0, json.dumps(info)))
    assert stages.build(Context("python", GPU, None, tmp_path)).result == "FAILED: no CUDA kernels: no nvcc"
    assert stages.build(Context("python", NO_GPU, None, tmp_path)).result == "passed"


def test_it_is_compiled_for_the_gpus_that_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(processes, "run", lambda *a: seen.append(a[-1]) or processes.Done(1, 1.0, "no"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    for machine, archs in ((GPU, "9.0"), (NO_GPU, "8.0;9.0")):
        with_nvcc = machines.Machine(**{**vars(machine), "cuda_home": "/cuda"})
        assert stages.build(Context("python", with_nvcc, None, tmp_path)).result == "FAILED: exit status 1: no"
        assert (seen[-1]["FORCE_CUDA"], seen[-1]["TORCH_CUDA_ARCH_LIST"]) == ("1", archs)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9")
    stages.build(Context("python", with_nvcc, None, tmp_path))
    assert seen[-1]["TORCH_CUDA_ARCH_LIST"] == "8.9"
    stages.build(Context("python", NO_GPU, None, tmp_path))
    assert seen[-1]["FORCE_CUDA"] == "0"


# Stages.


def test_stages_are_listed_and_chosen(capsys: Any) -> None:
    assert main.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(stages.STAGES)
    assert stages.chosen([], []) == list(stages.STAGES)
    assert stages.chosen(["bench-clip", "suite"], ["suite-clip"]) == [
        "bench-clip",
        *("suite-steps", "suite-quantize", "suite-sampling", "suite-compile", "suite-rest"),
    ]
    with pytest.raises(SystemExit, match=r"a stage must be one of build, operators, .* got suites"):
        stages.chosen(["suites"], [])


def test_what_only_a_gpu_shows_comes_first() -> None:
    first = ["build", "operators", "memcheck", "racecheck", "graphs", "streams", "no-wait"]
    assert list(stages.STAGES)[:10] == [*first, "bench-clip", "bench-bfloat16", "bench-draws"]


def test_every_test_file_belongs_to_one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(processes, "run", lambda words, *_: asked.extend(map(str, words)) or processes.Done(5, 1.0, ""))
    for name, stage in stages.STAGES.items():
        if name.startswith(("suite", "operators", "graphs", "streams", "second", "no-wait", "large")):
            stage.run(Context("python", GPU, None, tmp_path))
    assert asked[4:6] == ["-k", "cuda"]
    paths = [word.removeprefix("tests/") for word in asked if word.startswith("tests/")]
    tests = machines.ROOT / "tests"
    all_files = {str(path.relative_to(tests)) for path in tests.rglob("test_*.py")}
    assert set(paths) == all_files - set(stages.files(stages.NEVER))
    assert len(paths) == len(set(paths))


def test_what_waits_for_a_gpu_is_selected_where_one_is() -> None:
    """`-k cuda` takes a test by its name or by its device; no other may be skipped for want of a GPU."""
    wanting = []
    for path in (machines.ROOT / "tests").rglob("test_*.py"):
        for test in re.findall(r"^(?:@.*\n(?:[ )\]].*\n)*)*def test_.*\n(?:(?:[ )].*)?\n)*", path.read_text(), re.M):
            named = re.search(r"^def (\w+)", test, re.M)
            if re.search(r"(skip\(|reason=).no CUDA device", test) and named and "cuda" not in named[1]:
                wanting.append(f"{path.name}::{named[1]}")
    assert wanting == []


def test_one_that_fails_is_told_and_the_others_run(table: Any, call: Any, tmp_path: Path, capsys: Any) -> None:
    table |= {"one": fixed("passed", passed=3), "two": fixed("FAILED: exit status 2"), "three": fixed("not run: no x")}
    assert call() == 1
    assert results(tmp_path) == [{"one": "passed", "two": "FAILED: exit status 2", "three": "not run: no x"}]
    said = capsys.readouterr().out
    assert "one: passed (3 passed), 0 s" in said
    assert "| one | passed | 0 | 3 passed |\n| two | FAILED: exit status 2 | 0 |  |" in said
    assert call("--skip", "two") == 0


def test_one_that_is_too_slow_is_ended_with_all_it_started(table: Any, call: Any, tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
    table["slow"] = Stage("waits", 1, 1, lambda context: stages.plainly(context.run("sh", "-c", script)))
    started = time.monotonic()
    assert call() == 1
    assert time.monotonic() - started < 20
    assert results(tmp_path)[0]["slow"] == "FAILED: still ran after its limit of 1 s"
    pid = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert (tmp_path / "logs" / "slow.log").read_text().startswith("$ sh -c sleep 60 &")


def test_the_time_of_a_call(table: Any, call: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(main, "LEAST", 1)
    table["long"] = Stage("takes long", 100, 200, lambda context: 1 / 0)
    assert call("--limit", "60") == 4
    assert results(tmp_path)[0]["long"].startswith("not run: 60 s of this call")
    table["long"] = Stage("hangs", 1, 200, lambda context: stages.plainly(context.run("sleep", "60")))
    assert call("--limit", "2", "--only", "long") == 4
    capsys.readouterr()
    assert results(tmp_path)[0]["long"].startswith("not run: cut off after ")
    # The next call does not spend itself on that again before the others had their turn.
    table["short"] = fixed("passed")
    assert call("--limit", "2", "--resume") == 4
    assert capsys.readouterr().out.splitlines()[0] == "short: passed, 0 s"
    table["long"] = Stage("takes long", 100, 200, lambda context: 1 / 0)
    assert call("--limit", "60", "--only", "long") == 4
    assert results(tmp_path)[0]["long"].startswith("not run: cut off after ")


def test_two_calls_of_the_same_sources_are_one_record(table: Any, call: Any, tmp_path: Path, capsys: Any) -> None:
    table |= {"one": fixed("passed"), "two": fixed("FAILED: so")}
    assert call("--only", "one") == 0
    assert call("--only", "two") == 1
    assert results(tmp_path) == [{"one": "passed", "two": "FAILED: so"}]
    table |= {"one": Stage("must not run", 1, 1, lambda context: 1 / 0), "two": fixed("passed")}
    assert call("--resume") == 0
    assert "one: passed before" in capsys.readouterr().out
    assert results(tmp_path) == [{"one": "passed", "two": "passed"}]
    # What is not run later does not hide what ran.
    table["two"] = fixed("not run: no package")
    assert call("--only", "two") == 0
    assert results(tmp_path) == [{"one": "passed", "two": "passed"}]
    table["one"] = fixed("passed")
    assert call("--only", "one", sources="others") == 0
    other = machines.Machine(**{**vars(GPU), "devices": ["Another GPU"]})
    assert call("--only", "one", machine=other) == 0
    assert len(results(tmp_path)) == 3
    about = json.loads(next((tmp_path / "out").glob("*.json")).read_text())["machine"]
    assert set(about) == {"device", "driver", "torch", "nvcc", "python", "date", "commit", "sources"}


def test_what_passed_stands_for_no_other_sources(table: Any, call: Any, tmp_path: Path, capsys: Any) -> None:
    """A copy without .git has no commit to tell them by, and a commit of words alone changes nothing."""
    table["one"] = fixed("passed")
    assert call(commit="unknown") == 0
    table["one"] = fixed("FAILED: so")
    assert call("--resume", commit="another") == 0
    assert "one: passed before" in capsys.readouterr().out
    assert call("--resume", commit="unknown", sources="others") == 1
    assert results(tmp_path) == [{"one": "FAILED: so"}, {"one": "passed"}]


def test_sources_are_told_apart_by_what_they_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = ["csrc/a.cu", "ste_ops/b.py", "tests/gpu/test_c.py", "benchmarks/d.py", "setup.py"]
    wheel = tmp_path / "x.whl"
    for name in [*files, "x.whl"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(machines, "ROOT", tmp_path)
    seen = [machines.sources(None), machines.sources(wheel)]
    for name in files:
        (tmp_path / name).write_text("2")
        seen.append(machines.sources(None))
    (tmp_path / "csrc/a.cu").rename(tmp_path / "csrc/e.cu")
    seen.append(machines.sources(None))
    wheel.write_text("2")
    seen.append(machines.sources(wheel))
    assert len(set(seen)) == len(seen) == 9
    # What a build, a test and a benchmark leave behind is no source.
    for name in ("ste_ops/_C.abi3.so", "tests/__pycache__/c.pyc", "benchmarks/results/gpu.json", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("made")
    assert machines.sources(wheel) == seen[-1]


def test_a_library_of_other_sources_is_built_again(table: Any, call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    library = tmp_path / "root" / "ste_ops" / "_cuda.abi3.so"
    library.parent.mkdir(parents=True)
    monkeypatch.setattr(main, "ROOT", tmp_path / "root")
    built: list[str] = []

    def builds(what: str) -> Stage:
        return Stage("builds", 1, 5, lambda context: built.append(library.write_text(what)) or Outcome("passed"))

    def resumed(sources: str) -> int:
        table["build"] = builds(sources)
        assert call("--resume", sources=sources) == 0
        return len(built)

    assert [resumed("one"), resumed("one"), resumed("other"), resumed("one")] == [1, 1, 2, 3]
    library.write_text("made by hand")
    assert resumed("one") == 4


def test_a_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STE_OPS_COMMIT", raising=False)
    monkeypatch.setattr(machines, "ROOT", tmp_path)
    assert machines.commit(None) == "unknown"
    monkeypatch.setenv("STE_OPS_COMMIT", "fed")
    assert machines.commit(None) == "fed"
    assert machines.commit("abc") == "abc"


def test_what_pytest_says(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_terminal_summary(terminalreporter):\n    terminalreporter.write_line('1 x Skipped: one GPU')\n"
    )
    tests = {"passes": "pass", "skips": "import pytest; pytest.skip('one GPU')", "fails": "assert 0"}
    for name, body in tests.items():
        (tmp_path / f"test_{name}.py").write_text(f"def test_it():\n    {body}\n")

    def said(*names: str) -> Outcome:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", *(f"test_{n}.py" for n in names)]
        return stages.tested(processes.run(command, tmp_path / "log", 60, tmp_path, os.environ))

    assert said("passes", "skips") == Outcome("passed", {"passed": 1, "skipped": 1})
    assert said("skips") == Outcome("not run: one GPU", {"skipped": 1})
    assert said("passes", "fails") == Outcome("FAILED: test_fails.py::test_it", {"failed": 1, "passed": 1})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_kernels_that_are_not_there_are_a_failure(tmp_path: Path) -> None:
    context = Context(sys.executable, GPU, None, tmp_path, tmp_path / "log", 600.0, more=["-k", "cuda-raise"])
    outcome = stages.pytest(context, ["operators/test_every_operator.py"])
    assert outcome.result.startswith("FAILED: tests/operators/test_every_operator.py::test_twice"), outcome
    assert "no CUDA device is present" in context.log.read_text()


SANITIZER = """#!/bin/sh
case "$1" in --help) echo "--kernel-regex arg"; exit;; esac
echo "$@" "$PYTORCH_NO_CUDA_MEMORY_CACHING" >> {folder}/seen
echo "========= Invalid __global__ read of size 4 bytes"
echo "=========     at void ste_ops::<unnamed>::sign_kernel<float>(long)+0x10"
echo "========= ERROR SUMMARY: 1 error"
exit {code}
"""


def test_the_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    context = Context("python", GPU, None, tmp_path, tmp_path / "log", 30.0)
    if stages.find_sanitizer(None) is None:
        assert stages.sanitizer("memcheck")(context).result.startswith("not run: compute-sanitizer was not found")
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format(folder=tmp_path, code=86))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for tool in ("memcheck", "racecheck"):
        assert stages.sanitizer(tool)(context).result == "FAILED: 1 error, in sign_kernel"
    memcheck, racecheck = (tmp_path / "seen").read_text().splitlines()
    assert memcheck.endswith("tests/operators/test_every_operator.py 1")
    assert "--kernel-regex" not in memcheck
    assert "--error-exitcode 86" in racecheck
    assert "--kernel-regex kns=ste_ops" in racecheck


UNINITIALIZED = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at {at}
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f0000000000
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: void ste_ops::Launcher::operator()(long) in launch.cuh:1 [0x1] in _cuda.abi3.so
"""
OF_TORCH = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)+0x30"
OURS = ["void ste_ops::<unnamed>::sign_kernel<float>(long)+0x10", "0x90 in void ste_ops::_GLOBAL__N__1::b_kernel(int)"]


def test_reads_of_nothing_are_ours_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = Context("python", GPU, None, tmp_path, tmp_path / "log", 30.0)
    program = tmp_path / "compute-sanitizer"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def said(*at: str, more: str = "") -> Outcome:
        report = "".join(UNINITIALIZED.format(at=place) for place in at) + more
        said = f"3 passed in 1.0s\n{report}========= ERROR SUMMARY: {len(at)} errors"
        program.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/seen\ncat <<END\n{said}\nEND\nexit 86\n")
        program.chmod(0o755)
        return stages.sanitizer("initcheck")(context)

    assert said(OF_TORCH, OF_TORCH) == Outcome("passed", {"passed": 3, "reports of other kernels": 2})
    assert said(OF_TORCH, OURS[0]).result == "FAILED: 2 errors, in sign_kernel"
    assert said(OURS[1], OURS[0]).result == "FAILED: 2 errors, in b_kernel, sign_kernel"
    # Whose those are that it does not print, nobody knows.
    more = "========= ERROR SUMMARY: 7 errors were not printed. Use --print-limit option to adjust\n"
    assert said(OF_TORCH, more=more).result.startswith("FAILED: 7 errors were not printed.")
    assert "--print-limit 10000" in (tmp_path / "seen").read_text()


def test_a_wheel_is_tested_away_from_the_sources(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ste_ops/__init__.py", "build_info = lambda: {'cuda': True, 'libraries': [__file__]}")
    context = Context(sys.executable, GPU, wheel, tmp_path / "proof", tmp_path / "log", 30.0)
    assert stages.build(context) == Outcome("passed", {"libraries": 1})
    assert (context.root / "tests" / "support" / "operator_calls.py").exists()
    assert not (context.root / "ste_ops").exists()


def test_the_table_shows_what_has_not_been_run() -> None:
    entry = {"result": "FAILED: a | b", "seconds": 1.4, "counts": {"passed": 2}}
    assert record.table({"b": entry}, ["a", "b"]).splitlines()[2:] == [
        "| a | not run yet | 0 |  |",
        "| b | FAILED: a / b | 1 | 2 passed |",
    ]
