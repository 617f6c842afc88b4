"""Tables and a picture of what `make gpu-proof` measured: python -m benchmarks.gpu_report FILE.json"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLOURS = {"float32": "#1b7837", "bfloat16": "#d95f02", "float16": "#7570b3", "float64": "#666666"}
# A line each: ours in a dtype's colour, and of float32 what it is compared with.
OTHERS = {"eager_us": ("plain torch", "--"), "compiled_us": ("torch.compile", ":")}


def points(record: dict[str, Any]) -> list[Row]:
    """The rows of benchmarks/gpu.py, which have a part; those of the promises do not."""
    return [row for stage in record["stages"].values() for row in stage.get("rows", []) if "part" in row]


def _size(n: int) -> str:
    return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 else f"{n}"


def _faster(row: Row, other: str) -> str:
    return f"{row[other] / row['ours_us']:.2f} times" if row[other] and row["ours_us"] else ""


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| work | dtype | elements | ours | of bandwidth | faster than plain torch | faster than torch.compile | |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        share = f"{row['fraction']:.0%} of {row['of']}" if row["fraction"] else ""
        ours = f"{row['ours_us']:.1f} us" if row["ours_us"] else ""
        cells = [row["work"], row["dtype"], _size(row["size"]), ours, share]
        cells += [_faster(row, "eager_us"), _faster(row, "compiled_us"), row["note"]]
        yield "| " + " | ".join(cells) + " |"


def report(record: dict[str, Any]) -> str:
    rows = points(record)
    largest = {row["dtype"]: row["size"] for row in rows if row["part"] == "elementwise"}
    lines = ["# What a GPU showed", "", *(f"- {key}: {value}" for key, value in record["machine"].items()), ""]
    lines += ["| stage | result | seconds | counts |", "|---|---|---|---|"]
    for name, stage in record["stages"].items():
        counts = ", ".join(f"{n} {what}" for what, n in stage["counts"].items())
        lines.append(f"| {name} | {stage['result'].replace('|', '/')} | {stage['seconds']:.0f} | {counts} |")
    lines += ["", "Bandwidth, as `clone()` and `sum()` have it in the same run:", ""]
    for row in rows:
        if row["part"] == "bandwidth":
            speed = row["bytes"] / row["ours_us"] / 1e3
            lines.append(f"- {row['work']}, {row['dtype']}, {_size(row['size'])} elements: {speed:.0f} GB/s")
    for title, chosen in {
        "Element-wise operators, largest size (all sizes are in the JSON)": [
            row for row in rows if row["part"] == "elementwise" and row["size"] == largest[row["dtype"]]
        ],
        "Clipping": [row for row in rows if row["part"] == "clip"],
        "Draws": [row for row in rows if row["part"] == "draws"],
    }.items():
        if chosen:
            lines += ["", f"## {title}", "", *_table(chosen)]
    promised = [row for stage in record["stages"].values() for row in stage.get("rows", []) if "target" in row]
    if promised:
        lines += [
            "",
            "## python -m benchmarks",
            "",
            "| work | against | ratio | target | reached |",
            "|---|---|---|---|---|",
        ]
        for row in promised:
            reached = "yes" if row["reached"] else "**no**"
            lines.append(f"| {row['work']} | {row['against']} | {row['ratio']:.3g} | {row['target']} | {reached} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], title: str, out: Path) -> None:
    """A panel for each operator: the share of the copy bandwidth over the size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["part"] == "elementwise" and row["fraction"]]
    works = list(dict.fromkeys(row["work"] for row in rows))
    columns = 6
    lines = -(-len(works) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * lines + 1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    shown: dict[str, Any] = {}
    for work, axes in zip(works, panels, strict=False):
        for dtype, colour in COLOURS.items():
            mine = [row for row in rows if row["work"] == work and row["dtype"] == dtype]
            if not mine:
                continue
            (shown[dtype],) = axes.plot([r["size"] for r in mine], [r["fraction"] for r in mine], color=colour)
            for other, (label, style) in OTHERS.items() if dtype == "float32" else ():
                theirs = [(r["size"], r["fraction"] * r["ours_us"] / r[other]) for r in mine if r[other]]
                if theirs:
                    (shown[f"{label}, float32"],) = axes.plot(*zip(*theirs, strict=True), style, color="black", lw=1)
        axes.set_title(work, fontsize=7)
        axes.axhline(0.9, color="#cccccc", lw=0.8, zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.3)
    for axes in list(panels):
        axes.set_visible(False)
    figure.suptitle(f"Share of the copy bandwidth over the number of elements: {title}", fontsize=11)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown) or 1, frameon=False)
    figure.savefig(out, dpi=100)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args(given).results
    record = json.loads(path.read_text())
    path.with_suffix(".md").write_text(report(record))
    print(f"results: {path} and .md")
    rows = points(record)
    if not any(row["part"] == "elementwise" for row in rows):
        print("no picture: no element-wise operator was measured")
        return
    try:
        plot(rows, record["machine"]["device"], path.with_suffix(".png"))
    except ImportError as error:
        print(f"no picture: {error.name} is not installed; this command draws it where it is")
    else:
        print(f"picture: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
