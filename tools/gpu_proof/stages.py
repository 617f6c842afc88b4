"""What is proved, stage by stage: STAGES below is the table."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu_proof import processes, reports
from tools.gpu_proof.machine import ROOT, Machine

# Compile something, or look at the sources rather than at what is installed: left out for a wheel, as in compat.py.
OF_THE_SOURCES = ["emulator/*", "native/*"]
OF_THE_SOURCES += [
    f"repository/{name}" for name in ("build", "contributing", "docs", "house", "library", "private_torch")
]
# Compile for minutes what shows nothing of a GPU, and have cuda in the name of their folder.
NEVER = ["cuda/*"]
OF_THEIR_OWN = ["operators/every_operator", "operators/large", "gpu/*"]
GROUPS = {
    "suite-steps": ["binarize/*", "testing/check_ste"],
    "suite-quantize": ["quantize/*", "nn/*"],
    "suite-clip": ["clip/*"],
    "suite-sampling": ["sampling/*", "data/*"],
    "suite-compile": ["operators/compile"],
}


@dataclass(frozen=True)
class Outcome:
    """`result` is "passed", "FAILED: how" or "not run: why"."""

    result: str
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


class OutOfTime(Exception):
    """The call has no time left for what a stage does."""


@dataclass
class Context:
    """What a stage has: the Python, where the tests lie, the environment, its log and its seconds."""

    python: str
    machine: Machine
    wheel: Path | None
    folder: Path
    log: Path = Path()
    limit: float = 0.0
    call_ends_first: bool = False
    more: list[str] = field(default_factory=list)  # arguments for pytest
    sources: str = ""  # their digest

    @property
    def root(self) -> Path:
        return self.folder / "checkout" if self.wheel else ROOT

    def environment(self, **variables: str) -> dict[str, str]:
        environment = {**os.environ, **variables}
        if self.wheel:
            environment["PYTHONPATH"] = str(self.folder / "site")
        return environment

    def run(self, *command: object, **variables: str) -> processes.Done:
        done = processes.run(command, self.log, self.limit, self.root, self.environment(**variables))
        if done.code is None and self.call_ends_first:
            raise OutOfTime(f"cut off after {done.seconds:.0f} s, when the time of this call was over")
        return done

    def lacks(self, *packages: str) -> str:
        names = [name for name in packages if name not in self.machine.packages]
        return f"{', '.join(names)} not installed" if names else ""


Run = Callable[[Context], Outcome]


def plainly(done: processes.Done) -> Outcome:
    """Of a command whose exit status says everything."""
    if done.code == 0:
        return Outcome("passed")
    return Outcome(f"FAILED: {_how(done)}")


def _how(done: processes.Done) -> str:
    if done.code is None:
        return f"still ran after its limit of {done.seconds:.0f} s"
    lines = [line.strip() for line in done.output.splitlines() if line.strip()]
    return f"exit status {done.code}: {lines[-1][:300] if lines else 'it said nothing'}"


# Build.


def build(context: Context) -> Outcome:
    """Then asks what is loaded: on a machine with a GPU the CUDA kernels must be."""
    outcome = _unpack(context) if context.wheel else _compile(context)
    if outcome.result != "passed":
        return outcome
    code = "import json, ste_ops; print(json.dumps(ste_ops.build_info()))"
    done = context.run(context.python, "-c", code)
    if done.code != 0:
        return plainly(done)
    info = json.loads(done.output.splitlines()[-1])
    if context.machine.devices and not info["cuda"]:
        return Outcome(f"FAILED: no CUDA kernels: {info['cuda_reason']}")
    if context.wheel and not info["libraries"][0].startswith(str(context.folder)):
        return Outcome(f"FAILED: imported {info['libraries'][0]}, not the wheel")
    return Outcome("passed", {"libraries": len(info["libraries"])})


def _compile(context: Context) -> Outcome:
    machine = context.machine
    # For the GPUs that are here, which is the fewest to compile; FORCE_CUDA because torch may have none.
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(machine.archs) or machine.default_archs
    cuda = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": archs} if machine.cuda_home else {"FORCE_CUDA": "0"}
    return plainly(context.run(context.python, "setup.py", "build_ext", "--inplace", **cuda))


def _unpack(context: Context) -> Outcome:
    """The wheel in one folder and the tests in another, without the package's sources."""
    assert context.wheel is not None
    for name in ("site", "checkout"):
        shutil.rmtree(context.folder / name, ignore_errors=True)
    with zipfile.ZipFile(context.wheel) as archive:  # as pip would, which may be missing
        archive.extractall(context.folder / "site")
    context.root.mkdir(parents=True)
    for name in ("tests", "benchmarks", "examples", "csrc", "docs", "tools"):
        skipped = shutil.ignore_patterns("__pycache__", "build", "results")
        shutil.copytree(ROOT / name, context.root / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, context.root)
    return Outcome("passed")


