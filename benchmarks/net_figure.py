"""python -m benchmarks.net_figure TABLE.md FIGURE.svg: draws a table of benchmarks/nets.py, prints README's rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

Nets = dict[str, dict[str, tuple[float, float]]]

# As far from white as from the black of dark pages.
GRAY = "#767c84"
COLORS = {
    "float": "#9aa5b1",
    "plain": "#d98f5c",
    "brevitas": "#c9b458",
    "torchao": "#b58ac9",
    "ours": "#4f9ed9",
    "ours, recompute_": "#2fb38a",
}
LABELS = {"float": "float net", "plain": "plain torch", "brevitas": "Brevitas", "ours": "ste_ops"}
LABELS["ours, recompute_"] = "ste_ops, recompute_"
# Longer bars are cut here, and their share is written beside them.
LONGEST = 4.0
# What the README prints, of each kind.
COLUMNS = ["float", "plain", "ours", "ours, recompute_"]


def rows(table: str, batch: int) -> Nets:
    """Of each net and kind the milliseconds of a step and the MiB kept; eager, contiguous."""
    found: Nets = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[1:3] == ["contiguous", "eager"] and cells[0].endswith(f", {batch}"):
            name = cells[0].rsplit(",", 1)[0]
            found.setdefault(name, {})[cells[3]] = float(cells[4]), float(cells[6])
    return found


def written(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def short_table(nets: Nets) -> str:
    """Rows of Markdown: MiB kept and milliseconds a step."""
    lines = ["| | " + " | ".join(LABELS[kind] for kind in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, kinds in nets.items():
        cells = [f"{written(kinds[kind][1])} MiB, {written(kinds[kind][0])} ms" for kind in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def panel(axes: Any, nets: Nets, place: int, title: str, unit: str) -> None:
    """Bars of each net, as shares of the float net's; numbers beside them."""
    top, ticks = 0.0, []
    for name, kinds in nets.items():
        ticks.append((top - (len(kinds) - 1) / 2, name))
        for kind in (kind for kind in COLORS if kind in kinds):
            number = kinds[kind][place]
            share = number / kinds["float"][place]
            axes.barh(top, min(share, LONGEST), 0.82, color=COLORS[kind])
            text = f"{written(number)} {unit}"
            if share > LONGEST:
                axes.plot(LONGEST, top, marker=">", color=COLORS[kind], markersize=7, clip_on=False)
                text += f" ({written(share)} times)"
            # Beside the dotted line, never across it.
            start = min(max(share, 1), LONGEST + 0.1) + 0.07
            axes.text(start, top, text, va="center", fontsize=7.5, color=GRAY)
            top -= 1
        top -= 0.9
    axes.axvline(1, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yticks([tick for tick, _ in ticks], [name.replace(", ", ",\n") for _, name in ticks])
    axes.set_ylim(top + 1.2, 0.8)
    axes.set_xlim(0, LONGEST + 1.9)
    axes.set_xticks(range(int(LONGEST) + 1))
    axes.set_title(title, color=GRAY, fontsize=10, loc="left")
    axes.tick_params(colors=GRAY, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in axes.spines.values():
        side.set_color(GRAY)
        side.set_linewidth(0.5)


def main(table: Path, figure: Path, batch: int = 64) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # Numbers stay text, which a test reads; the same table gives the same file.
    matplotlib.rcParams["svg.fonttype"], matplotlib.rcParams["svg.hashsalt"] = "none", "nets"
    matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans", "Verdana", "Arial"]
    nets = rows(table.read_text(), batch)
    drawing = Figure(figsize=(9, 0.185 * sum(len(kinds) + 1 for kinds in nets.values()) + 0.9), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    panel(left, nets, 1, f"kept for the backward, batch {batch} (float net = 1)", "MiB")
    panel(right, nets, 0, f"a training step, batch {batch} (float net = 1)", "ms")
    drawn = [kind for kind in COLORS if any(kind in kinds for kinds in nets.values())]
    legend = [Patch(color=COLORS[kind], label=LABELS.get(kind, kind)) for kind in drawn]
    drawing.legend(handles=legend, loc="outside lower center", ncols=6, frameon=False, labelcolor=GRAY, fontsize=8.5)
    drawing.savefig(figure, transparent=True, metadata={"Date": None} if figure.suffix == ".svg" else None)
    print(short_table(nets))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
