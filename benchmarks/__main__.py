"""python -m benchmarks [--device cpu|cuda] [--only GROUP ...] [--quick] [--out FOLDER], or --busy"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import ste_ops
from benchmarks import (
    binarize,
    binary_products,
    busy,
    clip,
    data,
    draws,
    imports,
    memory,
    resample,
    sampling,
    straight_through,
    sum_tree,
)
from benchmarks.measure import Result, keep_memory, measure

GROUPS = {
    "binarize": binarize.rows,
    "binary_products": binary_products.rows,
    "straight_through": straight_through.rows,
    "clip": clip.rows,
    "sampling": sampling.rows,
    "data": data.rows,
    "sum_tree": sum_tree.rows,
    "resample": resample.rows,
    "draws": draws.rows,
    "memory": memory.rows,
    "imports": imports.rows,
}
FOLDER = Path(__file__).parent


def machine(device: str) -> dict[str, Any]:
    info = ste_ops.build_info()
    description = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ste_ops": info["version"],
        "compiler": info["compiler"],
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short=12", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "csrc") else ""),
    }
    if device == "cuda":
        description["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return description


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return _output("git", *arguments)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(about: dict[str, Any], results: list[Result]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "`python -m benchmarks`: medians of interleaved rounds in one run.",
        "Freed memory is kept by the process, so no side is timed on page faults.",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "| work | against | ours | other | ratio | target | reached |", "|---|---|---|---|---|---|---|"]
    for r in results:
        times = [f"{us / 1e3:.3f} ms" if us is not None else "" for us in (r.ours_us, r.other_us)]
        reached = "yes" if r.reached else "**no**"
        lines.append(f"| {r.work} | {r.against} | {times[0]} | {times[1]} | {r.ratio:.3g} | {r.target} | {reached} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Each promise of speed as a ratio.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="+", choices=sorted(GROUPS), default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that every row runs")
    parser.add_argument("--busy", action="store_true", help="1 and 2 threads beside two spinning processes instead")
    parser.add_argument("--out", type=Path, help="where to write NAME.json and NAME.md; default: only print")
    arguments = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    if arguments.busy:
        print(busy.table(0.1 if arguments.quick else 2.0))
        return
    about = machine(arguments.device)
    results = []
    for group in arguments.only:
        for row in GROUPS[group](arguments.device, arguments.quick):
            results.append(measure(row, arguments.device))
            last = results[-1]
            print(f"{last.work} | {last.against} | {last.ratio:.3g} (target {last.target})", flush=True)
    print(table(about, results))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"{arguments.device}-{about['date']}"
        record = {"machine": about, "results": [asdict(r) for r in results]}
        (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (arguments.out / f"{name}.md").write_text(table(about, results))


if __name__ == "__main__":
    main()