# Tests.


def tested(done: processes.Done) -> Outcome:
    """What pytest counted; a run in which everything was skipped has shown nothing."""
    closing = re.findall(r"^=* ?(\d+ (?:passed|failed|skipped|error|deselected).*) in [\d.]+s", done.output, re.M)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", (closing or [""])[-1])}
    if done.code in (0, 5) and not counts.get("passed"):
        reasons = re.findall(r"^\d+ x (?:Skipped: )?(.+)", done.output, re.M)
        return Outcome(f"not run: {'; '.join(reasons) or 'no test was selected'}", counts)
    if done.code == 0:
        return Outcome("passed", counts)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.output, re.M)
    return Outcome(f"FAILED: {failed[0]}" if failed and done.code is not None else f"FAILED: {_how(done)}", counts)


def files(patterns: list[str]) -> list[str]:
    """Below tests/; a pattern is FOLDER/NAME of FOLDER/test_NAME.py."""
    tests = ROOT / "tests"
    found = (tests.glob(pattern.replace("/", "/test_") + ".py") for pattern in patterns)
    return sorted({str(path.relative_to(tests)) for paths in found for path in paths})


def pytest(context: Context, names: list[str], *more: str, parallel: bool = False, **variables: str) -> Outcome:
    lacking = context.lacks("pytest", "hypothesis")
    if lacking:
        return Outcome(f"not run: {lacking}")
    left_out = {*files(NEVER), *(files(OF_THE_SOURCES) if context.wheel else [])}
    paths = [f"tests/{name}" for name in names if name not in left_out]
    spread = ["-n", "4", "--dist", "loadfile"] if parallel and "xdist" in context.machine.packages else []
    command = [context.python, "-m", "pytest", "-q", "-k", "cuda", *spread, *more, *context.more, *paths]
    return tested(context.run(*command, STE_OPS_NEED_CUDA="1", **variables))


def suite(group: str | None) -> Run:
    def run(context: Context) -> Outcome:
        apart = {*files(OF_THEIR_OWN), *(name for patterns in GROUPS.values() for name in files(patterns))}
        names = files(GROUPS[group]) if group else [name for name in files(["*/*"]) if name not in apart]
        return pytest(context, names, parallel=True)

    return run


def tests_of(name: str, **variables: str) -> Run:
    return lambda context: pytest(context, files([name]), **variables)


# compute-sanitizer.


