"""Builds ste_ops, or takes a wheel, and proves it on the GPU of this machine, stage by stage.

    make gpu-proof                                     everything, which takes more than an hour
    make gpu-proof PROOF='--limit 520 --resume'        what fits in ten minutes and has not passed yet: again and again
    make gpu-proof PROOF='--only suite bench-clip'     these; a name stands for all that begin with it and a dash
    make gpu-proof PROOF='--wheel dist/x.whl'          the wheel, away from the sources

Nothing is downloaded: it needs a Python with torch, setuptools, pytest, hypothesis and ninja, and nvcc. A stage that
cannot run is "not run" with its reason, never passed. Exit status: 0 if nothing failed, 1 if something did, 3 if there
is no GPU, 4 if the time of this call was over before every stage had its turn.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.gpu_proof import machine as machines
from tools.gpu_proof import record, stages
from tools.gpu_proof.machine import ROOT
from tools.gpu_proof.stages import STAGES, Context, Outcome

FAILED, NO_GPU, NO_TIME = 1, 3, 4
# What a stage is not begun without, however little it is known to take.
LEAST = 10


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="the stages, and nothing else")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE")
    parser.add_argument("--skip", nargs="+", default=[], metavar="STAGE")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what has passed for these sources on this machine"
    )
    parser.add_argument("--wheel", type=Path, help="test this instead of building")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="for all stages together")
    parser.add_argument("--commit", help="where there is no git; or STE_OPS_COMMIT in the environment")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "gpu_proof", help="of each stage")
    parser.add_argument("--python", default=sys.executable, help="default: the one that runs this")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    options = parser.parse_args(given)
    if options.wheel and not options.wheel.is_file():
        raise SystemExit(f"gpu-proof: --wheel must be a file, got {options.wheel}")
    return options


def describe() -> str:
    width = max(map(len, STAGES))
    return "\n".join(f"{name:{width}}  {stage.limit:4} s  {stage.what}" for name, stage in STAGES.items())


def perform(name: str, context: Context, left: float) -> dict[str, Any]:
    """Runs a stage and says how it went."""
    stage = STAGES[name]
    context.log = context.folder / f"{name}.log"
    context.log.unlink(missing_ok=True)
    context.limit, context.call_ends_first = min(stage.limit, left), left < stage.limit
    started = time.monotonic()
    try:
        outcome = stage.run(context)
    except stages.OutOfTime as error:
        outcome = Outcome(f"not run: {error}")
    if name == "build" and outcome.result == "passed":
        _built(context).write_text(_library(context))
    entry: dict[str, Any] = {
        "result": outcome.result,
        "seconds": round(time.monotonic() - started, 1),
        "counts": outcome.counts,
        "at": datetime.datetime.now().isoformat(timespec="seconds"),
    }
    return entry | ({"rows": outcome.rows} if outcome.rows else {})


def say(name: str, entry: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {what}" for what, count in entry["counts"].items())
    print(f"{name}: {entry['result']}" + (f" ({counts})" if counts else "") + f", {entry['seconds']:.0f} s", flush=True)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    if options.list:
        print(describe())
        return 0
    ends = time.monotonic() + options.limit
    names = stages.chosen(options.only, options.skip)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage's processes end with this one
    machine = machines.probe(options.python)
    folder = options.logs.resolve()
    wheel = options.wheel.resolve() if options.wheel else None
    context = Context(
        options.python, machine, wheel, folder, more=options.pytest.split(), sources=machines.sources(wheel)
    )
    about = machine.about(machines.commit(options.commit), context.sources)
    kept = record.Record(options.out.resolve(), about) if machine.devices else None
    results: dict[str, Any] = {}
    if options.resume and kept:  # one that takes longer than a call would leave nothing to the others, each time
        names.sort(key=kept.cut_off)

    for name in names:
        if name != "build" and kept is None:
            break
        if options.resume and kept and kept.passed(name) and _stands(name, context):
            print(f"{name}: passed before", flush=True)
            continue
        left = ends - time.monotonic()
        before = kept.stages.get(name, {}) if kept else {}
        needs = before["seconds"] if before.get("result") == "passed" else STAGES[name].seconds
        if left < max(LEAST, needs):
            results[name] = {"result": f"not run: {left:.0f} s of this call are left", "seconds": 0.0, "counts": {}}
        else:
            results[name] = perform(name, context, left)
        say(name, results[name])
        if kept:
            kept.add(name, results[name])
        if name == "build" and not results[name]["result"].startswith("passed"):
            print(f"gpu-proof: nothing else was run; the whole log is {context.log}")
            return FAILED if "FAILED" in results[name]["result"] else NO_TIME

    if kept is None:
        built = "built" if "build" in results else "not built, as asked"
        print(f"gpu-proof: {built}; no GPU was found ({machine.no_gpu}), so nothing was proved")
        return NO_GPU
    print(f"\n{about['device']}, driver {about['driver']}, torch {about['torch']}, commit {about['commit']}\n")
    print(record.table(kept.stages, STAGES))
    _report(options.python, kept.path)
    print(f"logs: {folder}")
    said = [entry["result"] for entry in results.values()]
    if any(result.startswith("FAILED") for result in said):
        return FAILED
    return NO_TIME if any("of this call" in result for result in said) else 0


def _stands(name: str, context: Context) -> bool:
    """Whether what a stage made is still there: a copy of the repository may have come without it, or the library has
    been built from other sources since."""
    if name != "build":
        return True
    note = _built(context)
    return note.exists() and note.read_text() == _library(context)


def _built(context: Context) -> Path:
    """What the last build that passed made."""
    context.folder.mkdir(parents=True, exist_ok=True)
    return context.folder / "built"


def _library(context: Context) -> str:
    library = (context.folder / "site" if context.wheel else ROOT) / "ste_ops" / "_cuda.abi3.so"
    return f"{context.sources} {hashlib.sha256(library.read_bytes()).hexdigest() if library.exists() else 'none'}\n"


def _report(python: str, results: Path) -> None:
    """The tables of what was measured and the picture, beside the JSON."""
    done = subprocess.run(
        [python, "-m", "benchmarks.gpu_report", str(results)], cwd=ROOT, capture_output=True, text=True
    )
    print("\n".join([*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()[-1:]]))


if __name__ == "__main__":
    sys.exit(main())
