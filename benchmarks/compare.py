"""python -m benchmarks.compare CLONE [--only GROUP ...] [--rounds 3]: the rows of another built clone beside ours.

The two take turns, a group at a time, and each row is the ratio of its own times: this clone over the other one. What
stands beside our time in a row is the same code in both, so the spread of its ratios is the noise of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.__main__ import FOLDER, GROUPS

Times = dict[tuple[str, str], list[tuple[float, float]]]  # a row's work and what it is compared with: ours and theirs


def run(clone: Path, group: str, times: Times) -> None:
    python = clone / ".venv" / "bin" / "python"
    with tempfile.TemporaryDirectory() as out:
        command = [python if python.exists() else sys.executable, "-m", "benchmarks", "--only", group, "--out", out]
        subprocess.run([str(part) for part in command], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        (record,) = Path(out).glob("*.json")
        for row in json.loads(record.read_text())["results"]:
            if row["ours_us"] is not None:
                times[row["work"], row["against"]].append((row["ours_us"], row["other_us"]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("clone", type=Path, help="a clone whose library is built (make build)")
    parser.add_argument("--only", nargs="+", choices=sorted(GROUPS), default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns")
    arguments = parser.parse_args()
    print("| work | against | this clone / the other | the same code / itself |", "|---|---|---|---|", sep="\n")
    for group in arguments.only:
        here: Times = defaultdict(list)
        there: Times = defaultdict(list)
        for _ in range(arguments.rounds):
            run(arguments.clone.resolve(), group, there)
            run(FOLDER.parent, group, here)
        for row in sorted(here.keys() & there.keys()):
            ours, same = (
                statistics.median(times[side] for times in here[row])
                / statistics.median(times[side] for times in there[row])
                for side in (0, 1)
            )
            print(f"| {row[0]} | {row[1]} | {ours:.2f} | {same:.2f} |", flush=True)


if __name__ == "__main__":
    main()