def sanitizer(tool: str) -> Run:
    def run(context: Context) -> Outcome:
        program = find_sanitizer(context.machine.cuda_home)
        if program is None:
            return Outcome("not run: compute-sanitizer was not found on PATH or in the CUDA toolkit")
        # Of initcheck all, which may be torch's: whose an error is that is not printed, nobody knows.
        most = "10000" if tool == "initcheck" else "20"
        command = [program, "--tool", tool, "--error-exitcode", "86", "--print-limit", most]
        variables = {"STE_OPS_NEED_CUDA": "1"}
        if tool in ("memcheck", "initcheck"):
            # Each tensor in an allocation of its own, or what lies behind it counts as its memory.
            variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        if tool in ("racecheck", "synccheck"):
            command += _only_ours(program, context)
        elif tool == "memcheck":
            # torch asks for what may fail and looks at the answer.
            command += ["--report-api-errors", "no"]
        command += [context.python, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider", *context.more]
        done = context.run(*command, "tests/operators/test_every_operator.py", **variables)
        return sanitized(tool, done)

    return run


def sanitized(tool: str, done: processes.Done) -> Outcome:
    found = reports.summaries(done.output)
    if done.code == 0 and not found:
        return Outcome("FAILED: compute-sanitizer gave no summary", tested(done).counts)
    if done.code != 86:
        return tested(done)
    outcome = tested(processes.Done(0, done.seconds, done.output))  # pytest itself has ended with 0
    kernels = reports.kernels(done.output)
    ours = sorted({name for name in kernels if name})
    if tool == "initcheck" and kernels and not ours and not any("not printed" in line for line in found):
        return Outcome(outcome.result, {**outcome.counts, "reports of other kernels": len(kernels)})
    where = f"in {', '.join(ours[:5])}" if ours else "none of them in a kernel of ste_ops"
    return Outcome(f"FAILED: {'; '.join(found) or 'errors'}, {where}", outcome.counts)


def find_sanitizer(cuda_home: str | None) -> str | None:
    beside = [str(Path(cuda_home, folder)) for folder in ("bin", "compute-sanitizer")] if cuda_home else []
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(beside))


def _only_ours(program: str, context: Context) -> list[str]:
    """The option was renamed once. torch's kernels are not ours to judge, and cost minutes."""
    said = processes.run([program, "--help"], context.log, 60, context.root, context.environment()).output
    return next(([option, "kns=ste_ops"] for option in ("--kernel-regex", "--kernel-name") if option in said), [])


# The rest.


def gradcheck(*more: str) -> Run:
    def run(context: Context) -> Outcome:
        if "--compile" in more and context.lacks("triton"):
            return Outcome(f"not run: {context.lacks('triton')}, which torch.compile needs on a GPU")
        done = context.run(context.python, "-m", "ste_ops", "gradcheck", "--device", "cuda", *more)
        counted = re.search(r"(\d+) rows, (\d+) checks, (\d+) failed", done.output)
        outcome = plainly(done)
        return Outcome(outcome.result, {"checks": int(counted[2]), "failed": int(counted[3])} if counted else {})

    return run


def demo(context: Context) -> Outcome:
    lacking = context.lacks("sklearn", "matplotlib", "tqdm")
    if lacking:
        return Outcome(f"not run: {lacking}")
    return plainly(
        context.run(context.python, "-m", "ste_ops", "demo", "--device", "cuda", "--out", context.folder / "demo.png")
    )


def training(context: Context) -> Outcome:
    """The demo's network on made-up digits: needs no package but torch."""
    return plainly(context.run(context.python, "-m", "tools.gpu_proof.training", "--device", "cuda"))


def bench(*arguments: str) -> Run:
    def run(context: Context) -> Outcome:
        out = context.folder / "bench.json"
        out.unlink(missing_ok=True)
        command = [context.python, "-m", "benchmarks.gpu", "--device", "cuda", "--out", out, *arguments]
        try:
            result = plainly(context.run(*command)).result
        except OutOfTime as error:
            result = f"not run: {error}"
        # What was measured until a limit came is kept.
        rows = json.loads(out.read_text())["rows"] if out.exists() else []
        return Outcome(result, {"rows": len(rows)}, rows)

    return run


