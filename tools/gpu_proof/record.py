"""The results: one JSON file for sources on a machine, rewritten after each stage, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Two calls that agree in these add to one file.
SAME = ("device", "driver", "torch", "sources")


class Record:
    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path, self.content = _earlier(folder, about) or (_new(folder, about), {"machine": about, "stages": {}})

    @property
    def stages(self) -> dict[str, Any]:
        return self.content["stages"]

    def passed(self, name: str) -> bool:
        return self.stages.get(name, {}).get("result") == "passed"

    def cut_off(self, name: str) -> bool:
        """Whether the end of a call has stopped it."""
        return "cut off" in self.stages.get(name, {}).get("result", "")

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """A stage that ran counts for more than one that did not, and that for one that had no time, whichever comes
        later."""
        if _weight(entry) < _weight(self.stages.get(name)):
            return
        self.stages[name] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(self.content, indent=1) + "\n")
        whole.replace(self.path)


def _weight(entry: dict[str, Any] | None) -> int:
    if entry is None or "of this call are left" in entry["result"]:
        return 0
    return 1 if entry["result"].startswith("not run") else 2


def _earlier(folder: Path, about: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    for path in sorted(folder.glob("gpu-*.json"), reverse=True):
        content = json.loads(path.read_text())
        if "stages" in content and all(content["machine"].get(key) == about[key] for key in SAME):
            return path, content
    return None


def _new(folder: Path, about: dict[str, Any]) -> Path:
    name = f"gpu-{about['date']}-{about['commit']}"
    taken = len(list(folder.glob(f"{name}*.json")))
    return folder / (f"{name}-{taken + 1}.json" if taken else f"{name}.json")


def table(stages: dict[str, Any], order: Iterable[str]) -> str:
    lines = ["| stage | result | seconds | counts |", "|---|---|---|---|"]
    for name in order:
        entry = stages.get(name, {"result": "not run yet", "seconds": 0.0, "counts": {}})
        counts = ", ".join(f"{count} {what}" for what, count in entry["counts"].items())
        result = entry["result"].replace("|", "/").replace("\n", " ")
        lines.append(f"| {name} | {result} | {entry['seconds']:.0f} | {counts} |")
    return "\n".join(lines)