def promises(context: Context) -> Outcome:
    out = context.folder / "promises"
    shutil.rmtree(out, ignore_errors=True)
    groups = ["binarize", "straight_through", "clip", "sampling", "sum_tree", "resample", "draws"]
    done = context.run(context.python, "-m", "benchmarks", "--device", "cuda", "--only", *groups, "--out", out)
    rows = [row for path in out.glob("*.json") for row in json.loads(path.read_text())["results"]]
    counts = {"rows": len(rows), "reached": sum(row["reached"] for row in rows)}
    return Outcome(plainly(done).result, counts, rows)


@dataclass(frozen=True)
class Stage:
    """`seconds` is a guess of what it takes, and decides whether it is begun; at `limit` it is ended."""

    what: str
    seconds: int
    limit: int
    run: Run


STAGES: dict[str, Stage] = {
    # What a GPU shows first, where one is at hand for half an hour.
    # The compilers go on where a call ended, so it is begun with little time left, too.
    "build": Stage("compiles for the GPUs that are here, or unpacks --wheel; what is loaded", 60, 3600, build),
    "operators": Stage("every operator twice, against the CPU kernels", 60, 300, tests_of("operators/every_operator")),
    "memcheck": Stage("compute-sanitizer over `operators`", 300, 580, sanitizer("memcheck")),
    "racecheck": Stage("as memcheck", 300, 580, sanitizer("racecheck")),
    "graphs": Stage("every operator and a training step from a CUDA graph", 60, 300, tests_of("gpu/graphs")),
    "streams": Stage("every operator on two streams at once", 60, 300, tests_of("gpu/streams")),
    "no-wait": Stage("nothing makes the host wait; bad arguments do no harm", 60, 300, tests_of("gpu/no_wait")),
    "bench-clip": Stage("clipping over parameter lists", 60, 300, bench("--part", "clip")),
    "bench-bfloat16": Stage("element-wise operators, 2^10 to 2^28", 300, 590, bench("--part", "bfloat16")),
    "bench-draws": Stage("draws and tables, n = 10^4 to 10^8", 120, 400, bench("--part", "draws")),
    # The rest.
    **{name: Stage("the tests of this group on cuda", 120, 580, suite(name)) for name in GROUPS},
    "suite-rest": Stage("those of no group", 120, 580, suite(None)),
    "second-gpu": Stage("every operator on device 1 while 0 is current", 60, 300, tests_of("gpu/second_gpu")),
    "large": Stage("more than 2^31 elements", 120, 400, tests_of("operators/large", STE_OPS_LARGE="1")),
    "gradcheck": Stage("python -m ste_ops gradcheck", 120, 400, gradcheck()),
    "gradcheck-compile": Stage("the same through torch.compile", 400, 580, gradcheck("--compile")),
    "initcheck": Stage("as memcheck; reports of kernels of others only count", 300, 580, sanitizer("initcheck")),
    "synccheck": Stage("as memcheck", 300, 580, sanitizer("synccheck")),
    "training": Stage("a binary network, native and reference, on made-up digits", 60, 300, training),
    "demo": Stage("python -m ste_ops demo", 60, 300, demo),
    "bench-float32": Stage("as bench-bfloat16", 300, 590, bench("--part", "float32")),
    "bench-float16": Stage("as bench-bfloat16", 300, 590, bench("--part", "float16")),
    "bench-float64": Stage("as bench-bfloat16", 300, 590, bench("--part", "float64")),
    "bench-promises": Stage("python -m benchmarks", 400, 590, promises),
}


def chosen(only: list[str], skip: list[str]) -> list[str]:
    """In the order of STAGES. A name stands for itself and for all that begin with it and a dash."""

    def named(given: str) -> set[str]:
        found = {name for name in STAGES if name == given or name.startswith(given + "-")}
        if not found:
            raise SystemExit(f"gpu-proof: a stage must be one of {', '.join(STAGES)}, got {given}")
        return found

    wanted = {name for given in only for name in named(given)} if only else set(STAGES)
    return [name for name in STAGES if name in wanted - {name for given in skip for name in named(given)}]
